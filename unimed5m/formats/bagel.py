"""BAGEL's training Parquet, two layouts.

* Text to image: `image` (bytes) and `captions` (a JSON object of captions; the loader draws one).
* Editing: `image_list` (bytes) and `instruction_list`, where the k-th list holds phrasings of the step from image k to
  image k + 1.

A row's captions and phrasings beyond the first have no place in a record and are kept for writing it again; an edited
text takes the place of the first.

The loaders have no place for an answer in words; it travels in the additional column `unimedvl`, like everything else
that the layouts lack. They also want a JSON file with the rows and row groups of every Parquet file: `describe`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from unimedvl.utils.whole_files import replacing

from ..pipeline import BATCH_ROWS
from ..schema import IMAGE_PLACEHOLDER, Record, Turn
from ..task_images import stored_image
from . import extra_fields

TEXT_TO_IMAGE = "bagel_t2i"
EDITING = "bagel_edit"

_OURS = (extra_fields.OURS, pyarrow.string())
SCHEMAS = {
    TEXT_TO_IMAGE: pyarrow.schema([("image", pyarrow.binary()), ("captions", pyarrow.string()), _OURS]),
    EDITING: pyarrow.schema(
        [
            ("image_list", pyarrow.list_(pyarrow.binary())),
            ("instruction_list", pyarrow.list_(pyarrow.list_(pyarrow.string()))),
            _OURS,
        ]
    ),
}


def layout_of(record: Record) -> str | None:
    """Which of the two layouts expresses a record that this package built; None if neither does."""
    for layout in SCHEMAS:
        if extra_fields.is_foreign(record, layout):
            return layout
    turns = [turn.role for turn in record.message]
    if len(record.output_img) != 1 or turns != ["human", "gpt"]:
        return None
    if any(image.data is None for image in (*record.input_img, *record.output_img)):
        return None
    return {0: TEXT_TO_IMAGE, 1: EDITING}.get(len(record.input_img))


def write(records: Iterable[Record], path: str | Path, layout: str, schema: pyarrow.Schema | None = None) -> int:
    """Write a Parquet file; returns the number of records.

    Args:
        layout: `TEXT_TO_IMAGE` or `EDITING`.
        schema: columns of the file; for imported records, those of the file they came from.

    Raises:
        ValueError: for a record that the layout does not express.
    """
    schema = schema or SCHEMAS[layout]
    count, waiting = 0, []
    with replacing(path) as partial, parquet.ParquetWriter(str(partial), schema) as writer:
        for record in records:
            waiting.append(to_row(record, layout))
            count += 1
            if len(waiting) == BATCH_ROWS:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
                waiting = []
        if waiting:
            writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
    return count


def read(path: str | Path, layout: str, dataset: str = "") -> Iterator[Record]:
    """The records of a Parquet file.

    Args:
        layout: `TEXT_TO_IMAGE` or `EDITING`.
        dataset: name of the data set for rows that we did not write; the file's name by default.

    Raises:
        ValueError: naming the row, for one that is no record.
    """
    path, number = Path(path), 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
        for row in batch.to_pylist():
            try:
                yield from_row(row, layout, dataset or path.stem, f"{path.name}:{number}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: row {number}: {error!s}") from error
            number += 1


def describe(paths: Iterable[str | Path]) -> dict[str, dict[str, int]]:
    """What BAGEL's `parquet_info_path` file holds: path -> rows and row groups."""
    found = {}
    for path in paths:
        metadata = parquet.read_metadata(path)
        found[str(path)] = {"num_row_groups": metadata.num_row_groups, "num_rows": metadata.num_rows}
    return found


def to_row(record: Record, layout: str) -> dict[str, Any]:
    """The row of a record.

    Raises:
        ValueError: if the layout does not express it.
    """
    if layout_of(record) != layout:
        raise ValueError(
            f"record {record.id!r}: expected one output image with bytes and "
            f"{'no' if layout == TEXT_TO_IMAGE else 'one'} input image for {layout}, found {len(record.input_img)} "
            f"input and {len(record.output_img)} output images."
        )
    if extra_fields.is_foreign(record, layout):
        return _edited(extra_fields.restored(record, _view(record, layout)), _human_texts(record), layout)
    return _view(record, layout) | {
        extra_fields.OURS: json.dumps(extra_fields.remainder(record, ()), ensure_ascii=False)
    }


def from_row(row: dict[str, Any], layout: str, dataset: str, original_id: str) -> Record:
    """The record of a row.

    Raises:
        ValueError: if a part has another form.
    """
    images, texts = [row["image"]] if layout == TEXT_TO_IMAGE else row["image_list"], _texts(row, layout)
    if row.get(extra_fields.OURS) is not None:
        return _ours(json.loads(row[extra_fields.OURS]), images, texts[0])
    source_images = [stored_image(data, f"{original_id}/{index}") for index, data in enumerate(images)]
    inputs, outputs = (source_images[:1], source_images[1:]) if layout == EDITING else ([], source_images)
    if len(texts) != len(outputs):
        raise ValueError(f"expected an instruction for each of {len(outputs)} steps, found {len(texts)}.")
    turns = []
    for step, text in enumerate(texts):
        place = f"{IMAGE_PLACEHOLDER}\n" if inputs and not step else ""
        turns += [Turn("human", place + text), Turn("gpt", IMAGE_PLACEHOLDER)]
    record = extra_fields.imported(
        layout,
        dataset,
        original_id,
        main_task_type="image_generation" if layout == TEXT_TO_IMAGE else "multimodal_input_output",
        sub_task_type="text_to_image" if layout == TEXT_TO_IMAGE else "",
        input_img=inputs,
        output_img=outputs,
        message=turns,
    )
    return extra_fields.remembering(record, layout, row, _view(record, layout))


def _texts(row: dict[str, Any], layout: str) -> list[str]:
    """What a row asks for, step by step: the first of the captions, or of each step's phrasings."""
    if layout == EDITING:
        return [_first(phrasings) for phrasings in row["instruction_list"]]
    return [_first(None if row["captions"] is None else json.loads(row["captions"]))]


def _first(texts: Any) -> str:
    """The first text of an object or a list, of lists in an object as well; "" of an empty one or None."""
    if isinstance(texts, dict | list):
        return _first(next(iter(texts.values() if isinstance(texts, dict) else texts), None))
    if not isinstance(texts, str | None):
        raise ValueError(f"expected captions or instructions in words, found {texts!r:.60}.")
    return texts or ""


def _with_first(texts: Any, text: str) -> Any:
    """The same object or list with another first text; the other phrasings stay."""
    if isinstance(texts, dict):
        key = next(iter(texts), "caption")
        return {**texts, key: _with_first(texts.get(key), text)}
    return [_with_first(texts[0] if texts else None, text), *texts[1:]] if isinstance(texts, list) else text


def _edited(row: dict[str, Any], texts: list[str], layout: str) -> dict[str, Any]:
    """A remembered row with the record's texts where those were changed after the row was read."""
    remembered = [_bare(text) for text in _texts(row, layout)]
    if remembered == texts:
        return row
    if layout == TEXT_TO_IMAGE:
        captions = None if row["captions"] is None else json.loads(row["captions"])
        spelling = extra_fields.spelling_of(row["captions"], captions)
        changed = {"caption": texts[0]} if captions is None else _with_first(captions, texts[0])
        return row | {"captions": extra_fields.spelled(changed, spelling)}
    steps = row["instruction_list"] if len(remembered) == len(texts) else [[text] for text in texts]
    pairs = zip(steps, texts, strict=True)
    return row | {
        "instruction_list": [
            step if _bare(_first(step)) == text else _with_first(step or [], text) for step, text in pairs
        ]
    }


def _human_texts(record: Record) -> list[str]:
    return [_bare(turn.value) for turn in record.message if turn.role == "human"]


def _view(record: Record, layout: str) -> dict[str, Any]:
    texts = _human_texts(record)
    images = [image.data for image in (*record.input_img, *record.output_img)]
    if layout == TEXT_TO_IMAGE:
        return {"image": images[0], "captions": json.dumps({"caption": texts[0]}, ensure_ascii=False)}
    return {"image_list": images, "instruction_list": [[text] for text in texts]}


def _ours(ours: dict[str, Any], images: list[bytes], text: str) -> Record:
    count = len(ours["input_img"])
    facts = [*ours["input_img"], *ours["output_img"]]
    source_images = [extra_fields.image_from_facts(fact, data) for fact, data in zip(facts, images, strict=True)]
    human, gpt = (Turn(*turn) for turn in ours["message"])
    # The exact turn says where the images stand; it counts unless somebody edited the visible text.
    if _bare(human.value) != text:
        human = Turn("human", IMAGE_PLACEHOLDER * count + "\n" * bool(count) + text)
    return extra_fields.from_remainder(
        ours, message=(human, gpt), input_img=tuple(source_images[:count]), output_img=tuple(source_images[count:])
    )


def _bare(text: str) -> str:
    return text.replace(IMAGE_PLACEHOLDER, "").strip()
