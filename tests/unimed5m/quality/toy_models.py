"""Alignment models that know four tints: real answers to the interfaces, with nothing to load."""

from collections.abc import Sequence

import numpy
from PIL import Image

from .toy_records import COLORS


def tint(image: Image.Image) -> str:
    mean = numpy.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1))
    return min(COLORS, key=lambda name: float(numpy.abs(mean - COLORS[name]).sum()))


class ColorCaptioner:
    name = "tints"

    def caption(self, images: Sequence[Image.Image], count: int) -> list[list[str]]:
        return [[f"A field tinted {tint(image)} all over."] + ["A field."] * (count - 1) for image in images]


class WordEncoder:
    name = "words"

    def encode(self, texts: Sequence[str]) -> numpy.ndarray:
        words = sorted({*COLORS, "field", "tinted", "all", "over", "nothing"})
        counts = numpy.array([[float(word in text.lower()) for word in words] for text in texts]) + 1e-3
        return (counts / numpy.linalg.norm(counts, axis=1, keepdims=True)).astype(numpy.float32)


class ColorScorer:
    name = "tints"

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        return numpy.array([1.0 if tint(image) in text else -0.5 for image, text in zip(images, texts, strict=True)])
