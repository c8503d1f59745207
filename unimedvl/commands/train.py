"""Train a model by a recipe or a curriculum, or resume a run.

  unimedvl train recipe.yaml
  unimedvl train unimedvl-14b/stage-1.yaml data.path=records steps=100 optimizer.learning_rate=1e-5

Several processes: torchrun --nproc_per_node N -m unimedvl.training.run RECIPE.yaml [KEY=VALUE ...]
"""

from pathlib import Path
from typing import Annotated

from typer import Argument

from ..utils.command_line import require


def train(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="YAML file, or a recipe of the package.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changed values, with dots into sections.")
    ] = None,
) -> Path:
    require("train", "datasets", "pyarrow", "yaml")
    from ..training.run import run_command

    return run_command(recipe, overrides)
