"""Sources for folders of no particular publisher.

What the files cannot say is in an optional `source.json` in the folder; see `settings.Settings`. Which images
belong to one patient is such a thing: without `"group": "(patient[0-9]+)"` every image file is its own group, and the
slices of a patient come to lie on both sides of a split. A table's column `group` counts before that.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unimedvl.processing.dicom_encodings_unimedvl import HEADER_BYTES, is_dicom
from unimedvl.processing.view_unimedvl import View

from .. import tasks
from ..schema import Record, RecordImage
from ..task_images import RESAMPLING, view_entry
from ..tasks import Origin
from .base import SPLIT_NAMES, Card, Source, split_of, visible
from .generic_tables import (
    caption_row,
    conversation_row,
    label_row,
    question_row,
    report_row,
    table_of,
    thought_row,
)
from .image_names import image_name, same_name
from .readers import MaskPart, MaskSource, PairSource, any_value
from .record_images import IMAGE_SUFFIXES, SeriesReader, file_image, read_levels, read_volume
from .settings import SETTINGS, Settings, read_settings

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")
# What a mask without stated classes shows.
ANY_STRUCTURE = "marked structure"
OURS = "this project's own layout"
# Whose gray levels the setting `window` chooses.
WINDOWED = ("dicom-series", "nifti-volumes")


class GenericUnit(NamedTuple):
    """A unit, with the source that the folder's settings made."""

    source: Source
    unit: Any


@dataclasses.dataclass
class GenericSource(Source):
    """A source whose reader is made for each folder, from its settings."""

    make: Callable[["GenericSource", Settings, Card], Source]

    def fingerprint(self, root: Path | str) -> str:
        files = super().fingerprint(root)
        # Where the settings do not name the data set, the folder's own name does.
        return hashlib.sha256(f"{files} {read_settings(Path(root)).dataset}".encode()).hexdigest()

    def units(self, root: Path) -> Iterator[GenericUnit]:
        settings = read_settings(root)
        card = dataclasses.replace(
            self.card,
            license=settings.license,
            license_tier=settings.license_tier,
            redistributable=settings.redistributable,
            url=settings.url or settings.dataset,
        )
        if settings.window is not None and self.name not in WINDOWED:
            raise ValueError(
                f"{root}: window in the settings is for {' and '.join(WINDOWED)}; leave it out, or convert the images "
                "to 8 bits with the window that you want."
            )
        source = self.make(self, settings, card)
        source.dataset = source.family = settings.dataset
        for unit in source.units(root):
            yield GenericUnit(source, unit)

    def name_of(self, root: Path, unit: GenericUnit) -> str:
        return unit.source.name_of(root, unit.unit)

    def split_of_unit(self, unit: GenericUnit) -> str:
        return unit.source.split_of_unit(unit.unit)

    def records_of(self, root: Path, unit: GenericUnit) -> Iterable[Record]:
        return unit.source.records_of(root, unit.unit)


@dataclasses.dataclass
class LabelFolder(Source):
    """Images in folders named by their label, those perhaps in folders named by their split."""

    settings: Settings

    def units(self, root: Path) -> Iterator[tuple[Path, str, str]]:
        found = False
        for path in visible(root, "**/*"):
            parts = path.relative_to(root).parts
            if path.suffix.lower() in IMAGE_SUFFIXES and len(parts) > 1 and path.is_file():
                found = True
                split = split_of(parts[0]) if len(parts) > 2 and parts[0].lower() in SPLIT_NAMES else ""
                if path.parent.name.lower() in SPLIT_NAMES:
                    raise ValueError(
                        f"{path}: expected {path.parent.name}/LABEL/{path.name}, found no label's folder."
                    )
                yield path, path.parent.name, split
        if not found:
            raise self.wrong_folder(root, "LABEL/*.png or SPLIT/LABEL/*.png")

    def records_of(self, root: Path, unit: tuple[Path, str, str]) -> Iterator[Record]:
        path, label, split = unit
        name = path.relative_to(root).as_posix()
        settings = self.settings
        group = settings.group_of(name) or name
        origin = self.origin(name, group, split, settings.modality, description=settings.description)
        # Names of folders may come decomposed, as macOS writes them.
        yield tasks.diagnosis(origin, file_image(path, root), same_name(label.replace("_", " ")))


def _label_folder(generic: GenericSource, settings: Settings, card: Card) -> Source:
    return LabelFolder(generic.name, card, generic.tasks, settings)


def _has_value(values: tuple[int, ...], levels: np.ndarray) -> np.ndarray:
    return np.isin(levels, values)


def _mask_pairs(generic: GenericSource, settings: Settings, card: Card) -> Source:
    structures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        name: partial(_has_value, tuple(values)) for name, values in settings.classes.items()
    }
    return MaskSource(
        generic.name,
        card,
        generic.tasks,
        ((MaskPart("images/*", "masks/{stem}.*"),),),
        structures or {ANY_STRUCTURE: any_value},
        settings.modality,
        settings.description,
        group=partial(_group_of, settings),
        read=partial(read_levels, known=sorted({value for values in settings.classes.values() for value in values})),
        lone_masks="masks/*",
    )


def _group_of(settings: Settings, path: Path) -> str:
    return settings.group_of(path.as_posix())


def _translated(
    settings: Settings, origin: Origin, image: RecordImage, other: RecordImage, path: Path
) -> Iterator[Record]:
    yield tasks.cross_modal(origin, image, other, settings.origin, settings.target)
    if settings.both_directions:
        yield tasks.cross_modal(origin, other, image, settings.target, settings.origin)


def _image_pairs(generic: GenericSource, settings: Settings, card: Card) -> Source:
    return PairSource(
        generic.name,
        card,
        generic.tasks,
        {"": ("input/*", "target")},
        partial(_translated, settings),
        settings.modality,
        settings.description,
        partial(_group_of, settings),
    )


def _enhanced(origin: Origin, image: RecordImage) -> Iterator[Record]:
    """Super-resolution by both methods; the image's id decides which of them is 2x, the other is 4x."""
    scales = (2, 4) if int(origin.record_id("super_resolution"), 16) % 2 else (4, 2)
    for scale, method in zip(scales, RESAMPLING, strict=True):
        yield tasks.super_resolution(origin, image, scale, method)


@dataclasses.dataclass
class DicomSeries(Source):
    """Folders of DICOM files, one series each: every image and a copy of lower resolution."""

    settings: Settings
    reader: SeriesReader = dataclasses.field(default_factory=SeriesReader)

    def units(self, root: Path) -> Iterator[Path]:
        found = False
        for path in visible(root, "**/*"):
            if path.is_file() and path.name != "DICOMDIR" and _maybe_dicom(path):
                found = True
                yield path
        if not found:
            raise self.wrong_folder(root, "SERIES/*.dcm")

    def records_of(self, root: Path, unit: Path) -> Iterator[Record]:
        name = unit.relative_to(root).as_posix()
        settings = self.settings
        # Only pixels are read: no tag of a patient can get into a record. A series is known by its folder.
        group = settings.group_of(name) or unit.parent.relative_to(root).as_posix()
        for place, image, source, view in self.reader.images(unit, root, View(window=settings.window)):
            extra = {"views": {image.path: view_entry(source, view)}}
            origin = self.origin(place, group, "", settings.modality, description=settings.description, extra=extra)
            yield from _enhanced(origin, image)


def _maybe_dicom(path: Path) -> bool:
    """By its ending, or by its beginning: archives name files by UIDs, whose last number looks like an ending."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as opened:
        return is_dicom(opened.read(HEADER_BYTES))


def _dicom_series(generic: GenericSource, settings: Settings, card: Card) -> Source:
    return DicomSeries(generic.name, card, generic.tasks, settings)


@dataclasses.dataclass
class NiftiFolder(Source):
    """NIfTI volumes: segmentation where `labels/` has one of the same name, else super-resolution, axial slices."""

    settings: Settings

    def units(self, root: Path) -> Iterator[Path]:
        folder = root / "images" if (root / "images").is_dir() else root
        yield from (path for path in self.files(folder, "*.nii*") if path.name.endswith((".nii", ".nii.gz")))

    def records_of(self, root: Path, unit: Path) -> Iterator[Record]:
        settings = self.settings
        view, volume = View(window=settings.window), read_volume(unit)
        labels = root / "labels" / image_name(root / "labels", unit.name)
        masks = read_volume(labels) if labels.is_file() else None
        if masks is not None and masks.voxels.shape != volume.voxels.shape:
            raise ValueError(f"{labels}: expected the shape {volume.voxels.shape}, found {masks.voxels.shape}.")
        stem = unit.name.split(".nii")[0]
        group = settings.group_of(unit.relative_to(root).as_posix()) or stem
        for index in volume.content_slices(view):
            name = f"{stem}#{index}"
            extra = {"views": {name: view_entry(unit.relative_to(root).as_posix(), volume.view(index, view))}}
            origin = self.origin(name, group, "", settings.modality, description=settings.description, extra=extra)
            image = volume.image(index, name, view)
            if masks is None:
                yield from _enhanced(origin, image)
                continue
            for structure, values in (settings.classes or {ANY_STRUCTURE: []}).items():
                inside = masks.marked(index, values)
                if inside.any():
                    yield tasks.segmentation(origin, image, inside, (1,), structure)


def _nifti_folder(generic: GenericSource, settings: Settings, card: Card) -> Source:
    return NiftiFolder(generic.name, card, generic.tasks, settings)


def _generic(
    name: str, title: str, layout: str, made: tuple[str, ...], make: Callable[[GenericSource, Settings, Card], Source]
) -> GenericSource:
    notes = f"License, modality and words come from {SETTINGS}; rows may have split, group, modality, description."
    return GenericSource(
        name, Card(title, "", "yours to state", "C", "unclear", layout, OURS, notes=notes), made, make
    )


_TABLE = "(.csv, .tsv, .json or .jsonl)"
SOURCES: tuple[Source, ...] = (
    _generic(
        "image-folder", "Images in folders by label", "LABEL/*.png or SPLIT/LABEL/*.png", ("diagnosis",), _label_folder
    ),
    _generic(
        "labels",
        "Images with labels in a table",
        f"labels{_TABLE} with image and label",
        ("diagnosis",),
        table_of(label_row, "labels", ("image", "label")),
    ),
    _generic(
        "segmentation-pairs", "Images and masks", "images/ and masks/, same names", ("segmentation",), _mask_pairs
    ),
    _generic("paired-images", "Pairs of images", "input/ and target/, same names", ("cross_modal",), _image_pairs),
    _generic(
        "captions",
        "Images with captions",
        f"captions{_TABLE} with image and caption",
        ("caption", "text_to_image"),
        table_of(caption_row, "captions", ("image", "caption")),
    ),
    _generic(
        "reports",
        "Images with reports",
        f"reports{_TABLE} with image and report",
        ("report",),
        table_of(report_row, "reports", ("image", "report")),
    ),
    _generic(
        "vqa",
        "Questions about images",
        f"vqa{_TABLE} with image, question, answer and perhaps A to E",
        ("vqa",),
        table_of(question_row, "vqa", ("image", "question", "answer")),
    ),
    _generic(
        "reasoning",
        "Chain-of-thought text",
        f"reasoning{_TABLE} with question, reasoning, answer and perhaps image",
        ("reasoning",),
        table_of(thought_row, "reasoning", ("question", "reasoning", "answer")),
    ),
    _generic(
        "conversations",
        "Conversations in LLaVA's layout",
        f"conversations{_TABLE} with image and conversations",
        ("vqa",),
        table_of(conversation_row, "conversations", ("conversations",)),
    ),
    _generic("dicom-series", "DICOM series", "SERIES/*.dcm", ("super_resolution",), _dicom_series),
    _generic(
        "nifti-volumes",
        "NIfTI volumes",
        "*.nii.gz or images/*.nii.gz, and perhaps labels/ with the same names",
        ("super_resolution", "segmentation"),
        _nifti_folder,
    ),
)
