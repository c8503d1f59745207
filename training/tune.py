"""Tuning on answers, preferences or rewards from a `TuningRecipe`: TRL's trainers for text, ours for images."""

import logging
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import set_seed

from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.checkpoint.loading import load_processor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

from .adapters import load_with_adapter, save_model
from .checkpoints import is_whole, whole_folder
from .flow_grpo.trainer import FlowGRPOArguments, FlowGRPOTrainer
from .language.trainers import language_arguments, language_trainer
from .language.trl_datasets import conversation_data, generation_examples, read_records
from .recipe import from_mapping
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
        logger.info("%s is finished", recipe.output_dir)
        return final
    set_seed(recipe.seed)
    checkpoint = open_checkpoint(recipe.model)
    processor = load_processor(checkpoint.directory)
    model = load_with_adapter(checkpoint, recipe.adapter, torch.bfloat16 if recipe.bf16 else torch.float32)
    (_tune_images if recipe.method == "flow_grpo" else _tune_text)(recipe, model, processor)
    state = PartialState()
    if state.is_main_process:
        with whole_folder(final) as partial:
            save_model(model, partial)
            processor.save_pretrained(partial)
    state.wait_for_everyone()
    return final


def _tune_text(recipe: TuningRecipe, model: PeftModel, processor: UniMedVLProcessor) -> None:
    settings = {
        "bf16": recipe.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": recipe.seed,
        **recipe.arguments,
    }
    if recipe.method == "grpo":
        settings["reward_weights"] = list(recipe.rewards.values())
    arguments = language_arguments(recipe.method, recipe.output_dir, settings)
    train, held_out = (
        None if choice is None else conversation_data(_records(choice), recipe.method)
        for choice in (recipe.train, recipe.evaluation)
    )
    assert train is not None
    trainer = language_trainer(recipe.method, model, processor, arguments, train, held_out, list(recipe.rewards))
    # A folder without the state, which is written last, is what a killed run left.
    whole = [path for path in Path(recipe.output_dir).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))


def _tune_images(recipe: TuningRecipe, model: PeftModel, processor: UniMedVLProcessor) -> None:
    settings = {**recipe.arguments, "output_dir": recipe.output_dir, "seed": recipe.seed}
    arguments = from_mapping(FlowGRPOArguments, settings, "arguments")
    rewards = image_rewards(recipe.rewards, model, processor)
    train = generation_examples(_records(recipe.train))
    held_out = [] if recipe.evaluation is None else generation_examples(_records(recipe.evaluation))
    FlowGRPOTrainer(model, processor, arguments, train, rewards, held_out).train()


def _records(choice: RecordChoice) -> list:
    return read_records(choice.path, choice.tasks, choice.sources, choice.split, choice.limit)
