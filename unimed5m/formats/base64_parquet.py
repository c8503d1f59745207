"""Parquet with base64 images, the form in which parts of UniMedVL-5M were released.

The card of that release describes "Parquet files with base64-embedded images" and names no columns beyond the
record's; the repository is gated. Written here: the seven columns of the authors' JSON lines, the image of an entry as
base64 in `image`. Read here: the same, an entry's image under any of `IMAGE_KEYS`, as text, bytes or the structure
that `datasets` writes (bytes and path), with or without a `data:` prefix, entries that are the text or bytes
themselves, and messages or image lists stored as JSON text. Other columns are kept as they are, of any type that
`carried` knows.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from unimedvl.utils.whole_files import replacing

from ..pipeline import BATCH_ROWS
from ..schema import UNKNOWN, Record, RecordImage, Turn
from ..task_images import stored_image
from . import extra_fields

LAYOUT = "released"
EXPRESSED = ("main_task_type", "sub_task_type", "modality", "dataset", "message")
IMAGE_KEYS = ("image", "base64", "image_base64", "img_base64", "data", "bytes", "image_bytes")

_LISTS = ("input_img", "output_img", "message")
_TEXT = pyarrow.string()
_IMAGES = pyarrow.list_(
    pyarrow.struct([("path", _TEXT), ("height", pyarrow.int32()), ("width", pyarrow.int32()), ("image", _TEXT)])
)
SCHEMA = pyarrow.schema(
    [
        ("main_task_type", _TEXT),
        ("sub_task_type", _TEXT),
        ("modality", _TEXT),
        ("dataset", _TEXT),
        ("input_img", _IMAGES),
        ("output_img", _IMAGES),
        ("message", pyarrow.list_(pyarrow.struct([("from", _TEXT), ("value", _TEXT)]))),
        (extra_fields.OURS, _TEXT),
    ]
)


def write(records: Iterable[Record], path: str | Path, schema: pyarrow.Schema = SCHEMA) -> int:
    """Write a Parquet file; returns the number of records.

    Args:
        schema: columns of the file; for imported records, those of the file they came from.
    """
    count, waiting = 0, []
    with replacing(path) as partial, parquet.ParquetWriter(str(partial), schema) as writer:
        for record in records:
            waiting.append(to_row(record))
            count += 1
            if len(waiting) == BATCH_ROWS:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
                waiting = []
        writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
    return count


def read(path: str | Path) -> Iterator[Record]:
    """The records of a Parquet file.

    Raises:
        ValueError: naming the row, for one that is no record.
    """
    path, number = Path(path), 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
        for row in batch.to_pylist():
            try:
                yield from_row(row, f"{path.name}:{number}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: row {number}: {error!s}") from error
            number += 1


def to_row(record: Record) -> dict[str, Any]:
    """The row of a record."""
    if extra_fields.is_foreign(record, LAYOUT):
        style = extra_fields.style_of(record)
        row = extra_fields.restored(record, _styled(record, style))
        row |= {name: extra_fields.spelled(row[name], spelling) for name, spelling in style["text"].items()}
        # Text of a spelling of its own is remembered as a whole; what was edited since is written in ours.
        if isinstance(row.get("message"), str) and _turns(row) != record.message:
            row["message"] = extra_fields.spelled(_view(record)["message"], None)
        return row
    ours = extra_fields.remainder(record, EXPRESSED)
    return _view(record) | {extra_fields.OURS: json.dumps(ours, ensure_ascii=False)}


def from_row(row: dict[str, Any], original_id: str) -> Record:
    """The record of a row.

    Args:
        original_id: name that distinguishes the row in its data set.

    Raises:
        ValueError: if a part has another form.
    """
    message = _turns(row)
    if row.get(extra_fields.OURS) is not None:
        ours = json.loads(row[extra_fields.OURS])
        images = {
            name: tuple(
                extra_fields.image_from_facts(facts, _decoded(entry["image"]) if entry["image"] is not None else None)
                for entry, facts in zip(row[name], ours[name], strict=True)
            )
            for name in ("input_img", "output_img")
        }
        return extra_fields.from_remainder(
            ours, **{name: row[name] for name in EXPRESSED} | {"message": message}, **images
        )
    found = {
        name: [_image(entry, f"{name}/{index}") for index, entry in enumerate(_listed(row.get(name)))]
        for name in ("input_img", "output_img")
    }
    main = "multimodal_input_output" if found["input_img"] else "image_generation"
    if not found["output_img"]:
        main = "image_understanding" if found["input_img"] else "text_only"
    record = extra_fields.imported(
        LAYOUT,
        row.get("dataset") or UNKNOWN,
        original_id,
        main_task_type=row.get("main_task_type") or main,
        sub_task_type=row.get("sub_task_type") or "",
        modality=row.get("modality") or "",
        message=message,
        **found,
    )
    style = _style(row)
    parsed = row | {name: json.loads(row[name]) for name in style["text"]}
    return extra_fields.remembering(record, LAYOUT, parsed, _styled(record, style), style)


def _turns(row: dict[str, Any]) -> tuple[Turn, ...]:
    return tuple(Turn(turn["from"], turn["value"]) for turn in _listed(row.get("message")))


def _style(row: dict[str, Any]) -> dict[str, Any]:
    """How a row spells what others spell differently: lists as JSON text, and where an entry's image stands.

    Without this an image that is spelled otherwise would be remembered a second time. "text" maps the columns that
    hold JSON text as Python writes it to whether it is ASCII; text of another spelling is remembered as a whole.
    """
    style: dict[str, Any] = {"text": {}}
    for name in _LISTS:
        if isinstance(row.get(name), str):
            spelling = extra_fields.spelling_of(row[name], json.loads(row[name]))
            if spelling is not None:
                style["text"][name] = spelling
    for name in ("input_img", "output_img"):
        for entry in _listed(row.get(name)):
            key = _image_key(entry) if isinstance(entry, dict) else None
            value: Any = entry if isinstance(entry, str | bytes) else None if key is None else entry[key]
            if value is not None:
                struct = isinstance(value, dict)
                value = value.get("bytes") if struct else value
                prefix = value.partition(",")[0] + "," if isinstance(value, str) and value.startswith("data:") else ""
                style[name] = {"key": key, "bytes": isinstance(value, bytes), "prefix": prefix, "struct": struct}
    return style


def _styled(record: Record, style: dict[str, Any]) -> dict[str, Any]:
    view = _view(record)
    for name in ("input_img", "output_img"):
        if name in style:
            view[name] = [_styled_entry(entry, style[name]) for entry in view[name]]
    return view


def _styled_entry(entry: dict[str, Any], style: dict[str, Any]) -> Any:
    image = entry.pop("image")
    if image is not None:
        image = base64.b64decode(image) if style["bytes"] else style["prefix"] + image
    if style["struct"]:
        image = {"bytes": image, "path": None}
    return image if style["key"] is None else entry | {style["key"]: image}


def _listed(value: Any) -> list[Any]:
    """A list that may be stored as JSON text; None is an empty one."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list | None):
        raise ValueError(f"expected a list, found {type(value).__name__}.")
    return value or []


def _image_key(entry: dict[str, Any]) -> str | None:
    return next((key for key in IMAGE_KEYS if entry.get(key) is not None), None)


def _image(entry: Any, name: str) -> RecordImage:
    if isinstance(entry, str | bytes):
        return stored_image(_decoded(entry), name)
    if not isinstance(entry, dict):
        raise ValueError(f"{name}: expected an image entry, found {type(entry).__name__}.")
    key, path = _image_key(entry), entry.get("path") or ""
    value = None if key is None else entry[key]
    if isinstance(value, dict):
        path, value = path or value.get("path") or "", value.get("bytes")
    if value is None:
        return RecordImage(None, path, entry.get("height") or 0, entry.get("width") or 0)
    return stored_image(_decoded(value), path or name)


def _decoded(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ValueError(f"expected an image as base64 or bytes, found {type(text).__name__}.")
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected base64, found {text[:20]!r} ({error}).") from error


def _view(record: Record) -> dict[str, Any]:
    images = {
        name: [
            {
                "path": image.path,
                "height": image.height,
                "width": image.width,
                "image": None if image.data is None else base64.b64encode(image.data).decode("ascii"),
            }
            for image in getattr(record, name)
        ]
        for name in ("input_img", "output_img")
    }
    values: dict[str, Any] = {name: getattr(record, name) for name in EXPRESSED[:-1]}
    return values | images | {"message": [{"from": turn.role, "value": turn.value} for turn in record.message]}
