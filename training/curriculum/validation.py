"""What is measured during a run: losses on held-out records, images, lines of progress."""

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TrainerCallback

from ..data.collate import to_device
from ..data.dataset import EmptyGroupError, PackedRecords, RecordGroup
from ..data.posterior_cache import LatentCache, scaled_latents
from ..data_recipe import ConditionDropout, DataRecipe
from ..recipe import SamplesRecipe, TrainingRecipe
from .metrics import StepMetrics

logger = logging.getLogger(__name__)

_GAP = 4  # pixels between images of a sheet


def open_validation(recipe: TrainingRecipe) -> tuple[DataRecipe, list[RecordGroup]]:
    """What a validation reads, without condition dropout: its own groups, or those of the training that have a split
    for it.

    Raises:
        ValueError: if there is none.
    """
    wanted = recipe.validation.groups or [
        dataclasses.replace(group, split=recipe.validation.split) for group in recipe.data.groups
    ]
    opened, empty = [], []
    for group in wanted:
        try:
            opened.append(RecordGroup(group))
        except EmptyGroupError as error:
            empty.append(str(error))
    # Of the training's groups, those count that have held-out records; groups of its own must all have some.
    if not opened or (empty and recipe.validation.groups):
        raise ValueError(
            f"validation: {empty[0]} Choose another validation.split, name validation.groups, or set validation.every "
            "to 0."
        )
    nothing = ConditionDropout(0.0, 0.0, 0.0, recipe.data.condition_dropout.scope)
    groups = [group.recipe for group in opened]
    return dataclasses.replace(recipe.data, groups=groups, condition_dropout=nothing), opened


class Validation:
    """Losses on always the same micro-batches.

    Args:
        recipe: of the run.
        records: what `open_validation` gives.
        count: micro-batches of this process.
        cache: of posteriors, the one that `records` uses.
    """

    def __init__(self, recipe: TrainingRecipe, records: PackedRecords, count: int, cache: LatentCache | None):
        self.recipe, self.records, self.count, self.cache = recipe, records, count, cache

    @torch.no_grad()
    def __call__(self, model: Any, device: torch.device) -> dict[str, float]:
        """Losses by "validation/NAME", over all processes; each must call it."""
        metrics = StepMetrics()
        for batch in itertools.islice(self.records, self.count):
            info = batch.pop("info")
            inputs = to_device(batch, device)
            if self.cache is not None and info.latent_inputs:
                inputs["latent_values"] = scaled_latents(model, info.latent_inputs, self.cache)
            metrics.add_losses(model(**inputs, skip_logits=True), inputs, info)
        means, _ = metrics.close()
        parts = [(self.recipe.ce_weight, means.get("ce")), (self.recipe.mse_weight, means.get("mse"))]
        means["loss"] = sum(weight * mean for weight, mean in parts if mean is not None)
        return {f"validation/{name}": value for name, value in means.items()}


@torch.no_grad()
def sample_sheet(model: Any, processor: Any, recipe: SamplesRecipe) -> Image.Image:
    """Images of the recipe's prompts: a row for each, the same noise every time."""
    rows = []
    for prompt in recipe.prompts:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
            generation_mode="image",
            split_special_tokens=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        images = model.generate(
            **inputs,
            generation_mode="image",
            preset="t2i",
            height=recipe.height,
            width=recipe.width,
            num_inference_steps=recipe.steps,
            num_images_per_prompt=recipe.count,
            generator=torch.Generator().manual_seed(0),
            show_progress=False,
        )
        rows.append(processor.post_process_multimodal_output(images, generation_mode="image"))
    width, height = (max(image.size[axis] for row in rows for image in row) + _GAP for axis in (0, 1))
    sheet = Image.new("RGB", (width * recipe.count - _GAP, height * len(rows) - _GAP), "white")
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            sheet.paste(image, (column * width, number * height))
    return sheet


def save_sheet(sheet: Image.Image, folder: Path, step: int) -> Path:
    """Write the images of a step."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}.png"
    sheet.save(path)
    return path


def duration(seconds: float) -> str:
    """Seconds as text for people: "2 d 03:04:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d " * (days > 0) + f"{hour:02d}:{minute:02d}:{second:02d}"


def progress_line(logs: Mapping[str, float], step: int, steps: int) -> str:
    """One line for the terminal from the numbers of a log entry."""
    parts = [f"step {step}/{steps} ({step / steps:.1%})"]
    formats = {
        "loss": "loss {:.4f}",
        "ce": "ce {:.4f}",
        "mse": "mse {:.4f}",
        "validation/loss": "validation loss {:.4f}",
        "validation/ce": "ce {:.4f}",
        "validation/mse": "mse {:.4f}",
        "grad_norm": "grad norm {:.3g}",
        "learning_rate": "learning rate {:.3g}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.1%}",
        "padding": "padding {:.1%}",
    }
    parts += [text.format(logs[name]) for name, text in formats.items() if name in logs]
    if "seconds_left" in logs:
        parts.append(f"{duration(logs['seconds_left'])} left")
    return "  ".join(parts)


class ProgressLines(TrainerCallback):
    """A line at the start and for every log entry, by process 0, in place of transformers' dictionaries and bars."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            left = state.max_steps - state.global_step
            logger.info(f"training {left} steps into {args.output_dir}; a line every {args.logging_steps:.0f} steps")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and ("loss" in logs or "validation/loss" in logs):
            logger.info(progress_line(logs, state.global_step, state.max_steps))
