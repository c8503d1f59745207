"""The small tasks of `benchmarks.tuning`: drawn slides, so that anybody can run them, with held-out images."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from unimedvl.unimed5m.schema import Record, RecordImage, Turn

STAINS = {"pink": (205, 120, 165), "brown": (150, 100, 60)}
SIDES = ("left", "right")
SIZE = 64


@dataclass
class Slide:
    """A drawn slide: pale tissue with cells in one of two stains, and a dark spot in one half."""

    image: Image.Image
    stain: str


def draw_slide(random: np.random.Generator) -> Slide:
    """A slide with stain, side, number and places of the cells drawn independently."""
    stain, side = (str(random.choice(names)) for names in (list(STAINS), SIDES))
    pale = random.integers(225, 246, 3)
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(level) for level in pale))
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(12, 30))):
        x, y, radius = random.uniform(0, SIZE), random.uniform(0, SIZE), random.uniform(2, 5)
        color = np.clip(np.array(STAINS[stain]) + random.normal(0, 12, 3), 0, 255).astype(int)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(color.tolist()))
    center = random.uniform(12, 22) + (SIZE // 2 - 2 if side == "right" else 0)
    height, radius = random.uniform(14, SIZE - 14), random.uniform(7, 10)
    draw.ellipse((center - radius, height - radius, center + radius, height + radius), fill=(35, 25, 45))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), dtype=float)
    pixels = np.clip(pixels + random.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)
    return Slide(Image.fromarray(pixels), stain)


def slides(count: int, seed: int, held_out: bool) -> list[Slide]:
    """Different ones for every seed, and for `held_out`."""
    random = np.random.default_rng([seed, int(held_out)])
    return [draw_slide(random) for _ in range(count)]


def _sft(slide: Slide) -> tuple[str, str, str]:
    other = next(name for name in STAINS if name != slide.stain)
    return "Describe the slide.", f"Cells in {slide.stain}.", f"Cells in {other}."


def _dpo(slide: Slide) -> tuple[str, str, str]:
    other = next(name for name in STAINS if name != slide.stain)
    return "What color is the stain?", f"The stain is {slide.stain}.", f"The stain is {other}."


def _grpo(slide: Slide) -> tuple[str, str, str]:
    right = slide.stain == "brown"
    return "Is there a brown stain?", ("no", "yes")[right], ("yes", "no")[right]


QUESTIONS = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}
"""By method, from a slide: question, right answer, wrong answer."""


def slide_record(method: str, slide: Slide, number: int) -> Record:
    """A slide with the question of a method as a record."""
    question, answer, _ = QUESTIONS[method](slide)
    buffer = io.BytesIO()
    slide.image.save(buffer, "PNG")
    return Record(
        id=f"slide-{number}",
        main_task_type="image_understanding",
        sub_task_type="vqa",
        modality="HIS",
        dataset="drawn-slides",
        input_img=(RecordImage(buffer.getvalue(), f"{number}.png", SIZE, SIZE),),
        output_img=(),
        message=(Turn("human", f"<image>{question}"), Turn("gpt", answer)),
        license="CC0-1.0",
        license_tier="A",
        redistributable="yes",
        provenance="drawn by this benchmark",
        split="train",
        group_id=f"slide-{number}",
    )


TRAINING_PROMPTS = (
    "a chest X-ray.",
    "an MRI scan.",
    "a histopathology image.",
    "an ultrasound image.",
    "Generate a CT scan.",
    "Generate an endoscopy image.",
    "Draw a chest radiograph.",
    "Create an MRI scan of a brain tumor.",
)
HELD_OUT_PROMPTS = (
    "Generate a chest X-ray.",
    "Create an ultrasound image.",
    "a computed tomography image.",
    "Draw a magnetic resonance image.",
    "a microscopy image of tissue.",
    "Synthesize an endoscopy image showing a polyp.",
    "an OCT scan.",
    "a color fundus photograph.",
)


def brightness(images: Sequence[Image.Image], examples: Sequence[Any]) -> list[float]:
    """Mean gray level, in [0, 1]."""
    return [float(np.asarray(image.convert("L")).mean() / 255) for image in images]
