"""Records of what publishers wrote themselves: conversations are kept, captions get the tasks that fit them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from .. import tasks
from ..schema import Record, RecordImage, Turn
from ..tasks import Origin
from .image_names import file_group, image_name
from .readers import TableRow, TableSource
from .record_images import named_image
from .source_texts import chosen_option, modality_of, plain_options, turns_of


def conversation(origin: Origin, images: Sequence[RecordImage], turns: Sequence[Turn], task: str = "vqa") -> Record:
    """A conversation as its publisher wrote it, with all images in front of the model's view."""
    return Record(
        id=origin.record_id(task),
        main_task_type="image_understanding" if images else "text_only",
        sub_task_type=task if images or task == "reasoning" else "dialogue",
        modality=origin.modality,
        dataset=origin.dataset,
        input_img=tuple(images),
        output_img=(),
        message=tuple(turns),
        license=origin.license,
        license_tier=origin.license_tier,
        redistributable=origin.redistributable,
        provenance=origin.provenance,
        split=origin.split,
        group_id=origin.group_id,
        extra=json.dumps(origin.extra, ensure_ascii=False, sort_keys=True),
    )


def captioned(source: TableSource, origin: Origin, images: Sequence[RecordImage], text: str) -> Iterator[Record]:
    """A caption, and where the source is one for generation, the image from the caption.

    Only a single image whose modality is known becomes a text-to-image record: its answer names the modality.
    """
    if "caption" in source.tasks:
        yield tasks.caption(origin, images, text)
    if "text_to_image" in source.tasks and len(images) == 1 and origin.modality != "RAD":
        yield tasks.text_to_image(origin, images[0], text)


def choice(
    origin: Origin,
    images: Sequence[RecordImage],
    question: str,
    options: Sequence[str],
    answer: str,
    variant: str = "",
) -> Record:
    """A multiple-choice question; an open one, its answer word by word, where that is none of the options.

    Args:
        options: the choices in the order of their letters, "" where one is missing.
        answer: the right choice's letter, its words, or both.

    Raises:
        ValueError: for the letter of a blank choice.
    """
    plain = plain_options(options)
    right = chosen_option(plain, answer)
    if right < 0 and any(plain) and answer.strip() in ascii_uppercase[: len(plain)]:
        raise ValueError(
            f"{origin.original_id}: expected one of the choices as answer, found {answer!r}, a blank one."
        )
    if right < 0:
        return tasks.vqa(origin, images, question, answer, variant)
    # Blank choices are not shown; those before the right one move it up.
    shown = [option for option in plain if option]
    return tasks.multiple_choice(origin, images, question, shown, right - plain[:right].count(""), variant)


def llava_rows(source: TableSource, folder: Path, unit: TableRow, group: str = "") -> Iterator[Record]:
    """LLaVA's layout: `image` (a path, several, or none) and `conversations`.

    In sources for generation the first answer to a single image also becomes its caption.

    Args:
        group: of the row; by default its first image is its own.
    """
    row = unit.row
    names = [image_name(folder, name) for name in row_images(unit)]
    turns = turns_in(unit, len(names))
    place = f"{unit.table.stem}#{row.get('id', unit.position)}"
    asked = next(turn.value for turn in turns if turn.role == "human")
    stated = " ".join(str(row.get(name, "")) for name in ("modality", "image")) + " " + asked
    origin = source.origin(
        f"{unit.table.stem}#{unit.position}",
        group or (file_group(folder, names[0]) if names else place),
        unit.split,
        modality_of(stated) if names else "TEXT",
        place,
        extra=kept(row, "id", "modality", "body_part"),
    )
    images = [named_image(folder, name) for name in names]
    yield conversation(origin, images, turns)
    if images:
        yield from captioned(source, origin, images, turns[-1].value)


def row_images(unit: TableRow) -> list[str]:
    """The names in a row's column `image`: one, several, or none.

    Raises:
        ValueError: one line, for anything else.
    """
    named = unit.row.get("image") or []
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        place = f"{unit.table.name}: row {unit.position + 1}"
        raise ValueError(f"{place}: image: expected the name of a file, or a list of names, found {named!r:.80}.")
    return list(names)


def turns_in(unit: TableRow, images: int) -> tuple[Turn, ...]:
    """The turns in a row's column `conversations`; see `turns_of`, whose errors get the row's place."""
    try:
        return turns_of(unit.row["conversations"], images)
    except ValueError as error:
        raise ValueError(f"{unit.table.name}: row {unit.position + 1}: {error}") from error


def kept(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The columns worth keeping in a record's `extra`: those that are there and not empty."""
    return {name: row[name] for name in names if row.get(name) not in (None, "", [])}
