"""What must hold of a dataset folder before it leaves for the Hub.

Besides the checks of every folder: the texts of a record are checked like files, and none of its images carries notes
about people.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimedvl.processing.dicom_encodings_unimedvl import HEADER_BYTES, is_dicom
from unimedvl.unimed5m.publish import PUBLISHED, check_published
from unimedvl.unimed5m.shards import batches

from .push_checks import check_card, check_image_notes, check_text, checked_files

IMAGES = ("input_img", "output_img")


def check_dataset(folder: Path) -> list[str]:
    """The files of a dataset that a push would send.

    Args:
        folder: what `unimedvl data publish` wrote.

    Raises:
        ValueError: if it is not whole, or naming what may not travel and where it lies.
    """
    check_published(folder)
    files = checked_files(folder, "a published dataset", PUBLISHED, leave_out=_own_notes(folder))
    check_card(folder, "dataset")
    for name in files:
        if name.endswith(".parquet"):
            _check_records(folder / name, name)
    return files


def _own_notes(folder: Path) -> list[str]:
    """Receipts by which publishing resumes; they stay here."""
    return [path.relative_to(folder).as_posix() for path in (folder / "receipts").rglob("*")]


def _check_records(path: Path, name: str) -> None:
    for batch in batches(path):
        for row in batch.to_pylist():
            where = f"{name}, record {row['id']}"
            for text in texts_of({column: value for column, value in row.items() if column not in IMAGES}):
                check_text(text, where)
            for image in (image for column in IMAGES for image in row.get(column) or []):
                for text in texts_of({key: value for key, value in image.items() if key != "image"}):
                    check_text(text, where)
                if image["image"] is not None:
                    _check_image(image["image"]["bytes"], f"{where}, an image")


def _check_image(content: bytes, where: str) -> None:
    if is_dicom(content[:HEADER_BYTES]):
        raise ValueError(f"{where} is a DICOM file, whose tags may name a patient: build the record anew.")
    check_image_notes(io.BytesIO(content), where)


def texts_of(value: Any) -> Iterator[str]:
    """Every text inside lists and dictionaries, without their keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_of(part)
