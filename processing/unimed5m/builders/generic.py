"""Sources for folders of no particular publisher.

What the files can not tell stands in an optional `source.json` in the folder; see `settings.Settings`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import tasks
from ..schema import MODALITIES, Picture, Record
from ..tasks import Origin
from .base import SPLIT_NAMES, Card, Source, split_of
from .conversations import captioned, choice, llava_rows
from .images import PICTURE_SUFFIXES, file_picture, named_picture, read_volume
from .readers import SUPER_RESOLUTION, Channel, MaskPart, MaskSource, PairSource, TableRow, TableSource, any_value
from .settings import SETTINGS, Settings, read_settings

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")
OURS = "this project's own layout"


class GenericUnit(NamedTuple):
    """A unit, with the source that the folder's settings made."""

    source: Source
    unit: Any


@dataclasses.dataclass
class GenericSource(Source):
    """A source whose reader is made for each folder, from its settings."""

    make: Callable[["GenericSource", Settings, Card], Source]

    def units(self, root: Path) -> Iterator[GenericUnit]:
        settings = read_settings(root)
        card = dataclasses.replace(
            self.card,
            license=settings.license,
            license_tier=settings.license_tier,
            redistributable=settings.redistributable,
            url=settings.url or settings.dataset,
        )
        source = self.make(self, settings, card)
        source.dataset = source.family = settings.dataset
        for unit in source.units(root):
            yield GenericUnit(source, unit)

    def split_of_unit(self, unit: GenericUnit) -> str:
        return unit.source.split_of_unit(unit.unit)

    def records_of(self, root: Path, unit: GenericUnit) -> Iterable[Record]:
        return unit.source.records_of(root, unit.unit)


def _row_origin(source: Source, unit: TableRow, settings: Settings, name: str, *used: str) -> Origin:
    """The origin of a row with our column names: image, split, group, modality, description and its texts."""
    row = unit.row
    if row.get("split") and str(row["split"]).strip().lower() not in SPLIT_NAMES:
        raise _wrong_cell(unit, "split", f"one of {', '.join(sorted(SPLIT_NAMES))}")
    if row.get("modality") and row["modality"] not in MODALITIES:
        raise _wrong_cell(unit, "modality", f"one of {', '.join(MODALITIES)}")
    extra = {key: value for key, value in row.items() if value not in ("", None) and key not in (*used, *_COLUMNS)}
    return source.origin(
        f"{unit.table.stem}#{unit.position}",
        str(row.get("group") or name or unit.position),
        split_of(row["split"]) if row.get("split") else "",
        row.get("modality") or (settings.modality if name else "TEXT"),
        name or f"{unit.table.name}#{unit.position}",
        description=row.get("description") or settings.description,
        extra=extra,
    )


def _wrong_cell(unit: TableRow, name: str, expected: str) -> ValueError:
    found = unit.row.get(name)
    return ValueError(f"{unit.table.name}: row {unit.position + 1}: {name}: expected {expected}, found {found!r}.")


_COLUMNS = ("image", "split", "group", "modality", "description")


def _caption_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    origin = _row_origin(source, unit, settings, unit.row["image"], "caption")
    yield from captioned(source, origin, [named_picture(folder, unit.row["image"])], unit.row["caption"])


def _report_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    origin = _row_origin(source, unit, settings, unit.row["image"], "report")
    yield tasks.report(origin, [named_picture(folder, unit.row["image"])], unit.row["report"])


def _label_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    origin = _row_origin(source, unit, settings, unit.row["image"], "label")
    yield tasks.diagnosis(origin, named_picture(folder, unit.row["image"]), unit.row["label"])


def _question_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    origin = _row_origin(source, unit, settings, row["image"], "question", "answer", *"ABCDE")
    pictures = [named_picture(folder, row["image"])]
    options = [row[letter] for letter in "ABCDE" if row.get(letter)]
    yield choice(origin, pictures, row["question"], options, str(row["answer"]))


def _thought_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = row.get("image") or ""
    origin = _row_origin(source, unit, settings, name, "question", "reasoning", "answer")
    pictures = [named_picture(folder, name)] if name else []
    yield tasks.reasoning(origin, pictures, row["question"], row["reasoning"], str(row["answer"]))


def _table(
    read: Callable[..., Iterator[Record]], stem: str, needs: tuple[str, ...], images: tuple[str, ...] = (".",)
) -> Callable[[GenericSource, Settings, Card], Source]:
    return partial(_make_table, read, stem, needs, images)


def _make_table(
    read: Callable[..., Iterator[Record]],
    stem: str,
    needs: tuple[str, ...],
    images: tuple[str, ...],
    generic: GenericSource,
    settings: Settings,
    card: Card,
) -> Source:
    patterns = [f"{stem}.{suffix}" for suffix in ("csv", "tsv", "json", "jsonl")]
    return TableSource(
        name=generic.name,
        card=card,
        tasks=generic.tasks,
        tables=dict.fromkeys(patterns, ""),
        needs=needs,
        images=images,
        read=partial(_checked_row, read, settings, needs),
    )


def _checked_row(
    read: Callable[..., Iterator[Record]],
    settings: Settings,
    needs: tuple[str, ...],
    source: TableSource,
    folder: Path,
    unit: TableRow,
) -> Iterator[Record]:
    """The records of a row whose needed cells hold something."""
    for name in needs:
        value = unit.row.get(name)
        wrong = not value.strip() if isinstance(value, str) else name not in ("answer", "conversations")
        if wrong or value is None:
            raise _wrong_cell(unit, name, "a text")
    yield from read(settings, source, folder, unit)


def _conversation_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    yield from llava_rows(source, folder, unit)


@dataclasses.dataclass
class LabelFolder(Source):
    """Images in folders named by their label, those perhaps in folders named by their split."""

    settings: Settings

    def units(self, root: Path) -> Iterator[tuple[Path, str, str]]:
        found = False
        for path in sorted(root.glob("**/*")):
            parts = path.relative_to(root).parts
            if path.suffix.lower() in PICTURE_SUFFIXES and len(parts) > 1 and path.is_file():
                found = True
                split = split_of(parts[0]) if len(parts) > 2 and parts[0].lower() in SPLIT_NAMES else ""
                yield path, path.parent.name, split
        if not found:
            raise self.wrong_folder(root, "LABEL/*.png or SPLIT/LABEL/*.png")

    def records_of(self, root: Path, unit: tuple[Path, str, str]) -> Iterator[Record]:
        path, label, split = unit
        name = path.relative_to(root).as_posix()
        settings = self.settings
        origin = self.origin(name, name, split, settings.modality, description=settings.description)
        yield tasks.diagnosis(origin, file_picture(path, root), label.replace("_", " "))


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
        structures or {"marked structure": any_value},
        settings.modality,
        settings.description,
        lone_masks="masks/*",
    )


def _translated(settings: Settings, origin: Origin, picture: Picture, other: Picture, path: Path) -> Record:
    return tasks.cross_modal(origin, picture, other, settings.origin, settings.target)


def _image_pairs(generic: GenericSource, settings: Settings, card: Card) -> Source:
    return PairSource(
        generic.name,
        card,
        generic.tasks,
        {"": ("input/*", "target")},
        partial(_translated, settings),
        settings.modality,
        settings.description,
    )


@dataclasses.dataclass
class DicomSeries(Source):
    """Folders of DICOM files, one series each: every image and a copy of lower resolution."""

    settings: Settings

    def units(self, root: Path) -> Iterator[Path]:
        found = False
        for path in sorted(root.glob("**/*")):
            if path.is_file() and path.suffix.lower() in DICOM_SUFFIXES and path.name != "DICOMDIR":
                found = True
                yield path
        if not found:
            raise self.wrong_folder(root, "SERIES/*.dcm")

    def records_of(self, root: Path, unit: Path) -> Iterator[Record]:
        name = unit.relative_to(root).as_posix()
        settings = self.settings
        # Only pixels are read: no tag of a patient can get into a record. A series is known by its folder.
        origin = self.origin(
            name, unit.parent.relative_to(root).as_posix(), "", settings.modality, description=settings.description
        )
        picture = file_picture(unit, root, settings.window)
        for scale, method in SUPER_RESOLUTION:
            yield tasks.super_resolution(origin, picture, scale, method)


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
        scan = Channel(unit.name, settings.description, settings.modality, settings.window)
        volume = read_volume(unit)
        levels = volume.levels(scan.window)
        labels = root / "labels" / unit.name
        masks = read_volume(labels) if labels.is_file() else None
        if masks is not None and masks.voxels.shape != volume.voxels.shape:
            raise ValueError(f"{labels}: expected the shape {volume.voxels.shape}, found {masks.voxels.shape}.")
        stem = unit.name.split(".nii")[0]
        for index in volume.content_slices(levels):
            name = f"{stem}#{index}"
            origin = self.origin(name, stem, "", scan.modality, description=scan.description)
            picture = volume.picture(index, levels, name)
            if masks is None:
                for scale, method in SUPER_RESOLUTION:
                    yield tasks.super_resolution(origin, picture, scale, method)
                continue
            classes = masks.classes(index)
            named = settings.classes or {"marked structure": list(range(1, 256))}
            for structure, values in named.items():
                if np.isin(classes, values).any():
                    yield tasks.segmentation(origin, picture, classes, values, structure)


def _nifti_folder(generic: GenericSource, settings: Settings, card: Card) -> Source:
    return NiftiFolder(generic.name, card, generic.tasks, settings)


def _generic(
    name: str, title: str, layout: str, made: tuple[str, ...], make: Callable[[GenericSource, Settings, Card], Source]
) -> GenericSource:
    notes = f"Licence, modality and words come from {SETTINGS}; rows may have split, group, modality, description."
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
        _table(_label_row, "labels", ("image", "label")),
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
        _table(_caption_row, "captions", ("image", "caption")),
    ),
    _generic(
        "reports",
        "Images with reports",
        f"reports{_TABLE} with image and report",
        ("report",),
        _table(_report_row, "reports", ("image", "report")),
    ),
    _generic(
        "vqa",
        "Questions about images",
        f"vqa{_TABLE} with image, question, answer and perhaps A to E",
        ("vqa",),
        _table(_question_row, "vqa", ("image", "question", "answer")),
    ),
    _generic(
        "reasoning",
        "Chain-of-thought text",
        f"reasoning{_TABLE} with question, reasoning, answer and perhaps image",
        ("reasoning",),
        _table(_thought_row, "reasoning", ("question", "reasoning", "answer")),
    ),
    _generic(
        "conversations",
        "Conversations in LLaVA's layout",
        f"conversations{_TABLE} with image and conversations",
        ("vqa",),
        _table(_conversation_row, "conversations", ("conversations",)),
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
