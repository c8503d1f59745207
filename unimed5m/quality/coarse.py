"""The coarse filter: image size, text length, decodability.

Paper, section 3.1: keep a record iff the shorter side of its images has 128 pixels or more and its text has 10 to 1024
characters. We take "text" as the record's whole text (every turn, placeholders removed) and add the limits of the
authors' loader: images that decode and have at most 20 million pixels. Damaged images are distinguished from unwanted
ones: they do not decode, or their bytes are not those whose SHA-256 the record holds.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from .image_reading import DAMAGED, MAX_PIXELS, images, stored_bytes
from .record_texts import CAPTION_TASKS, whole_text

UNDECODABLE = "undecodable"
ALTERED = "altered"
# Damage drops a record of any task into quarantine.
DAMAGES = (UNDECODABLE, ALTERED)
TOO_MANY_PIXELS = "too_many_pixels"
ENFORCE = ("captions", "all", "none")


@dataclass(frozen=True)
class Verdict:
    """Why a record fails: a reason of the ledger and, in words, what was found."""

    reason: str
    detail: str


@dataclass(frozen=True)
class CoarseFilter:
    """Measures, for every record, whether the coarse filter keeps it.

    Attributes:
        enforce: whose failures drop a record: "captions" (caption and text-to-image records), "all" or "none".
            Failures elsewhere are reported, and the record is kept. Images that do not decode, or are not the bytes
            that the record was made of, always drop it.
        min_side: pixels of the shorter side of every image.
        min_characters, max_characters: of the whole text.
        max_pixels: of every image.
    """

    enforce: str = "captions"
    min_side: int = 128
    min_characters: int = 10
    max_characters: int = 1024
    max_pixels: int = MAX_PIXELS

    name = "coarse"
    columns: ClassVar[Sequence[str]] = ("id", "dataset", "sub_task_type", "input_img", "output_img", "message")
    schema = pa.schema(
        [("id", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("reported", pa.string())]
    )

    def __post_init__(self) -> None:
        if self.enforce not in ENFORCE:
            raise ValueError(f"expected enforce to be one of {', '.join(ENFORCE)}, found {self.enforce!r}.")

    def settings(self) -> Mapping[str, Any]:
        """All limits, JSON-safe."""
        return dict(self.__dict__)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for row in table.to_pylist():
            verdict = self.judge(row)
            result = {"id": row["id"], "reason": None, "detail": None, "reported": None}
            if verdict is not None:
                drops = verdict.reason in DAMAGES or self.enforces(row)
                result["reason" if drops else "reported"] = verdict.reason
                result["detail"] = verdict.detail
            rows.append(result)
        return pa.Table.from_pylist(rows, schema=self.schema)

    def enforces(self, row: Mapping[str, Any]) -> bool:
        """Whether a failure drops this record, by its task."""
        return self.enforce == "all" or (self.enforce == "captions" and row["sub_task_type"] in CAPTION_TASKS)

    def judge(self, row: Mapping[str, Any]) -> Verdict | None:
        """Why a record fails, None where it passes. Damage is looked for in every image before sizes are judged."""
        sizes = []
        for number, source_image in enumerate(images(row)):
            data = stored_bytes(source_image)
            if data is None:
                if source_image["width"] and source_image["height"]:
                    sizes.append((source_image["width"], source_image["height"]))
                continue
            try:
                image = Image.open(io.BytesIO(data))
                # The header states the size: an oversized image is never decoded.
                if image.width * image.height <= self.max_pixels:
                    image.load()
            except Image.DecompressionBombError:
                return Verdict(TOO_MANY_PIXELS, f"image {number}: more than {self.max_pixels}")
            except DAMAGED as error:
                return Verdict(UNDECODABLE, f"image {number}: {_damage(error)}")
            # Many a JPEG with wrong bytes decodes, to another image.
            if source_image["sha256"] and hashlib.sha256(data).hexdigest() != source_image["sha256"]:
                return Verdict(ALTERED, f"image {number}: the bytes are not those of the record's SHA-256")
            sizes.append(image.size)
        for number, (width, height) in enumerate(sizes):
            if width * height > self.max_pixels:
                return Verdict(TOO_MANY_PIXELS, f"image {number}: {width}x{height} > {self.max_pixels}")
            if min(width, height) < self.min_side:
                return Verdict("too_small", f"image {number}: {width}x{height}, shorter side < {self.min_side}")
        length = len(whole_text(row["message"]))
        if length < self.min_characters:
            return Verdict("text_too_short", f"{length} < {self.min_characters} characters")
        if length > self.max_characters:
            return Verdict("text_too_long", f"{length} > {self.max_characters} characters")
        return None


def _damage(error: Exception) -> str:
    """What is wrong with a file, in our words: Pillow's may quote the file, which may name a patient."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    if isinstance(error, EOFError) or "truncated" in str(error):
        return "the file is cut short"
    return f"damaged ({type(error).__name__})"
