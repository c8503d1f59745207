"""Counts of what the model does for an image, a token and a training step.

    python -m benchmarks.counts

Prints operations, megabytes allocated, GFLOP and synchronizations, as `benchmarks.operations` defines them, at the
size of `benchmarks.reference_size`. They repeat exactly: nothing here is timed.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from unimedvl.utils.command_line import run_module

from .gpu.architecture import prompt
from .operations import Counts, OperationCounter
from .reference_size import DEVICE, image_prompt, reference_model, training_pack

ALWAYS_GUIDED = {"cfg_interval": (0.0, 1.0)}
# Warm-up updates or tokens before the one that is counted.
BEFORE = 2


def guided_update(model: Any, side: int, edited: bool = False, images: int = 1) -> Counts:
    """One guided update of images of `side` pixels, from a text or of an image that is edited."""
    seen: list[Counts] = []
    with OperationCounter() as counter:
        model.generate(
            **image_prompt(model.config, side, edited),
            generation_mode="image",
            preset="edit" if edited else "t2i",
            height=side,
            width=side,
            num_images_per_prompt=images,
            num_inference_steps=BEFORE + 1,
            callback_on_step_end=lambda *step: seen.append(counter.snapshot()),
            show_progress=False,
            **ALWAYS_GUIDED,
        )
    return seen[-1] - seen[-2]


def decoded_token(model: Any, context: int, rows: int = 1) -> Counts:
    """One token of greedy decoding after `context` tokens, with all that `generate` does for it."""
    seen: list[Counts] = []
    with OperationCounter() as counter:
        hook = model.register_forward_pre_hook(lambda *call: seen.append(counter.snapshot()))
        try:
            model.generate(
                **prompt(model.config, DEVICE, context - BEFORE - 2, rows=rows),
                do_sample=False,
                max_new_tokens=BEFORE + 2,
                eos_token_id=-1,
            )
        finally:
            hook.remove()
    return seen[-1] - seen[-2]


def training_step(model: Any, pack: dict[str, Any] | None = None) -> Counts:
    """Forward and backward of a pack."""
    batch = training_pack(model.config) if pack is None else pack
    training = model.training
    model.train()
    with OperationCounter() as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    model.train(training)
    return counter.snapshot()


def measure(model: Any) -> dict[str, dict[str, Any]]:
    """All counts."""
    cases: dict[str, Callable[[], Counts]] = {
        "text to image, guided update, 256 pixels": lambda: guided_update(model, 256),
        "edit, guided update, 256 pixels": lambda: guided_update(model, 256, edited=True),
        "decoded token, context 64": lambda: decoded_token(model, 64),
        "decoded token, context 2048": lambda: decoded_token(model, 2048),
        "training step, 2908 tokens in 6 samples": lambda: training_step(model),
    }
    return {name: case().summary() for name, case in cases.items()}


def main() -> None:
    model = reference_model()
    for name, counts in measure(model).items():
        print(name, json.dumps(counts), flush=True)


if __name__ == "__main__":
    sys.exit(run_module(main))
