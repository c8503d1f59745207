"""The shipped checkpoint exported as a diffusers pipeline draws the images of `generate`, where this package is not.

    python -m benchmarks.engines.diffusers_card PYTHON

PYTHON is an interpreter with diffusers, such as this package's own: the process that draws cannot import the package.
"""

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.checkpoint.conversations import person_turn, typed_inputs
from unimedvl.hub_cards.diffusers_export import export_pipeline

from .environments import CHECKPOINT, ROOT, Ran, check_and_write, run

PROGRAM = ROOT / "benchmarks" / "engines" / "diffusers_process.py"
SIZE = 32
STEPS = 4
# What is asked of both: the arguments of the pipeline's call.
CALLS: dict[str, dict[str, Any]] = {
    "text to image": {"prompt": "a chest X-ray", "preset": "t2i", "height": SIZE, "width": SIZE},
    "image to image": {"prompt": "Sharpen this image", "preset": "super_resolution"},
}


def write_image(folder: Path) -> Path:
    """A small image of gray levels."""
    path = folder / "image.png"
    Image.linear_gradient("L").resize((40, 28)).convert("RGB").save(path)
    return path


def own_images(image: Path) -> dict[str, Image.Image]:
    """What `generate` draws."""
    processor = UniMedVLProcessor.from_pretrained(CHECKPOINT)
    model = UniMedVLForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    found = {}
    for name, call in CALLS.items():
        turn = person_turn(call["prompt"], [str(image)] if name == "image to image" else [])
        inputs: Any = typed_inputs(processor, [turn], generation_mode="image")
        pixels = model.generate(
            **inputs,
            **{option: value for option, value in call.items() if option != "prompt"},
            generation_mode="image",
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            show_progress=False,
        )
        (found[name],) = processor.post_process_multimodal_output(pixels, generation_mode="image")
    return found


def difference(one: Image.Image, other: Image.Image) -> float:
    """The largest difference of two images in gray levels; infinite where their sizes differ."""
    if one.size != other.size:
        return float("inf")
    return float(numpy.abs(numpy.asarray(one, dtype=float) - numpy.asarray(other, dtype=float)).max())


def checked(python: str, folder: Path) -> tuple[dict[str, Any], bool, Ran]:
    """The figures, whether all pixels are equal, and the command that drew them.

    Args:
        python: an interpreter with diffusers.
        folder: receives everything, an existing folder.
    """
    image = write_image(folder)
    export_pipeline(CHECKPOINT, folder / "pipeline")
    calls = {name: {**call, "num_inference_steps": STEPS} for name, call in CALLS.items()}
    calls["image to image"]["image"] = str(image)
    (folder / "job.json").write_text(json.dumps(calls), encoding="utf-8")
    words = ["-I", str(PROGRAM), str(folder / "pipeline"), str(folder / "job.json")]
    done = run(python, words, folder / "work", path=())
    own = own_images(image)
    figure: dict[str, Any] = {}
    for name, made in own.items():
        with Image.open(folder / f"{name}.png") as theirs:
            figure[name] = {"size": list(theirs.size), "largest difference, gray levels": difference(made, theirs)}
    figure["images differ from each other"] = difference(*own.values()) > 1
    # The order of additions depends on where tensors lie in memory, so a value next to a half may round the other way.
    right = figure["images differ from each other"] and all(
        figure[name]["largest difference, gray levels"] <= 1 for name in CALLS
    )
    return figure, right, done


if __name__ == "__main__":
    check_and_write("diffusers", "diffusers_card", "an interpreter with diffusers", __doc__, checked)
