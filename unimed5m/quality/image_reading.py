"""Reading the images of record tables, and keeping what shows them out of repositories."""

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
