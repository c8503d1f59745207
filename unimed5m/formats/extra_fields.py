"""What the foreign layouts share: carrying along what the other side has no place for."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import UNKNOWN, Quality, Record, RecordImage, Turn, record_id
from . import typed_json

# Key in a foreign object with the fields of a record that the layout has no place for.
OURS = "unimedvl"
# Key in `Record.extra` with what a foreign object had besides the record.
THEIRS = "foreign"

# The content hash follows from the others.
FIELDS = tuple(field.name for field in dataclasses.fields(Record) if field.name != "content_hash")


def remainder(record: Record, expressed: Iterable[str]) -> dict[str, Any]:
    """The fields that a layout does not express, as JSON values; images without their bytes."""
    left = [name for name in FIELDS if name not in set(expressed)]
    values: dict[str, Any] = {name: getattr(record, name) for name in left}
    for name in ("input_img", "output_img"):
        if name in values:
            values[name] = [image_facts(image) for image in values[name]]
    if "message" in values:
        values["message"] = [[turn.role, turn.value] for turn in record.message]
    if values.get("quality") is not None:
        values["quality"] = dataclasses.asdict(values["quality"])
    return values


def from_remainder(values: Mapping[str, Any], **expressed: Any) -> Record:
    """The record of `remainder`, with the fields that the layout expresses."""
    merged = dict(values) | expressed
    if "message" in values and "message" not in expressed:
        merged["message"] = tuple(Turn(*turn) for turn in values["message"])
    if merged.get("quality") is not None and not isinstance(merged["quality"], Quality):
        merged["quality"] = Quality(**merged["quality"])
    return Record(**merged)


def image_facts(image: RecordImage) -> list[Any]:
    """All of an image but its bytes; whether it has bytes comes last."""
    return [image.path, image.height, image.width, image.sha256, image.data is not None]


def image_from_facts(facts: Sequence[Any], data: bytes | None) -> RecordImage:
    """The image of `image_facts`, with its bytes (ignored if it had none)."""
    path, height, width, sha256, embedded = facts
    if not embedded:
        return RecordImage(None, path, height, width, sha256)
    return RecordImage(data, path, height, width, sha256)


def imported(
    layout: str,
    dataset: str,
    original_id: str,
    *,
    main_task_type: str,
    sub_task_type: str = "",
    modality: str = "",
    input_img: Sequence[RecordImage] = (),
    output_img: Sequence[RecordImage] = (),
    message: Sequence[Turn],
) -> Record:
    """A record of an object that was not written by us: what it does not say is "unknown", its split is "train".

    Args:
        original_id: name that distinguishes the object in its data set: file name and row.
    """
    task = sub_task_type or UNKNOWN
    return Record(
        id=record_id(dataset, original_id, task),
        main_task_type=main_task_type,
        sub_task_type=task,
        modality=modality or UNKNOWN,
        dataset=dataset,
        input_img=tuple(input_img),
        output_img=tuple(output_img),
        message=tuple(message),
        license=UNKNOWN,
        license_tier="",
        redistributable=UNKNOWN,
        provenance=original_id,
        split="train",
        group_id=f"{dataset}/{original_id}",
        extra=json.dumps({THEIRS: {"layout": layout}}),
    )


def remembering(record: Record, layout: str, original: Any, reproduced: Any, style: Any = None) -> Record:
    """The record with what `reproduced`, its export, lacks of the object that it was read from.

    Args:
        style: what the export has to know about the object's spelling; `style_of` gives it back.
    """
    memory = {"layout": layout, "patch": difference(original, reproduced), "style": style}
    return dataclasses.replace(record, extra=json.dumps({THEIRS: memory}, ensure_ascii=False))


def is_foreign(record: Record, layout: str) -> bool:
    """Whether the record was read from an object of that layout that we did not write."""
    found = json.loads(record.extra).get(THEIRS)
    return isinstance(found, dict) and found.get("layout") == layout


def style_of(record: Record) -> Any:
    """The style that a record was remembered with."""
    return json.loads(record.extra)[THEIRS].get("style")


def restored(record: Record, reproduced: Any) -> Any:
    """The object that a record was read from: what the record says, and what it remembers."""
    return patched(json.loads(record.extra)[THEIRS].get("patch"), reproduced)


def difference(original: Any, reproduced: Any) -> dict[str, Any] | None:
    """What has to be changed in one JSON-like value to get another; None if they are equal, key order included.

    Raises:
        ValueError: for a value that cannot be carried (see `typed_json.packed`).
    """
    if isinstance(original, dict) and isinstance(reproduced, dict):
        changes = {
            key: difference(value, reproduced[key]) if key in reproduced else _kept(value)
            for key, value in original.items()
        }
        changes = {key: change for key, change in changes.items() if change is not None}
        if not changes and list(original) == list(reproduced):
            return None
        return {"keys": list(original), "changes": changes}
    if isinstance(original, list) and isinstance(reproduced, list) and len(original) == len(reproduced):
        items = [difference(left, right) for left, right in zip(original, reproduced, strict=True)]
        return {"items": items} if any(item is not None for item in items) else None
    # 1, 1.0 and True are equal in Python and different in a file.
    if type(original) is type(reproduced) and original == reproduced:
        return None
    return _kept(original)


def _kept(value: Any) -> dict[str, Any]:
    return {"value": value} if typed_json.is_plain(value) else {"packed": typed_json.packed(value)}


def patched(patch: dict[str, Any] | None, reproduced: Any) -> Any:
    """Apply what `difference` returned. Parts of a record that were changed meanwhile keep their new values."""
    if patch is None:
        return reproduced
    if "packed" in patch:
        return typed_json.unpacked(patch["packed"])
    if "value" in patch:
        return patch["value"]
    if "items" in patch:
        if len(patch["items"]) != len(reproduced):
            return reproduced
        return [patched(item, value) for item, value in zip(patch["items"], reproduced, strict=True)]
    changes = patch["changes"]
    return {
        key: patched(changes.get(key), reproduced.get(key))
        for key in patch["keys"]
        if key in changes or key in reproduced
    }


def spelling_of(text: str, value: Any) -> list[bool] | None:
    """How JSON text spells its value: [in ASCII only, without spaces]; None if in another way."""
    for spelling in ([False, False], [True, False], [False, True], [True, True]):
        if spelled(value, spelling) == text:
            return spelling
    return None


def spelled(value: Any, spelling: Sequence[bool] | None) -> str:
    """A value as JSON text in the spelling of `spelling_of`."""
    ascii, compact = spelling or (False, False)
    return json.dumps(value, ensure_ascii=ascii, separators=(",", ":") if compact else None)


def file_of(root: Path, path: str) -> Path:
    """The file that a foreign object names; paths are below `root`, with or without a leading slash.

    Raises:
        ValueError: if the path leaves the folder.
    """
    file = (root / path.lstrip("/")).resolve()
    if not path or not file.is_relative_to(root.resolve()):
        raise ValueError(f"expected an image path below {root}, found {path!r}.")
    return file


def load(root: Path, path: str) -> bytes:
    """The bytes of an image file.

    Raises:
        ValueError: if there is no such file below `root`.
    """
    file = file_of(root, path)
    if not file.is_file():
        raise ValueError(f"expected the image {path} below {root}, found no file.")
    return file.read_bytes()


def store(root: Path, path: str, data: bytes) -> None:
    """Write an image file; other content under the same name is an error.

    Raises:
        ValueError: if the path leaves the folder, or names a file with other content.
    """
    file = file_of(root, path)
    if file.is_file():
        if file.read_bytes() != data:
            raise ValueError(f"expected to write the image {path} below {root}, found another image of that name.")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def suffix(data: bytes) -> str:
    """File name ending for an encoded image."""
    for start, name in ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp")):
        if data.startswith(start):
            return name
    return ".webp" if data[8:12] == b"WEBP" else ".tif" if data[:2] in (b"II", b"MM") else ".bin"


def write_image(root: Path, image: RecordImage) -> str:
    """Store an image under its digest; returns the path below `root`. Equal images share a file."""
    assert image.data is not None
    name = f"images/{image.sha256[:2]}/{image.sha256}{suffix(image.data)}"
    store(root, name, image.data)
    return name


def json_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file with their line numbers, from 1.

    Raises:
        ValueError: naming a line that is no JSON object.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: expected a JSON object ({error}).") from error
            if not isinstance(value, dict):
                raise ValueError(f"{path}: line {number}: expected a JSON object, found {type(value).__name__}.")
            yield number, value
