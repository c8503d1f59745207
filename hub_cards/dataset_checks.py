"""What must hold of a dataset folder before it leaves for the Hub: besides the checks of every folder, no image inside
a record carries notes about people."""

import io
from pathlib import Path

from unimedvl.processing.dicom_encodings_unimedvl import HEADER_BYTES, is_dicom
from unimedvl.unimed5m.publish import PUBLISHED, check_published
from unimedvl.unimed5m.shards import batches

from .push_checks import check_card, check_image_notes, checked_files

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
            _check_images(folder / name, name)
    return files


def _own_notes(folder: Path) -> list[str]:
    """Receipts by which publishing resumes; they stay here."""
    return [path.relative_to(folder).as_posix() for path in (folder / "receipts").rglob("*")]


def _check_images(path: Path, name: str) -> None:
    for batch in batches(path):
        columns = [column for column in IMAGES if column in batch.column_names]
        for row in batch.select(["id", *columns]).to_pylist():
            for image in (image for column in columns for image in row[column] or []):
                if image["image"] is None:
                    continue
                content, where = image["image"]["bytes"], f"{name}, record {row['id']}, an image"
                if is_dicom(content[:HEADER_BYTES]):
                    raise ValueError(f"{where} is a DICOM file, whose tags may name a patient: build the record anew.")
                check_image_notes(io.BytesIO(content), where)
