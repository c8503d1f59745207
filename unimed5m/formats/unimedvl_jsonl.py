"""The authors' training files: JSON lines beside a folder of images.

Each line has `main_task_type`, `sub_task_type`, `modality`, `dataset`, `input_img` and `output_img` (lists of path,
height and width), and `message`. Their loaders join the paths to a data folder after removing a leading slash, ignore
other keys, and put the whole text of a turn into the sequence when an image is to be made, so `<image>` is written
only where no image is made.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unimedvl.utils.whole_files import replacing

from ..schema import IMAGE_PLACEHOLDER, UNKNOWN, Record, RecordImage, Turn
from ..task_images import stored_image
from . import extra_fields

LAYOUT = "authors"
EXPRESSED = ("main_task_type", "sub_task_type", "modality", "dataset")


def write(records: Iterable[Record], path: str | Path, data_dir: str | Path) -> int:
    """Write JSON lines to `path` and the images below `data_dir`; returns the number of records."""
    root, count = Path(data_dir), 0
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", errors="backslashreplace") as lines:
        for record in records:
            lines.write(json.dumps(to_object(record, root), ensure_ascii=False) + "\n")
            count += 1
    return count


def read(path: str | Path, data_dir: str | Path, *, images: bool = True) -> Iterator[Record]:
    """The records of a JSON lines file.

    Args:
        images: whether the images must be there and are read; without them records have paths only.

    Raises:
        ValueError: naming the line, for one that is no record or whose image is missing.
    """
    root, path = Path(data_dir), Path(path)
    for number, value in extra_fields.json_lines(path):
        try:
            yield from_object(value, root, f"{path.name}:{number}", images=images)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number}: {error!s}") from error


def to_object(record: Record, root: Path) -> dict[str, Any]:
    """The JSON object of a record; its images are stored below `root`."""
    if extra_fields.is_foreign(record, LAYOUT):
        for image in (*record.input_img, *record.output_img):
            if image.data is not None:
                extra_fields.store(root, image.path, image.data)
        return extra_fields.restored(record, _view(record))
    value = _view(record)
    for name in ("input_img", "output_img"):
        for entry, image in zip(value[name], getattr(record, name), strict=True):
            if image.data is not None:
                entry["path"] = extra_fields.write_image(root, image)
    if record.output_img:
        value["message"] = [{"from": turn.role, "value": _bare(turn.value)} for turn in record.message]
    return value | {extra_fields.OURS: extra_fields.remainder(record, EXPRESSED)}


def from_object(value: dict[str, Any], root: Path, original_id: str, *, images: bool = True) -> Record:
    """The record of a JSON object.

    Args:
        original_id: name that distinguishes the object in its data set.

    Raises:
        ValueError: if an image is missing or a part has another form.
    """
    if extra_fields.OURS in value:
        return _ours(value, root, images=images)
    source_images = {
        name: [_read(root, entry, images=images) for entry in value.get(name) or []]
        for name in ("input_img", "output_img")
    }
    record = extra_fields.imported(
        LAYOUT,
        value.get("dataset") or UNKNOWN,
        original_id,
        main_task_type=value.get("main_task_type") or _guess(source_images),
        sub_task_type=value.get("sub_task_type") or "",
        modality=value.get("modality") or "",
        message=[Turn(turn["from"], turn["value"]) for turn in value.get("message") or []],
        **source_images,
    )
    return extra_fields.remembering(record, LAYOUT, value, _view(record))


def _view(record: Record) -> dict[str, Any]:
    images = {
        name: [{"path": image.path, "height": image.height, "width": image.width} for image in getattr(record, name)]
        for name in ("input_img", "output_img")
    }
    message = [{"from": turn.role, "value": turn.value} for turn in record.message]
    return {name: getattr(record, name) for name in EXPRESSED} | images | {"message": message}


def _ours(value: dict[str, Any], root: Path, *, images: bool) -> Record:
    ours = value[extra_fields.OURS]
    source_images = {}
    for name in ("input_img", "output_img"):
        source_images[name] = tuple(
            extra_fields.image_from_facts(
                facts, extra_fields.load(root, entry["path"]) if facts[-1] and images else None
            )
            for entry, facts in zip(value[name], ours[name], strict=True)
        )
    message = tuple(Turn(turn["from"], turn["value"]) for turn in value["message"])
    exact = tuple(Turn(*turn) for turn in ours["message"])
    # The exact turns say where the images stand; they count unless somebody edited the visible ones.
    if [(turn.role, _bare(turn.value)) for turn in exact] == [(turn.role, _bare(turn.value)) for turn in message]:
        message = exact
    return extra_fields.from_remainder(
        ours, **{name: value[name] for name in EXPRESSED}, message=message, **source_images
    )


def _read(root: Path, entry: dict[str, Any], *, images: bool) -> RecordImage:
    if images:
        return stored_image(extra_fields.load(root, entry["path"]), entry["path"])
    return RecordImage(None, entry["path"], entry.get("height") or 0, entry.get("width") or 0)


def _guess(images: dict[str, list[RecordImage]]) -> str:
    if images["output_img"]:
        return "multimodal_input_output" if images["input_img"] else "image_generation"
    return "image_understanding" if images["input_img"] else "text_only"


def _bare(text: str) -> str:
    return text.replace(IMAGE_PLACEHOLDER, "").strip()
