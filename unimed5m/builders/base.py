"""What a source of records is: a card, the layout of its folder, and a walk over what the folder holds.

A source reads a folder that the user has downloaded and unpacked. `Source.units` lists its content (rows of a table,
files, patients) cheaply and in a fixed order; `Source.records_of` opens one unit and makes its records with the
functions of `unimed5m.tasks`. Named and generic sources differ in these two methods only.
"""

import abc
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from unimedvl.utils.digests import hash_file

from ..schema import SPLITS, Record
from ..task_images import with_views
from ..tasks import Origin
from ..trainable import check_trainable
from .image_names import same_name
from .tables import is_table

UNVERIFIED = "layout unverified"
# How provenance begins that names a public copy of the sample.
PUBLIC_PLACES = ("github:", "pypi:")
# Publishers' names for the three splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# What macOS, Windows, Linux, Synology and QNAP leave in folders, in lower case.
SYSTEM_NAMES = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
    }
)
# Entries of a folder that an error message lists.
LISTED = 8


@dataclasses.dataclass(frozen=True)
class Card:
    """What a person must know before using a source.

    Attributes:
        title: the publisher's name of the set.
        url: where to get it.
        license: in words, as published.
        license_tier: our reading of it: "A" redistribution with attribution, "B" with conditions (non-commercial,
            share-alike with limits, mixed per image), "C" unclear or access by agreement only.
        redistributable: "yes", "non-commercial", "no" or "unclear": what publishing may do with its images.
        layout: the files and folders that are read, one line.
        layout_source: public page or loader (with its commit) that shows this layout, or `UNVERIFIED`.
        paper: what UniMed-5M uses it for (table and size where it is named).
        notes: what a user should know: choices of this reader, what is not read.
        license_read: whether the license was read on a page when the card was written; False is general knowledge, to
            be checked before anything is published.
    """

    title: str
    url: str
    license: str
    license_tier: str
    redistributable: str
    layout: str
    layout_source: str
    paper: str = ""
    notes: str = ""
    license_read: bool = True

    @property
    def license_words(self) -> str:
        """The license, with a warning where it was not read."""
        return self.license if self.license_read else f"{self.license} (not re-read: check before publishing)"

    @property
    def verified(self) -> bool:
        """Whether a public source for the layout is named."""
        return not self.layout_source.startswith(UNVERIFIED)


class LeftOut(ValueError):
    """A unit that is left out on purpose, and why: a row without a report, a question about an image of the test."""


@dataclasses.dataclass
class Source(abc.ABC):
    """A data set that records are built from.

    Attributes:
        name: as in `get_source(name)`.
        card: see `Card`.
        tasks: the sub-task types of its records.
        dataset: `dataset` of its records; the name by default.
        family: what its groups are numbered in; sets with the same patients or papers share it, so that these are on
            one side of a split in all of them.
    """

    name: str
    card: Card
    tasks: tuple[str, ...]
    dataset: str = dataclasses.field(default="", kw_only=True)
    family: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        self.dataset = self.dataset or self.name
        self.family = self.family or self.dataset

    @abc.abstractmethod
    def units(self, root: Path) -> Iterable[Any]:
        """What the folder holds, in a fixed order, without opening images.

        Raises:
            ValueError: one line with what was expected and what was found, for a folder of another layout.
        """

    @abc.abstractmethod
    def records_of(self, root: Path, unit: Any) -> Iterable[Record]:
        """The records of one unit.

        Raises:
            LeftOut: for a unit that is no sample.
            ValueError: one line, for a unit that can not be made into records.
        """

    def records(
        self,
        root: Path | str,
        split: str | None = None,
        shard: tuple[int, int] = (0, 1),
        problem: Callable[[str, str], None] | None = None,
    ) -> Iterator[Record]:
        """The records of a downloaded folder, always in the same order.

        Args:
            root: the folder, unpacked as its publisher packed it.
            split: only records of this split.
            shard: (index, count): only every count-th unit, beginning with the index-th. The shards of all indices
                together hold each record once.
            problem: called with a unit's name (`name_of`) and the reason why it, or one of its records, was left out.
                Without it a unit with a missing or damaged file, or a record that is not valid, stops the walk; a unit
                that is left out on purpose never does.

        Yields:
            Records of `split`, or of all splits, that are valid (`Record.validate`) and that trainers can read
            (`check_trainable`).

        Raises:
            ValueError: one line with what was expected and what was found.
        """
        root = Path(root)
        index, count = shard
        if not 0 <= index < count:
            raise ValueError(f"shard: expected an index below the count, found {index} of {count}.")
        if split is not None and split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}.")
        self._check_folder(root)
        found = False
        for position, unit in enumerate(self.units(root)):
            found = True
            # Where a unit's split is known its images are not opened.
            if position % count != index or (split and self.split_of_unit(unit) not in ("", split)):
                continue
            name = self.name_of(root, unit) or f"{self.name}#{position}"
            try:
                made = False
                for record in map(with_views, self.records_of(root, unit)):
                    made = True
                    if split is not None and record.split != split:
                        continue
                    fault = _fault_of(record)
                    if not fault:
                        yield record
                    elif problem is not None:
                        problem(name, fault)
                    else:
                        raise ValueError(fault)
                if not made:
                    raise LeftOut(f"{self.name}: {name} holds nothing to make a record of.")
            except ValueError as error:
                if problem is not None:
                    problem(name, str(error))
                elif not isinstance(error, LeftOut):
                    raise
        if not found:
            raise self.wrong_folder(root, self.card.layout)

    def name_of(self, root: Path, unit: Any) -> str:
        """What a unit is called among the rejected: the first path in it, below the folder."""
        return _place_of(unit, root)

    def split_of_unit(self, unit: Any) -> str:
        """The split that all records of a unit are in, "" if only its content or group decides."""
        return ""

    def fingerprint(self, root: Path | str) -> str:
        """A digest of the folder that changes when files come, go or change their size, and with what tables say.

        Settings and tables count by content (an edit often keeps the size), images and other files by name and size:
        reading all of them would take as long as the build. Times do not count, they differ between copies; hidden
        files and those of the operating system come and go unasked.

        Raises:
            ValueError: if there is no such folder.
        """
        root = Path(root)
        self._check_folder(root)
        digest = hashlib.sha256(self.name.encode())
        for path in _walked(root):
            if is_hidden(path, root):
                continue
            size = path.stat().st_size if path.is_file() else -1
            line = f"\n{path.relative_to(root).as_posix()} {size}"
            if size >= 0 and is_table(path):
                line += f" {hash_file(path)}"
            # Names need not be text.
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _check_folder(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"{self.name}: expected a folder with {self.card.layout}, found no folder at {root}.")

    def origin(
        self, original_id: str, group_id: str, split: str, modality: str, provenance: str = "", **others: Any
    ) -> Origin:
        """Where a record comes from, with the card's license. An unknown split is decided by the group.

        Names count with their accents composed, so that ids and splits are the same whatever system stored the files.

        Args:
            provenance: the file, below the folder; the sample's own name by default.
            others: `description` and `extra` of `Origin`.
        """
        original_id, group_id = same_name(original_id), same_name(group_id)
        return Origin(
            dataset=self.dataset,
            original_id=original_id,
            group_id=f"{self.family}/{group_id}",
            split=split or hashed_split(f"{self.family}/{group_id}"),
            modality=modality,
            license=self.card.license,
            license_tier=self.card.license_tier,
            redistributable=self.card.redistributable,
            provenance=f"{self.card.url} {provenance or original_id}",
            **others,
        )

    def wrong_folder(self, root: Path, expected: str) -> ValueError:
        """The error for a folder of another layout."""
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir()) if root.is_dir() else []
        listing = ", ".join(entries[:LISTED]) + (f" and {len(entries) - LISTED} more" if len(entries) > LISTED else "")
        return ValueError(f"{self.name}: expected {expected} in {root}, found {listing or 'nothing'}.")

    def need(self, root: Path, *alternatives: str) -> Path:
        """The first of several paths below `root` that exists; publishers and mirrors name a folder differently.

        Raises:
            ValueError: one line with all alternatives and what the folder holds.
        """
        for name in alternatives:
            if (root / name).exists():
                return root / name
        raise self.wrong_folder(root, " or ".join(alternatives))

    def files(self, root: Path, pattern: str) -> list[Path]:
        """The files that match a pattern, sorted by path.

        Raises:
            ValueError: one line with the pattern and what the folder holds.
        """
        found = sorted((path for path in visible(root, pattern) if path.is_file()), key=lambda path: path.as_posix())
        if not found:
            raise self.wrong_folder(root, pattern)
        return found


def _fault_of(record: Record) -> str:
    """What is wrong with a record, "" if nothing is."""
    try:
        record.validate()
        check_trainable(record)
    except ValueError as error:
        return str(error)
    return ""


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file or folder below `root` is hidden, or one that an operating system or a file server put there."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in path.relative_to(root).parts)


def visible(root: Path, pattern: str) -> list[Path]:
    """What matches a pattern below a folder, sorted by path, without what is hidden."""
    return sorted(path for path in root.glob(pattern) if not is_hidden(path, root))


def _walked(root: Path) -> Iterator[Path]:
    """All that lies below a folder, folder by folder in the order of their names, through links, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # Sorted in place: this decides where the walk goes, and in which order.
        folders.sort()
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in sorted([*folders, *files]))


def _place_of(unit: Any, root: Path) -> str:
    """Where a unit was found, in words: the first path in it, below the folder."""
    if isinstance(unit, Path):
        return unit.relative_to(root).as_posix() if unit.is_relative_to(root) else unit.name
    places = [_place_of(part, root) for part in unit] if isinstance(unit, tuple) else []
    return next((place for place in places if place), "")


def hashed_split(group_id: str, validation: float = 0.1, test: float = 0.1) -> str:
    """The split of a group where the publisher has none: the same on every machine, 80/10/10 by default."""
    digest = hashlib.sha256(group_id.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def split_of(name: str) -> str:
    """Our name of a publisher's split; unknown names are training data."""
    return SPLIT_NAMES.get(name.strip().lower(), "train")
