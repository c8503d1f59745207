"""Run a recipe or a curriculum, going on where it was stopped.

unimedvl train RECIPE.yaml [key=value ...]
torchrun --nproc_per_node N -m unimedvl.training.run RECIPE.yaml [key=value ...]
"""

import dataclasses
import logging
import os
import sys
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

from .adapters import bare_model, load_with_adapter
from .checkpoints import checkpoints, is_whole
from .dataset import PackedRecords, RecordGroup
from .latents import LatentCache, autoencoder_fingerprint
from .recipe import CurriculumRecipe, TrainingRecipe, load_recipe
from .trainer import UniMedVLTrainer
from .tuning_recipe import TuningRecipe

logger = logging.getLogger(__name__)

# Folders of a finished stage, in its output folder.
FINISHED = {"model": "final", "ema": "final-ema"}


def run_recipe(recipe: TrainingRecipe) -> Path:
    """Train one stage, or go on with it, and return the folder of its finished model.

    A stage that is finished already is left as it is.

    Raises:
        ValueError: for data, a checkpoint or an output folder that cannot be used.
    """
    output = Path(recipe.output_dir)
    best = output / FINISHED["ema" if recipe.ema_decay else "model"]
    if is_whole(best):
        logger.info("%s is finished", output)
        return best
    _check_writable(output)
    set_seed(recipe.seed)
    groups = [RecordGroup(group) for group in recipe.data.groups]
    if recipe.adapter is None:
        model = UniMedVLForConditionalGeneration.from_pretrained(recipe.model, dtype=torch.float32)
    else:
        # Weights that do not learn need no float32.
        model = load_with_adapter(recipe.model, recipe.adapter, torch.bfloat16 if recipe.bf16 else torch.float32)
    processor = UniMedVLProcessor.from_pretrained(recipe.model)
    cache = None
    if recipe.data.latent_cache:
        cache = LatentCache(recipe.data.latent_cache, autoencoder_fingerprint(bare_model(model)))
    data = PackedRecords(
        groups,
        recipe.data,
        lambda text: processor.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True),
        model.config,
        recipe.seed,
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
        timestep_shift=recipe.timestep_shift,
        cache=cache,
    )
    trainer = UniMedVLTrainer(model, recipe, data, processor, cache)
    found = checkpoints(output)
    if found:
        logger.info("going on from %s", found[-1])
    trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
    trainer.save_stage(output / FINISHED["model"], average=False)
    if trainer.average is not None:
        trainer.save_stage(output / FINISHED["ema"], average=True)
    return best


def run_curriculum(recipe: CurriculumRecipe, folder: Path, overrides: list[str]) -> Path:
    """Train all stages in order, each from the weights of the one before; returns the last one's finished model.

    Args:
        folder: of the curriculum's file, which its stages' files are relative to.
        overrides: "key=value" for every stage.
    """
    start = recipe.model
    finished = Path(start)
    for stage in recipe.stages:
        stage_recipe = load_recipe(folder / stage.recipe, overrides)
        if not isinstance(stage_recipe, TrainingRecipe):
            raise ValueError(f"{folder / stage.recipe}: a stage must be a recipe, not a curriculum.")
        output = Path(recipe.output_dir) / stage.name
        stage_recipe = dataclasses.replace(stage_recipe, model=start, output_dir=str(output))
        finished = run_recipe(stage_recipe)
        start = str(output / FINISHED[stage.weights if stage_recipe.ema_decay else "model"])
    return finished


def run(path: str | Path, overrides: list[str]) -> Path:
    """Run the recipe or curriculum of a file; returns the folder of the finished model."""
    recipe = load_recipe(path, overrides)
    if isinstance(recipe, CurriculumRecipe):
        own = {field.name for field in dataclasses.fields(CurriculumRecipe)}
        stages = [text for text in overrides if text.partition("=")[0].partition(".")[0] not in own]
        return run_curriculum(recipe, Path(path).parent, stages)
    if isinstance(recipe, TuningRecipe):
        # TRL takes seconds to import.
        from .tune import run_tuning

        _check_writable(Path(recipe.output_dir))
        return run_tuning(recipe)
    return run_recipe(recipe)


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{output} cannot be written to ({error.strerror}): choose another output_dir.") from error


def main(arguments: list[str] | None = None) -> int:
    """The command for launchers; exit code 2 with one line for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    transformers_logging.set_verbosity_error()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        print(run(arguments[0], arguments[1:]))
    except (ValueError, OSError) as error:
        print(f"unimedvl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
