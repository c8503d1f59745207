"""Folders of DICOM files as the slices of one series."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .dicom_encodings_unimedvl import (
    DEFLATED,
    DEFLATED_TRANSFER_SYNTAX,
    HEADER_BYTES,
    dicom_libraries,
    is_dicom,
    transfer_syntax,
)
from .dicom_unimedvl import DicomFile, counted_range
from .pixel_windows_unimedvl import check_volume_size, checked_index, no_patient_text
from .view_unimedvl import View

# What puts the files of a folder in order; compared and counted, never shown.
SERIES_TAGS = [
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "SeriesInstanceUID",
]


class DicomSeries:
    """A folder of DICOM files of one series, one slice each, in the order in which they lie in the patient.

    Slices count from the patient's left, posterior or inferior end, as those of NIfTI volumes do. Where positions are
    missing or repeated the instance numbers give the order, else the names of the files.

    Args:
        folder: the files lie directly in it.

    Attributes:
        paths: the files in order.

    Raises:
        ValueError: one sentence that quotes no tag, for a folder without DICOM images or with several series.
    """

    def __init__(self, folder: str | os.PathLike):
        pydicom, _ = dicom_libraries()
        heads = []
        for path in dicom_paths(folder):
            try:
                with no_patient_text(), path.open("rb") as stream:
                    if transfer_syntax(stream, pydicom) == DEFLATED_TRANSFER_SYNTAX:
                        raise ValueError(DEFLATED)
                    head = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=SERIES_TAGS)
                    described = _SliceHead.of(head, path) if "Rows" in head and "Columns" in head else None
            except Exception:
                raise ValueError(f"{path.name!r} in the folder of DICOM files can not be read: remove it.") from None
            if described is not None:
                heads.append(described)
        if not heads:
            raise ValueError(f"{os.fspath(folder)!r} holds DICOM files but no image: pass the folder of one series.")
        if len({(head.series, head.size) for head in heads}) > 1 or any(head.frames > 1 for head in heads):
            raise ValueError(
                f"{os.fspath(folder)!r} is a directory of more than one DICOM series, or of files with several frames:"
                " pass one of its files."
            )
        self.paths = [head.path for head in _ordered(heads)]
        self._values_per_slice = heads[0].size[0] * heads[0].size[1]
        self._ranges: dict[tuple[float, float], tuple[float, float]] = {}

    def image(self, view: View) -> Image.Image:
        """One slice, the middle one by default, as `DicomFile` shows it.

        Raises:
            ValueError: one sentence that quotes no tag, for a slice that does not exist or can not be decoded.
        """
        if view.plane is not None or view.frame is not None:
            raise ValueError("A slice of a DICOM series is chosen by slice_index alone: leave out plane and frame.")
        index = checked_index(view.slice_index, len(self.paths), "slice_index", default=len(self.paths) // 2)
        return self._file(index).image(view, self.black_white)

    def black_white(self, view: View) -> tuple[float, float]:
        """Count all slices for the values that their percentiles make black and white.

        Raises:
            ValueError: one sentence, for damaged files or too many values.
        """
        if view.percentiles not in self._ranges:
            check_volume_size(len(self.paths) * self._values_per_slice, view.max_values)
            files = (self._file(index) for index in range(len(self.paths)))
            frames = (frame for file in files for frame in file.counted_values(view))
            self._ranges[view.percentiles] = counted_range(frames, view)
        return self._ranges[view.percentiles]

    def _file(self, index: int) -> DicomFile:
        with self.paths[index].open("rb") as stream:
            return DicomFile(stream)


class _SliceHead(NamedTuple):
    """What decides about a file's place in its series. None of it is ever shown."""

    path: Path
    series: str
    size: tuple[int, int]
    frames: int
    number: int | None
    place: float | None

    @classmethod
    def of(cls, head: Any, path: Path) -> "_SliceHead":
        number = head.get("InstanceNumber")
        place = None
        if head.get("ImagePositionPatient") and head.get("ImageOrientationPatient"):
            rows, columns = np.array(head.ImageOrientationPatient, dtype=float).reshape(2, 3)
            # DICOM counts towards the patient's left and back, slices count from there.
            normal = np.cross(rows, columns) * (-1, -1, 1)
            position = np.array(head.ImagePositionPatient, dtype=float) * (-1, -1, 1)
            place = float(normal @ position * np.sign(normal[np.abs(normal).argmax()]))
        return cls(
            path,
            str(head.get("SeriesInstanceUID", "")),
            (int(head.Columns), int(head.Rows)),
            int(head.get("NumberOfFrames") or 1),
            None if number is None else int(number),
            place,
        )


def _ordered(heads: list[_SliceHead]) -> list[_SliceHead]:
    """Heads by position if every one has its own, else by instance number if every one has its own, else as given."""
    for name in ("place", "number"):
        values = [getattr(head, name) for head in heads]
        if None not in values and len(set(values)) == len(values):
            return sorted(heads, key=lambda head: getattr(head, name))
    return heads


def dicom_paths(folder: str | os.PathLike) -> list[Path]:
    """The DICOM files directly in a folder, by name, without directories of media.

    Raises:
        ValueError: one sentence, for a folder or a file in it that can not be opened.
    """
    found = []
    try:
        for path in sorted(Path(folder).iterdir()):
            if path.is_file() and path.name != "DICOMDIR":
                with path.open("rb") as stream:
                    if is_dicom(stream.read(HEADER_BYTES)):
                        found.append(path)
    except OSError as error:
        place = os.fspath(error.filename or folder)
        raise ValueError(f"{place!r} can not be opened ({error.strerror}): check its permissions.") from None
    return found
