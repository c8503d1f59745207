"""Generic sources whose images and texts are named by a table, one function for each kind of row.

Rows may have the columns image, split, group, modality and description; columns that are not known go into `extra`
under "columns", apart from what the tasks state there.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .. import tasks
from ..schema import MODALITIES, Record
from ..tasks import Origin
from .base import SPLIT_NAMES, Card, Source, split_of
from .publisher_texts import captioned, choice, llava_rows
from .readers import TableRow, TableSource
from .record_images import named_image
from .settings import Settings
from .source_texts import options_in


def _row_origin(source: Source, unit: TableRow, settings: Settings, name: str, *used: str) -> Origin:
    """The origin of a row with our column names: image, split, group, modality, description and its texts."""
    row = unit.row
    if row.get("modality") and row["modality"] not in MODALITIES:
        raise _wrong_cell(unit, "modality", f"one of {', '.join(MODALITIES)}")
    extra = {key: value for key, value in row.items() if value not in ("", None) and key not in (*used, *_COLUMNS)}
    return source.origin(
        f"{unit.table.stem}#{unit.position}",
        _group_of(unit, settings, name) or name or str(unit.position),
        _split_of(unit),
        row.get("modality") or (settings.modality if name else "TEXT"),
        name or f"{unit.table.name}#{unit.position}",
        description=row.get("description") or settings.description,
        extra={"columns": extra} if extra else {},
    )


def _group_of(unit: TableRow, settings: Settings, name: str) -> str:
    """What the column says, 0 included, or the image's path; "" if neither does."""
    stated = unit.row.get("group")
    return str(stated) if stated not in (None, "") else settings.group_of(name) if name else ""


def _split_of(unit: TableRow) -> str:
    stated = unit.row.get("split") or ""
    if stated and str(stated).strip().lower() not in SPLIT_NAMES:
        raise _wrong_cell(unit, "split", f"one of {', '.join(sorted(SPLIT_NAMES))}")
    return split_of(str(stated)) if stated else ""


def _wrong_cell(unit: TableRow, name: str, expected: str) -> ValueError:
    found = unit.row.get(name)
    return ValueError(f"{unit.table.name}: row {unit.position + 1}: {name}: expected {expected}, found {found!r}.")


_COLUMNS = ("image", "split", "group", "modality", "description")


def caption_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """The caption of an image, and the image from its caption."""
    origin = _row_origin(source, unit, settings, unit.row["image"], "caption")
    yield from captioned(source, origin, [named_image(folder, unit.row["image"])], unit.row["caption"])


def report_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """The report of an image."""
    origin = _row_origin(source, unit, settings, unit.row["image"], "report")
    yield tasks.report(origin, [named_image(folder, unit.row["image"])], unit.row["report"])


def label_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """The label of an image as diagnosis."""
    origin = _row_origin(source, unit, settings, unit.row["image"], "label")
    yield tasks.diagnosis(origin, named_image(folder, unit.row["image"]), unit.row["label"])


def question_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """A question about an image, with choices where the columns A to E have some."""
    row = unit.row
    origin = _row_origin(source, unit, settings, row["image"], "question", "answer", *"ABCDE")
    images = [named_image(folder, row["image"])]
    yield choice(origin, images, row["question"], options_in(row, *"ABCDE"), str(row["answer"]))


def thought_row(settings: Settings, source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    """A question with reasoning and answer; without an image in words only."""
    row = unit.row
    name = row.get("image") or ""
    origin = _row_origin(source, unit, settings, name, "question", "reasoning", "answer")
    images = [named_image(folder, name)] if name else []
    yield tasks.reasoning(origin, images, row["question"], row["reasoning"], str(row["answer"]))


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
    )


class OneTable(TableSource):
    """A table that the folder has in one format."""

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
        wrong = not value.strip() if isinstance(value, str) else name not in ("answer", "conversations")
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
    named = unit.row.get("image") or ""
    first = named if isinstance(named, str) else str(named[0])
    yield from llava_rows(source, folder, unit._replace(split=_split_of(unit)), _group_of(unit, settings, first))
