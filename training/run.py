"""Run a recipe or a curriculum, resuming where it was stopped.

unimedvl train RECIPE.yaml [key=value ...]
torchrun --nproc_per_node N -m unimedvl.training.run RECIPE.yaml [key=value ...]
"""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import datasets
import torch
import torch.distributed as distributed
from accelerate import PartialState
from transformers import set_seed
from transformers.utils import logging as transformers_logging
from typer import Argument

from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.checkpoint.loading import load, load_processor
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.utils.command_line import run_module

from .adapters import bare_model, load_with_adapter
from .checkpoints import FINISHED_ALREADY, checkpoints, is_whole, several_processes
from .curriculum.sharding import load_sharded
from .curriculum.trainer import UniMedVLTrainer
from .curriculum.validation import Validation, open_validation
from .data.dataset import EmptyGroupError, PackedRecords, RecordGroup, text_encoder
from .data.posterior_cache import LatentCache, autoencoder_fingerprint
from .data_recipe import DataRecipe
from .recipe import CurriculumRecipe, StageRecipe, TrainingRecipe, find_recipe, load_recipe, split_overrides
from .recipe_advice import advice
from .tuning_recipe import TuningRecipe

logger = logging.getLogger(__name__)

# Folders of a finished stage, in its output folder.
FINISHED = {"model": "final", "ema": "final-ema"}


def run_recipe(recipe: TrainingRecipe, before: Path | None = None, carried: StageRecipe | None = None) -> Path:
    """Train one stage from its start or its newest checkpoint, and return the folder of its finished model.

    A stage that is finished already is left as it is.

    Args:
        recipe: see `TrainingRecipe`.
        before: output folder of the stage before, whose averages and moments may be carried over.
        carried: what is carried over from it.

    Raises:
        ValueError: for data, a checkpoint or an output folder that cannot be used.
    """
    output = Path(recipe.output_dir)
    best = output / FINISHED["ema" if recipe.ema_decay else "model"]
    if is_whole(best):
        logger.info(FINISHED_ALREADY, output)
        return best
    _check_writable(output)
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(recipe.seed)
    try:
        groups = [RecordGroup(group) for group in recipe.data.groups]
    except EmptyGroupError as error:
        raise ValueError(f"{error}{advice(recipe, error.held)}") from error
    held_out = open_validation(recipe) if recipe.validation.every else None
    checkpoint = open_checkpoint(recipe.model)
    processor = load_processor(checkpoint.directory)
    model: Any
    if recipe.adapter is not None:
        # Frozen weights need no float32.
        kept = torch.bfloat16 if recipe.bf16 else torch.float32
        model = load_with_adapter(checkpoint, recipe.adapter, kept)
    elif recipe.parallelism == "fsdp2" and state.num_processes > 1:
        model = load_sharded(checkpoint, recipe, state.device)
    else:
        model = load(checkpoint.directory, dtype="float32", device="cpu").model
    _check_samples(recipe, bare_model(model).config)
    cache = None
    if recipe.data.latent_cache:
        cache = LatentCache(recipe.data.latent_cache, autoencoder_fingerprint(bare_model(model)))

    def packed(data: DataRecipe, opened: list[RecordGroup]) -> PackedRecords:
        return PackedRecords(
            opened,
            data,
            text_encoder(processor.tokenizer),
            model.config,
            recipe.seed,
            rank=state.process_index,
            world=state.num_processes,
            timestep_shift=recipe.timestep_shift,
            cache=cache,
        )

    validation = None
    if held_out is not None:
        count = -(-recipe.validation.batches // state.num_processes)
        validation = Validation(recipe, packed(*held_out), count, cache)
    trainer = UniMedVLTrainer(model, recipe, packed(recipe.data, groups), processor, cache, validation)
    found = checkpoints(output)
    if found:
        logger.info("resuming from %s", found[-1])
    elif before is not None and carried is not None:
        trainer.carry(checkpoints(before), carried)
    trainer.resume(found[-1] if found else None)
    trainer.save_stage(output / FINISHED["model"], average=False)
    if trainer.average is not None:
        trainer.save_stage(output / FINISHED["ema"], average=True)
    return best


def _check_samples(recipe: TrainingRecipe, config: UniMedVLConfig) -> None:
    largest = config.max_latent_size * config.pixels_per_latent_token
    side = max(recipe.samples.height, recipe.samples.width)
    if recipe.samples.every and side > largest:
        raise ValueError(f"samples: this model makes images of at most {largest} pixels a side, not {side}.")


def run_curriculum(recipe: CurriculumRecipe, folder: Path, overrides: list[str]) -> Path:
    """Train all stages in order, each from the weights of the one before; returns the last one's finished model.

    Args:
        folder: of the curriculum's file, which its stages' files are relative to.
        overrides: "key=value" for every stage.
    """
    stages = [load_recipe(folder / stage.recipe, overrides) for stage in recipe.stages]
    start, before = recipe.model, None
    finished = Path(start)
    for stage, stage_recipe in zip(recipe.stages, stages, strict=True):
        if not isinstance(stage_recipe, TrainingRecipe):
            raise ValueError(f"{folder / stage.recipe}: a stage must be a recipe, not a curriculum.")
        if before is not None:
            start = str(before / FINISHED["model"])
            if stage.weights == "ema" and (before / FINISHED["ema"]).is_dir():
                start = str(before / FINISHED["ema"])
        output = Path(recipe.output_dir) / stage.name
        finished = run_recipe(dataclasses.replace(stage_recipe, model=start, output_dir=str(output)), before, stage)
        before = output
    return finished


def run(path: str | Path, overrides: list[str]) -> Path:
    """Run the recipe or curriculum of a file; returns the folder of the finished model."""
    path = find_recipe(path)
    recipe = load_recipe(path, overrides)
    if isinstance(recipe, CurriculumRecipe):
        return run_curriculum(recipe, path.parent, split_overrides(overrides)[1])
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


def run_command(
    recipe: Annotated[str, Argument(metavar="RECIPE.yaml")],
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE")] = None,
) -> Path:
    """`run` for people: progress on stderr, and errors that say what to do.

    Raises:
        ValueError: in one line.
    """
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    first = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("unimedvl").setLevel(logging.INFO if first else logging.ERROR)
    try:
        return run(recipe, overrides or [])
    except RuntimeError as error:
        if several_processes() and _is_lost_process(error):
            raise ValueError(
                "another process of this run is gone: see what it said, and start again; the run resumes from its "
                "last checkpoint."
            ) from error
        raise
    finally:
        if several_processes() and sys.exc_info()[0] is None:
            distributed.destroy_process_group()


def _is_lost_process(error: RuntimeError) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    # gloo's errors have no class of their own.
    return any(word in str(error).lower() for word in ("gloo", "connection closed", "connection reset", "nccl"))


def main(arguments: list[str] | None = None) -> int:
    """The command for launchers; its exit code."""
    return run_module(run_command, arguments)


if __name__ == "__main__":
    sys.exit(main())
