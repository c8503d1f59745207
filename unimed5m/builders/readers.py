"""The walks over folders that all sources share: tables with images, masks, image pairs and volumes."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unimedvl.processing.view_unimedvl import View

from .. import tasks
from ..schema import SPLITS, Record, RecordImage
from ..task_images import view_entry
from ..tasks import Origin
from .base import LeftOut, Source, visible
from .image_names import image_name, same_name
from .record_images import IMAGE_SUFFIXES, Volume, file_image, read_levels, read_volume
from .tables import Row, columns, rows

# What super-resolution records are made of a slice: the scale of the paper, as images and as scanners lose detail.
SUPER_RESOLUTION = ((4, "bicubic"), (4, "k-space"))


class TableRow(NamedTuple):
    """A unit of a `TableSource`: a row, the place it has in its table, its split and that of its group."""

    table: Path
    position: int
    row: Row
    split: str
    held_by: str = ""


@dataclasses.dataclass
class TableSource(Source):
    """A table (or several) whose rows name images and texts.

    Attributes:
        tables: pattern of the tables below the folder -> their split ("" where a column or the group says it). Every
            pattern that matches is read; at least one must match.
        needs: columns that the first row of a table must have.
        images: alternatives for the folder that the rows' image names start from; () for text.
        read: the records of a row, called as read(source, image folder, unit).
        needs_files: other paths that the folder must have.
        first_only: read only the first pattern that matches, where a set is published in two forms.
        row_split: the split of a row, where its table does not say.
        row_group: the group of a row, where the publisher's splits share groups. Rows of training and validation
            whose group is also in the test split, and rows of training whose group is in validation, are left out:
            the publisher's test split stays whole.
    """

    tables: Mapping[str, str]
    needs: tuple[str, ...]
    images: tuple[str, ...]
    read: Callable[["TableSource", Path, TableRow], Iterable[Record]]
    needs_files: tuple[str, ...] = ()
    first_only: bool = False
    row_split: Callable[[Row], str] | None = None
    row_group: Callable[[Row], str] | None = None

    def units(self, root: Path) -> Iterator[TableRow]:
        if self.images:
            self.need(root, *self.images)
        for name in self.needs_files:
            self.need(root, name)
        held: dict[str, str] = {}
        if self.row_group is not None:
            # From train to test, so that the strictest split a group is in comes last and stays.
            for wanted in SPLITS[1:]:
                held |= {self.row_group(unit.row): wanted for unit in self._rows(root) if unit.split == wanted}
        for unit in self._rows(root):
            yield unit._replace(held_by=held.get(self.row_group(unit.row), "")) if self.row_group else unit

    def _rows(self, root: Path) -> Iterator[TableRow]:
        found: list[str] = []
        empty = True
        for pattern, split in self.tables.items():
            if found and self.first_only:
                break
            for table in visible(root, pattern):
                found.append(table.name)
                for position, row in enumerate(self.rows_of(table)):
                    empty = False
                    if position == 0:
                        columns(row, table, *self.needs)
                    yield TableRow(table, position, row, self.row_split(row) if self.row_split else split)
        if not found:
            raise self.wrong_folder(root, " or ".join(self.tables))
        if empty:
            raise ValueError(f"{self.name}: expected rows in {', '.join(found)} in {root}, found none.")

    def rows_of(self, table: Path) -> Iterator[Row]:
        """The rows of a table, columns as `read` knows them."""
        return rows(table)

    def name_of(self, root: Path, unit: TableRow) -> str:
        """The row's own id, else its table and place, from 0, as `original_id` has it."""
        stated = unit.row.get("id")
        named = isinstance(stated, str | int) and not isinstance(stated, bool) and str(stated).strip()
        return str(stated) if named else f"{unit.table.stem}#{unit.position}"

    def split_of_unit(self, unit: TableRow) -> str:
        return unit.split

    def records_of(self, root: Path, unit: TableRow) -> Iterator[Record]:
        if unit.held_by and unit.held_by != unit.split:
            raise LeftOut(
                f"{unit.table.name}: row {unit.position + 1} of {unit.split} shows what {unit.held_by} shows as well."
            )
        try:
            yield from self.read(self, self.need(root, *self.images) if self.images else root, unit)
        # A row without a column, or with nothing where a text or a list belongs.
        except UnicodeEncodeError as error:
            place = f"{unit.table.name}: row {unit.position + 1}"
            raise ValueError(f"{place}: expected text that UTF-8 can hold, found a problem: {error}.") from error
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{unit.table}: expected row {unit.position + 1} to be like the first, found a problem: {error!r}."
            ) from error


class MaskPart(NamedTuple):
    """A part of a `MaskSource`.

    Attributes:
        images: pattern of the image files below the folder.
        masks: path of the mask, relative to the folder, with `{stem}`, `{parent}` (name of the image's folder) and
            `*` for what varies; several files (BUSI) are united.
        split: of the part; "" divides by group.
        skip: regular expression of file names in the same folder that are no images.
    """

    images: str
    masks: str
    split: str = ""
    skip: str = ""


@dataclasses.dataclass
class MaskSource(Source):
    """Images with masks in files of their own.

    Attributes:
        parts: alternatives of the whole layout; the first whose first pattern matches is read.
        structures: name of a structure -> which of the mask's stored values belong to it.
        modality, description: of all images.
        group: the group of an image's path below the folder; every image is its own by default ("" as well).
        extra: values for the record's `extra`, from the image's path.
        read: the stored values of a mask file.
        lone_masks: pattern of the masks, where one without an image of its name is an error.
    """

    parts: tuple[tuple[MaskPart, ...], ...]
    structures: Mapping[str, Callable[[np.ndarray], np.ndarray]]
    modality: str
    description: str
    group: Callable[[Path], str] | None = None
    extra: Callable[[Path], dict[str, Any]] | None = None
    read: Callable[[Path], np.ndarray] = read_levels
    lone_masks: str = ""

    def units(self, root: Path) -> Iterator[tuple[Path, MaskPart]]:
        for alternative in self.parts:
            if not visible(root, alternative[0].images):
                continue
            for part in alternative:
                # Mirrors leave the smaller splits out; the first part is the one that must be there.
                for path in (path for path in visible(root, part.images) if path.suffix.lower() in IMAGE_SUFFIXES):
                    if not (part.skip and re.search(part.skip, path.name)):
                        yield path, part
            if self.lone_masks:
                folder = (root / alternative[0].images).parent
                known = {same_name(path.stem) for path in visible(root, alternative[0].images)}
                for mask in visible(root, self.lone_masks):
                    if same_name(mask.stem) not in known:
                        yield folder / mask.name, alternative[0]
            return
        raise self.wrong_folder(root, " or ".join(alternative[0].images for alternative in self.parts))

    def split_of_unit(self, unit: tuple[Path, MaskPart]) -> str:
        return unit[1].split

    def records_of(self, root: Path, unit: tuple[Path, MaskPart]) -> Iterator[Record]:
        path, part = unit
        name = path.relative_to(root).with_suffix("").as_posix()
        image = file_image(path, root)
        origin = self.origin(
            name,
            (self.group(path.relative_to(root)) if self.group else "") or name,
            part.split,
            self.modality,
            description=self.description,
            extra=self.extra(path) if self.extra else {},
        )
        levels = [self.read(mask) for mask in self._masks(root, path, part)]
        for structure, belongs in self.structures.items():
            inside = np.any([_flat(belongs(level)) for level in levels], axis=0)
            if inside.any() and "segmentation" in self.tasks:
                yield tasks.segmentation(origin, image, inside, (1,), structure)
        if "diagnosis" in self.tasks:
            yield tasks.diagnosis(origin, image, path.parent.name)

    def _masks(self, root: Path, path: Path, part: MaskPart) -> list[Path]:
        """The masks of an image; where only the ending is open, 1.2.3.png has none in 1.2.3.4.png."""
        pattern = part.masks.format(stem=glob_text(path.stem), parent=glob_text(path.parent.name))
        masks = visible(root, pattern)
        if not masks and not pattern.isascii():
            # Accents composed here and decomposed there are one name.
            nearby, wanted = visible(root, f"{Path(pattern).parent}/*"), same_name(Path(pattern).name)
            masks = [mask for mask in nearby if fnmatch.fnmatchcase(same_name(mask.name), wanted)]
        if part.masks.endswith("{stem}.*"):
            stem = same_name(Path(part.masks).name.removesuffix(".*").format(stem=path.stem))
            masks = [mask for mask in masks if same_name(mask.stem) == stem]
        if not masks:
            place = path.relative_to(root).with_suffix("").as_posix()
            raise ValueError(f"{self.name}: expected the mask {pattern} for {place}, found none.")
        return masks


def glob_text(text: str) -> str:
    """Text that a glob pattern takes literally: BUSI's names have brackets of the harmless kind, others may not."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _flat(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) from one (H, W) or (H, W, 3)."""
    return mask if mask.ndim == 2 else np.any(mask, axis=-1)


def bright(levels: np.ndarray) -> np.ndarray:
    """White on black, JPEG masks included: more than half of the range."""
    return levels if levels.dtype == bool else levels > (127 if levels.max(initial=0) > 1 else 0)


def any_value(levels: np.ndarray) -> np.ndarray:
    """Everything that is not background."""
    return levels != 0


class Pair(NamedTuple):
    """Two images of the same thing: a unit of a `PairSource`."""

    origin: Path
    target: Path
    split: str


@dataclasses.dataclass
class PairSource(Source):
    """Two folders whose files of the same name show the same thing.

    Attributes:
        splits: our split ("" divides by group) -> (pattern of the origins, folder of the targets).
        make: the records of a pair, called as make(origin, image, other image, file of the origin).
        modality, description: of all origins.
        group: the group of an origin's path below the folder; every pair is its own by default ("" as well).
    """

    splits: Mapping[str, tuple[str, str]]
    make: Callable[[Origin, RecordImage, RecordImage, Path], Iterable[Record]]
    modality: str
    description: str
    group: Callable[[Path], str] | None = None

    def units(self, root: Path) -> Iterator[Pair]:
        for number, (split, (origins, targets)) in enumerate(self.splits.items()):
            found = [path for path in visible(root, origins) if path.suffix.lower() in IMAGE_SUFFIXES]
            if number == 0 and not found:
                raise self.wrong_folder(root, origins)
            if found:
                folder = self.need(root, targets)
                for path in found:
                    yield Pair(path, folder / image_name(folder, path.name), split)
                known = {same_name(path.name) for path in found}
                for path in visible(folder, "*"):
                    if same_name(path.name) not in known and path.suffix.lower() in IMAGE_SUFFIXES:
                        yield Pair(found[0].parent / path.name, path, split)

    def split_of_unit(self, unit: Pair) -> str:
        return unit.split

    def records_of(self, root: Path, unit: Pair) -> Iterator[Record]:
        name = unit.origin.relative_to(root).with_suffix("").as_posix()
        group = (self.group(unit.origin.relative_to(root)) if self.group else "") or name
        origin = self.origin(name, group, unit.split, self.modality, description=self.description)
        image, other = file_image(unit.origin, root), file_image(unit.target, root)
        # Two sizes of one image may differ by rounding, not by more.
        if abs(image.width * other.height - other.width * image.height) > 0.02 * image.width * other.height:
            sizes = [f"{side.width}x{side.height}" for side in (image, other)]
            raise ValueError(f"{self.name}: expected a pair of one shape, found {' and '.join(sizes)} for {name}.")
        yield from self.make(origin, image, other, unit.origin)


class Channel(NamedTuple):
    """A scan of a `VolumeSource`.

    Attributes:
        path: with `{case}`, below the case's folder.
        description: what one slice shows, without an article.
        modality: of its slices.
        window: (center, width) in the file's units, or None for the volume's own percentiles.
    """

    path: str
    description: str
    modality: str
    window: tuple[float, float] | None = None


@dataclasses.dataclass
class VolumeSource(Source):
    """Patients' NIfTI volumes, slice by slice.

    Attributes:
        cases: alternatives of a pattern for the folders of the cases, below the source's folder.
        channels: short name -> scan.
        pairs: (from, to) names of channels for cross-modal records.
        enhance: names of channels for super-resolution records.
        labels: path of the label volume with `{case}`, and structure -> label values.
        on: the channel that segmentations show.
        patient: the group of a case's name; every case is its own by default.
        slice_axis: see `read_volume`.
    """

    cases: tuple[str, ...]
    channels: Mapping[str, Channel]
    pairs: tuple[tuple[str, str], ...] = ()
    enhance: tuple[str, ...] = ()
    labels: str = ""
    structures: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    on: str = ""
    patient: Callable[[str], str] | None = None
    slice_axis: int | None = None

    def units(self, root: Path) -> Iterator[Path]:
        for pattern in self.cases:
            folders = [path for path in visible(root, pattern) if path.is_dir()]
            found = [folder for folder in folders if any(self._file(folder, name) for name in self.channels)]
            if found:
                yield from found
                return
        first = next(iter(self.channels.values()))
        raise self.wrong_folder(root, " or ".join(f"{pattern}/{first.path}" for pattern in self.cases))

    def _file(self, folder: Path, channel: str) -> Path | None:
        """The channel's volume, compressed or not."""
        path = folder / self.channels[channel].path.format(case=folder.name)
        unpacked = path.with_suffix("") if path.suffix == ".gz" else path
        return next((candidate for candidate in (path, unpacked) if candidate.is_file()), None)

    def records_of(self, root: Path, unit: Path) -> Iterator[Record]:
        volumes: dict[str, Volume] = {}
        for name in self.channels:
            path = self._file(unit, name)
            if path is not None:
                volumes[name] = read_volume(path, self.slice_axis)
        for name in self.enhance:
            for index in volumes[name].content_slices(self._view(name)) if name in volumes else ():
                origin, image = self._slice(root, unit, name, index, volumes[name])
                for scale, method in SUPER_RESOLUTION:
                    yield tasks.super_resolution(origin, image, scale, method)
        for name, other in self.pairs:
            if name not in volumes or other not in volumes:
                continue
            if volumes[name].voxels.shape != volumes[other].voxels.shape:
                raise ValueError(f"{self.name}: expected {name} and {other} of {unit.name} on one grid, found two.")
            for index in volumes[name].content_slices(self._view(name)):
                origin, image = self._slice(root, unit, name, index, volumes[name])
                their_origin, target = self._slice(root, unit, other, index, volumes[other])
                views = origin.extra["views"] | their_origin.extra["views"]
                words = self.channels[name].description, self.channels[other].description
                yield tasks.cross_modal(dataclasses.replace(origin, extra={"views": views}), image, target, *words)
        if self.labels:
            yield from self._segmentations(root, unit, volumes[self.on])

    def _view(self, channel: str) -> View:
        return View(window=self.channels[channel].window)

    def _slice(self, root: Path, folder: Path, channel: str, index: int, volume: Volume) -> tuple[Origin, RecordImage]:
        name, view = f"{folder.name}/{channel}#{index}", self._view(channel)
        scan, path = self.channels[channel], self._file(folder, channel)
        assert path is not None
        patient = self.patient(folder.name) if self.patient else folder.name
        extra = {"views": {name: view_entry(path.relative_to(root).as_posix(), volume.view(index, view))}}
        origin = self.origin(name, patient, "", scan.modality, description=scan.description, extra=extra)
        return origin, volume.image(index, name, view)

    def _segmentations(self, root: Path, folder: Path, volume: Volume) -> Iterator[Record]:
        path = folder / self.labels.format(case=folder.name)
        masks = read_volume(path, self.slice_axis)
        if masks.voxels.shape != volume.voxels.shape:
            raise ValueError(f"{path}: expected the shape {volume.voxels.shape}, found {masks.voxels.shape}.")
        for structure, values in self.structures.items():
            for index in np.flatnonzero(np.isin(masks.voxels, values).any(axis=(1, 2))).tolist():
                origin, image = self._slice(root, folder, self.on, index, volume)
                yield tasks.segmentation(origin, image, masks.marked(index, values), (1,), structure)
