"""Generic sources whose images and texts are named by a table, one function for each kind of row.

Rows may have the columns image, split, group, modality and description; columns that are not known go into `extra`
under "columns", apart from what the tasks state there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .. import tasks
from ..schema import MODALITIES, Record
from ..sentences import clean
from ..tasks import Origin
from .base import SPLIT_NAMES, Card, Source, split_of
from .image_names import file_group, image_name, same_name
from .publisher_texts import captioned, choice, llava_rows, row_images
from .readers import TableRow, TableSource
from .record_images import named_image
from .settings import Settings
from .tables import Row, rows


def _row_origin(source: Source, folder: Path, unit: TableRow, settings: Settings, name: str, *used: str) -> Origin:
    """The origin of a row with our column names: image, split, group, modality, description and its texts."""
    row = unit.row
    if row.get("modality") and row["modality"] not in MODALITIES:
        raise _wrong_cell(unit, "modality", f"one of {', '.join(MODALITIES)}")
    extra = {key: value for key, value in row.items() if value not in ("", None) and key not in (*used, *_COLUMNS)}
    return source.origin(
        f"{unit.table.stem}#{unit.position}",
        _group_of(unit, settings, name) or (file_group(folder, name) if name else str(unit.position)),
        _split_of(unit),
        row.get("modality") or (settings.modality if name else "TEXT"),
        name or f"{unit.table.name}#{unit.position}",
        description=_optional_text(unit, "description") or settings.description,
        extra={"columns": extra} if extra else {},
    )


def _group_of(unit: TableRow, settings: Settings, name: str) -> str:
    """What the column says, 0 included, or the image's path; "" if neither does."""
    stated = unit.row.get("group")
    if isinstance(stated, list | dict):
        raise _wrong_cell(unit, "group", "a text or a number")
    plain = "" if stated is None else same_name(str(stated).strip())
    return plain or (settings.group_of(name) if name else "")


def _split_of(unit: TableRow) -> str:
    stated = unit.row.get("split") or ""
    if stated and str(stated).strip().lower() not in SPLIT_NAMES:
        raise _wrong_cell(unit, "split", f"one of {', '.join(sorted(SPLIT_NAMES))}")
    return split_of(str(stated)) if stated else ""


def _wrong_cell(unit: TableRow, name: str, expected: str) -> ValueError:
    found = f"{unit.row.get(name)!r:.80}"
    return ValueError(f"{unit.table.name}: row {unit.position + 1}: {name}: expected {expected}, found {found}.")


def _optional_text(unit: TableRow, name: str) -> str:
    """A cell that may be empty; "" if it is."""
    value = unit.row.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong_cell(unit, name, "a text")
    return value or ""


def _text_or_number(unit: TableRow, name: str) -> str:
    """A cell with a text or a number, as text; "" if it is empty. Lists, truth values and objects are no answers."""
    value = unit.row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise _wrong_cell(unit, name, "a text or a number")
    return "" if value is None else str(value)


_COLUMNS = ("image", "split", "group", "modality", "description")
_CHOICES = tuple("ABCDE")


def caption_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """The caption of an image, and the image from its caption."""
    name = image_name(folder, unit.row["image"])
    origin = _row_origin(source, folder, unit, settings, name, "caption")
    yield from captioned(source, origin, [named_image(folder, name)], unit.row["caption"])


def report_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """The report of an image."""
    name = image_name(folder, unit.row["image"])
    origin = _row_origin(source, folder, unit, settings, name, "report")
    yield tasks.report(origin, [named_image(folder, name)], unit.row["report"])


def label_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """The label of an image as diagnosis."""
    name = image_name(folder, unit.row["image"])
    origin = _row_origin(source, folder, unit, settings, name, "label")
    yield tasks.diagnosis(origin, named_image(folder, name), unit.row["label"])


def question_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """A question about an image, with choices where the columns A to E have some."""
    name = image_name(folder, unit.row["image"])
    origin = _row_origin(source, folder, unit, settings, name, "question", "answer", *_CHOICES)
    options = [_text_or_number(unit, letter) for letter in _CHOICES]
    answer = _text_or_number(unit, "answer")
    yield choice(origin, [named_image(folder, name)], unit.row["question"], options, answer)


def thought_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """A question with reasoning and answer; without an image in words only."""
    row, named = unit.row, _optional_text(unit, "image").strip()
    name = image_name(folder, named) if named else ""
    origin = _row_origin(source, folder, unit, settings, name, "question", "reasoning", "answer")
    images = [named_image(folder, name)] if name else []
    yield tasks.reasoning(origin, images, row["question"], row["reasoning"], _text_or_number(unit, "answer"))


def table_of(
    read: Callable[..., Iterator[Record]], stem: str, needs: tuple[str, ...]
) -> Callable[[Source, Settings, Card], Source]:
    """What makes a folder's source of its settings.

    Args:
        read: the records of a row, one of the functions above.
        stem: name of the table, whatever its format.
        needs: columns that must hold something in every row.
    """
    return partial(_make_table, read, stem, needs)


def _make_table(
    read: Callable[..., Iterator[Record]],
    stem: str,
    needs: tuple[str, ...],
    generic: Source,
    settings: Settings,
    card: Card,
) -> Source:
    patterns = [f"{stem}.{suffix}" for suffix in ("csv", "tsv", "json", "jsonl")]
    return OneTable(
        name=generic.name,
        card=card,
        tasks=generic.tasks,
        tables=dict.fromkeys(patterns, ""),
        needs=needs,
        images=(".",),
        read=partial(_checked_row, read, settings, needs),
        encoding=settings.encoding,
        known=("id", *needs, *_COLUMNS, *(_CHOICES if "answer" in needs else ())),
    )


@dataclasses.dataclass
class OneTable(TableSource):
    """A table that the folder has in one format.

    Attributes:
        encoding: of the table, see `rows`.
        known: columns that are found in upper and lower case, and with spaces around their names.
    """

    encoding: str = "utf-8"
    known: tuple[str, ...] = ()

    def rows_of(self, table: Path) -> Iterator[Row]:
        """The rows with the known columns under their own names; a number that is none (NaN) is an empty cell."""
        known = {name.lower(): name for name in self.known}
        for position, row in enumerate(rows(table, self.encoding), 1):
            plain: Row = {}
            for key, value in row.items():
                stated = key.strip()
                name = known.get(stated.lower(), stated)
                if name in plain:
                    raise ValueError(
                        f"{table}: row {position}: expected each column once, found {name!r} twice: keep one of them."
                    )
                plain[name] = None if isinstance(value, float) and not math.isfinite(value) else value
            yield plain

    def units(self, root: Path) -> Iterator[TableRow]:
        found = [name for name in self.tables if (root / name).is_file()]
        if len(found) > 1:
            raise ValueError(
                f"{self.name}: expected one table in {root}, found {' and '.join(found)}: keep one, or put all "
                "rows into it."
            )
        yield from super().units(root)


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
        wrong = not clean(value) if isinstance(value, str) else name not in ("answer", "conversations")
        if wrong or value is None:
            raise _wrong_cell(unit, name, "a text")
    if isinstance(unit.row.get(""), list):
        raise ValueError(
            f"{unit.table.name}: row {unit.position + 1}: expected a cell for each column, found "
            f"{len(unit.row[''])} more: texts with commas need quotation marks."
        )
    yield from read(settings, source, folder, unit)


def conversation_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """A conversation in LLaVA's layout, about one image, several or none."""
    first = next((image_name(folder, name) for name in row_images(unit)), "")
    yield from llava_rows(source, folder, unit._replace(split=_split_of(unit)), _group_of(unit, settings, first))
