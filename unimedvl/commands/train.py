"""Train a model by a recipe or a curriculum of recipes, going on where a stopped run was.

  unimedvl train recipe.yaml
  unimedvl train unimedvl-14b/stage-1.yaml data.path=records steps=100 optimizer.learning_rate=1e-5

Several processes: torchrun --nproc_per_node N -m unimedvl.training.run RECIPE.yaml [KEY=VALUE ...]
"""

import argparse
import importlib.util


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or a recipe of the package")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="changed values, with dots into sections")


def run(arguments: argparse.Namespace) -> None:
    if missing := [name for name in ("datasets", "pyarrow", "yaml") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} is missing: pip install 'unimedvl[train]'.")
    from ..training.run import run_command

    print(run_command(arguments.recipe, arguments.overrides))
