"""Tuning on answers, preferences or rewards from a `TuningRecipe`: TRL's trainers for text, ours for images."""

import logging
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import set_seed

from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.checkpoint.loading import load_processor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor
from unimedvl.unimed5m.schema import Record

from .adapters import load_with_adapter, save_model
from .checkpoints import FINISHED_ALREADY, is_whole, whole_folder
from .data.dataset import EmptyGroupError
from .flow_grpo.trainer import FlowGRPOArguments, FlowGRPOTrainer
from .language.trainers import language_arguments, language_trainer
from .language.trl_datasets import conversation_data, generation_examples, read_records
from .recipe import from_mapping
from .recipe_advice import advice
from .rewards import image_rewards
from .tuning_recipe import RecordChoice, TuningRecipe

logger = logging.getLogger(__name__)


def run_tuning(recipe: TuningRecipe) -> Path:
    """Run a tuning recipe from the start or from its newest checkpoint, and return the folder of the finished adapter.

    Raises:
        ValueError: for records, rewards or settings that cannot be used.
    """
    final = Path(recipe.output_dir) / "final"
    if is_whole(final):
        logger.info(FINISHED_ALREADY, recipe.output_dir)
        return final
    set_seed(recipe.seed)
    # Before the model, which takes long to load.
    train, held_out = _records(recipe)
    checkpoint = open_checkpoint(recipe.model)
    processor = load_processor(checkpoint.directory)
    model = load_with_adapter(checkpoint, recipe.adapter, torch.bfloat16 if recipe.bf16 else torch.float32)
    tune = _tune_images if recipe.method == "flow_grpo" else _tune_text
    tune(recipe, model, processor, train, held_out)
    state = PartialState()
    if state.is_main_process:
        with whole_folder(final) as partial:
            save_model(model, partial)
            processor.save_pretrained(partial)
    state.wait_for_everyone()
    return final


def _tune_text(
    recipe: TuningRecipe,
    model: PeftModel,
    processor: UniMedVLProcessor,
    train: list[Record],
    held_out: list[Record] | None,
) -> None:
    settings = {"bf16": recipe.bf16, "seed": recipe.seed, **recipe.arguments}
    if recipe.method == "grpo":
        settings["reward_weights"] = list(recipe.rewards.values())
    arguments = language_arguments(recipe.method, recipe.output_dir, settings)
    data = conversation_data(train, recipe.method)
    asked = None if held_out is None else conversation_data(held_out, recipe.method)
    trainer = language_trainer(recipe.method, model, processor, arguments, data, asked, list(recipe.rewards))
    # A folder without the state, which is written last, is what a killed run left.
    whole = [path for path in Path(recipe.output_dir).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    try:
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    except UnpicklingError as error:
        # transformers' Trainer keeps optimizer and random state as pickles, and opens them for tensors alone.
        raise ValueError(f"{newest} holds a pickle of more than tensors, which could run code: remove it.") from error


def _tune_images(
    recipe: TuningRecipe,
    model: PeftModel,
    processor: UniMedVLProcessor,
    train: list[Record],
    held_out: list[Record] | None,
) -> None:
    settings = {**recipe.arguments, "output_dir": recipe.output_dir, "seed": recipe.seed}
    arguments = from_mapping(FlowGRPOArguments, settings, "arguments")
    rewards = image_rewards(recipe.rewards, model, processor)
    examples = generation_examples(train)
    asked = generation_examples(held_out or [])
    FlowGRPOTrainer(model, processor, arguments, examples, rewards, asked).train()


def _records(recipe: TuningRecipe) -> tuple[list[Record], list[Record] | None]:
    """The records to train on, and the held-out ones where the recipe has any."""
    try:
        train = _read(recipe.train)
    except EmptyGroupError as error:
        raise ValueError(f"train: {error}{advice(recipe, error.held)}") from error
    if recipe.evaluation is None:
        return train, None
    try:
        return train, _read(recipe.evaluation)
    except EmptyGroupError as error:
        raise ValueError(
            f"evaluation: {error} Choose another evaluation.split, or build records that have one."
        ) from error


def _read(choice: RecordChoice) -> list[Record]:
    return read_records(choice.path, choice.tasks, choice.sources, choice.split, choice.limit)
