"""Reading the images of record tables, and keeping what shows them out of repositories."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

MAX_PIXELS = 20_000_000
# What Pillow's decoders raise on damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def stored_bytes(source_image: Mapping[str, Any]) -> bytes | None:
    """The encoded file of an image column's entry, None where only its path is stored."""
    image = source_image["image"]
    return None if image is None else image["bytes"]


def images(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a row's input images, then of its output images."""
    return [*(row["input_img"] or []), *(row["output_img"] or [])]


def open_stored_image(data: bytes, mode: str | None = None) -> Image.Image:
    """Decode an image completely, in `mode` if given.

    Raises:
        DAMAGED: one of these where the bytes are no complete image.
    """
    image = Image.open(io.BytesIO(data))
    image.load()
    return image if mode is None else to_mode(image, mode)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert, keeping the order of 16-bit gray levels, which Pillow's own conversion would clip at 255."""
    if image.mode in ("I;16", "I;16B", "I", "F"):
        values = image.convert("F")
        low, high = values.getextrema()
        assert isinstance(low, float) and isinstance(high, float), "mode F has one band"
        scale = 255.0 / (high - low) if high > low else 0.0
        offset = low * scale
        image = values.point(lambda value: value * scale - offset).convert("L")
    return image.convert(mode)
