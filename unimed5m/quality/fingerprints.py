"""What is compared to find duplicates and leakage: a perceptual hash and a thumbnail per image, a hash per text."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import imagehash
import numpy
import pyarrow as pa
from PIL import Image

from ..task_images import open_stored_image
from .image_reading import images, stored_bytes
from .record_texts import normalized_text

THUMBNAIL_SIDE = 16
# Masks and blank images have few gray levels; their hashes say nothing about who is depicted.
MIN_GRAY_LEVELS = 32


def perceptual_hash(image: Image.Image) -> int:
    """The 64-bit DCT hash of an image, its first bit (the constant term, which only says "not dark") being the top."""
    bits = imagehash.phash(image).hash.flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def thumbnail(image: Image.Image) -> bytes:
    """The image as 16x16 gray bytes."""
    return image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()


def is_distinctive(image: Image.Image) -> bool:
    """Whether the image has gray levels enough for its hash to identify it (`MIN_GRAY_LEVELS`)."""
    levels = numpy.bincount(numpy.asarray(image.convert("L")).ravel(), minlength=256)
    return int((levels > 0).sum()) >= MIN_GRAY_LEVELS


def short_digest(data: bytes) -> int:
    """A 64-bit digest of bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Fingerprints:
    """Measures the fingerprints of records: all distinctive images (masks and damaged images are left out) and the
    text.
    """

    name = "fingerprints"
    columns: ClassVar[Sequence[str]] = (
        "id", "dataset", "split", "group_id", "content_hash", "input_img", "output_img", "message",
    )  # fmt: skip
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("dataset", pa.string()),
            ("split", pa.string()),
            ("group_id", pa.string()),
            ("content_hash", pa.string()),
            ("text", pa.uint64()),
            ("hashes", pa.list_(pa.uint64())),
            ("thumbnails", pa.list_(pa.binary(THUMBNAIL_SIDE**2))),
        ]
    )

    def settings(self) -> Mapping[str, Any]:
        """What the fingerprints depend on, JSON-safe."""
        return {"side": THUMBNAIL_SIDE, "levels": MIN_GRAY_LEVELS, "imagehash": imagehash.__version__}

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for row in table.to_pylist():
            hashes, thumbnails = [], []
            for source_image in images(row):
                data = stored_bytes(source_image)
                if data is None:
                    continue
                try:
                    image = open_stored_image(data).convert("L")
                except ValueError:
                    # The coarse filter gives the reason; here the record only has one image less to compare.
                    continue
                if is_distinctive(image):
                    hashes.append(perceptual_hash(image))
                    thumbnails.append(thumbnail(image))
            rows.append(
                {
                    **{key: row[key] for key in ("id", "dataset", "split", "group_id", "content_hash")},
                    "text": short_digest(normalized_text(row["message"]).encode()),
                    "hashes": hashes,
                    "thumbnails": thumbnails,
                }
            )
        return pa.Table.from_pylist(rows, schema=self.schema)
