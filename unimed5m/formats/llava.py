"""LLaVA's JSON lines: `id`, `image` (a path, a list of paths, or absent) and `conversations`.

Only records that answer in words fit: LLaVA's loaders know no output image.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unimedvl.utils.whole_files import replacing

from ..schema import Record, RecordImage, Turn
from ..task_images import stored_image
from . import extra_fields

LAYOUT = "llava"
EXPRESSED = ("id",)


def fits(record: Record) -> bool:
    """Whether LLaVA can express the record."""
    return not record.output_img


def write(records: Iterable[Record], path: str | Path, data_dir: str | Path) -> int:
    """Write JSON lines to `path` and the images below `data_dir`; returns the number of records.

    Raises:
        ValueError: for a record with an output image.
    """
    root, count = Path(data_dir), 0
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", errors="backslashreplace") as lines:
        for record in records:
            lines.write(json.dumps(to_object(record, root), ensure_ascii=False) + "\n")
            count += 1
    return count


def read(path: str | Path, data_dir: str | Path, dataset: str = "", *, images: bool = True) -> Iterator[Record]:
    """The records of a JSON lines file.

    Args:
        dataset: name of the data set for objects that we did not write; the file's name by default.
        images: whether the images must be there and are read; without them records have paths only.

    Raises:
        ValueError: naming the line, for one that is no record or whose image is missing.
    """
    root, path = Path(data_dir), Path(path)
    for number, value in extra_fields.json_lines(path):
        try:
            yield from_object(value, root, dataset or path.stem, f"{path.name}:{number}", images=images)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number}: {error!s}") from error


def to_object(record: Record, root: Path) -> dict[str, Any]:
    """The JSON object of a record; its images are stored below `root`.

    Raises:
        ValueError: for a record with an output image.
    """
    if not fits(record):
        raise ValueError(f"record {record.id!r}: expected no output image for LLaVA, found {len(record.output_img)}.")
    if extra_fields.is_foreign(record, LAYOUT):
        for image in record.input_img:
            if image.data is not None:
                extra_fields.store(root, image.path, image.data)
        return extra_fields.restored(record, _view(record, [image.path for image in record.input_img]))
    paths = [image.path if image.data is None else extra_fields.write_image(root, image) for image in record.input_img]
    return _view(record, paths) | {extra_fields.OURS: extra_fields.remainder(record, (*EXPRESSED, "message"))}


def from_object(value: dict[str, Any], root: Path, dataset: str, original_id: str, *, images: bool = True) -> Record:
    """The record of a JSON object.

    Raises:
        ValueError: if an image is missing or a part has another form.
    """
    message = tuple(Turn(turn["from"], turn["value"]) for turn in value["conversations"])
    paths = value.get("image") or []
    paths = [paths] if isinstance(paths, str) else paths
    if extra_fields.OURS in value:
        ours = value[extra_fields.OURS]
        source_images = tuple(
            extra_fields.image_from_facts(facts, extra_fields.load(root, path) if facts[-1] and images else None)
            for path, facts in zip(paths, ours["input_img"], strict=True)
        )
        return extra_fields.from_remainder(
            ours, id=value["id"], message=message, input_img=source_images, output_img=()
        )
    record = extra_fields.imported(
        LAYOUT,
        dataset,
        str(value.get("id", original_id)),
        main_task_type="image_understanding" if paths else "text_only",
        input_img=[
            stored_image(extra_fields.load(root, path), path) if images else RecordImage(None, path, 0, 0)
            for path in paths
        ],
        message=message,
    )
    return extra_fields.remembering(record, LAYOUT, value, _view(record, paths))


def _view(record: Record, paths: list[str]) -> dict[str, Any]:
    image = {"image": paths if len(paths) > 1 else paths[0]} if paths else {}
    turns = [{"from": turn.role, "value": turn.value} for turn in record.message]
    return {"id": record.id, **image, "conversations": turns}
