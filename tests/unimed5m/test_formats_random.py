"""Round trips of random records and random foreign objects: every task, several images, deep grays, any text."""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from unimedvl.unimed5m.formats import bagel, base64_parquet, llava, unimedvl_jsonl
from unimedvl.unimed5m.schema import (
    MAIN_TASK_TYPES,
    MODALITIES,
    SPLITS,
    SUB_TASK_TYPES,
    Quality,
    Record,
    RecordImage,
    Turn,
    from_table,
    to_table,
)

TEXTS = (
    "", "q", "ü é 中文 😀 \u202e", "line\nbreak\r\n\ttab", "\x00nul\x1f", '"quoted" \\ {brace} <think>a</think>',
    " padded ", "\ud7ff\ue000\ufffd\u2028", "<image", "a" * 2000, "None", "[]", "{}",
)  # fmt: skip
NAMED = TEXTS[1:]
KINDS = {"PNG": 1, "JPEG": 3, "BMP": 3, "GIF": 3, "WEBP": 3, "TIFF": 1}


def encoded(rng: random.Random) -> tuple[bytes, int, int]:
    """A small image file of any kind, gray ones with 8 or 16 bits, and its height and width."""
    height, width = rng.randint(1, 9), rng.randint(1, 9)
    kind = rng.choice(list(KINDS))
    noise = numpy.random.default_rng(rng.randrange(2**32))
    if KINDS[kind] == 3:
        pixels = noise.integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    else:
        deep = rng.random() < 0.5
        pixels = noise.integers(0, 65536 if deep else 256, (height, width)).astype("uint16" if deep else "uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue(), height, width


def image(rng: random.Random) -> RecordImage:
    data, height, width = encoded(rng)
    path = rng.choice(["a.png", "dir/ü.png", "/lead/b.jpg", "", "../x.png"])
    if rng.random() < 0.2:
        return RecordImage(None, path or "p.png", rng.choice([0, 5]), rng.choice([0, 6]), rng.choice(["", "ab" * 32]))
    return RecordImage(data, path, height, width)


def turn(rng: random.Random, role: str, places: int) -> Turn:
    text, mark = rng.choice(TEXTS), "<image>" * places
    return Turn(role, rng.choice([f"{mark}\n{text}", f"{text}\n{mark}", f"{mark}{text}", f"{text}{mark}"]))


def record(rng: random.Random, index: int) -> Record:
    main = rng.choice(MAIN_TASK_TYPES)
    inputs, outputs = (0, 0) if main == "text_only" else (rng.choice([0, 1, 1, 2, 4]), rng.choice([0, 0, 1, 1, 2, 3]))
    pairs, shown = rng.choice([1, 1, 1, 2, 3]), (rng.random() < 0.7, rng.random() < 0.7)
    turns = []
    for number in range(pairs):
        turns.append(turn(rng, "human", inputs * (shown[0] and number == 0)))
        turns.append(turn(rng, "gpt", outputs * (shown[1] and number == pairs - 1)))
    scores = [None, Quality(), Quality(0.1, None, 0.3, "source"), Quality(0.1 + 0.2, 1 / 3, 1e-17, "global")]
    made = Record(
        id=f"{index}-{rng.choice(NAMED)}",
        main_task_type=main,
        sub_task_type=rng.choice(SUB_TASK_TYPES),
        modality=rng.choice(MODALITIES),
        dataset=rng.choice(["d", "ü x"]),
        input_img=tuple(image(rng) for _ in range(inputs)),
        output_img=tuple(image(rng) for _ in range(outputs)),
        message=tuple(turns),
        license=rng.choice(["CC0", "ü"]),
        license_tier=rng.choice(["A", ""]),
        redistributable="yes",
        provenance=rng.choice(NAMED),
        split=rng.choice(SPLITS),
        group_id="g",
        synthetic=rng.random() < 0.3,
        quality=rng.choice(scores),
        extra=rng.choice(["{}", '{"é": [1, 1.0, null, true, {"b": "\\u0000"}]}', '{ "b":1 , "a":2}']),
    )
    made.validate()
    return made


@pytest.fixture(scope="module")
def records() -> list[Record]:
    rng = random.Random(1)
    made = [record(rng, index) for index in range(300)]
    assert {item.sub_task_type for item in made} == set(SUB_TASK_TYPES)
    assert max(len(item.input_img) + len(item.output_img) for item in made) >= 5
    return made


def test_random_records_survive_our_parquet(records, tmp_path):
    parquet.write_table(to_table(records), tmp_path / "ours.parquet")
    assert from_table(parquet.read_table(tmp_path / "ours.parquet")) == records


def test_random_records_survive_the_authors_files(records, tmp_path):
    unimedvl_jsonl.write(records, tmp_path / "a.jsonl", tmp_path)
    assert list(unimedvl_jsonl.read(tmp_path / "a.jsonl", tmp_path)) == records


def test_random_records_survive_the_released_parquet(records, tmp_path):
    base64_parquet.write(records, tmp_path / "r.parquet")
    assert list(base64_parquet.read(tmp_path / "r.parquet")) == records


def test_random_records_survive_llava(records, tmp_path):
    fitting = [item for item in records if llava.fits(item)]
    assert len(fitting) > 50
    llava.write(fitting, tmp_path / "l.jsonl", tmp_path)
    assert list(llava.read(tmp_path / "l.jsonl", tmp_path)) == fitting


@pytest.mark.parametrize("layout", [bagel.TEXT_TO_IMAGE, bagel.EDITING])
def test_random_records_survive_bagel(records, tmp_path, layout):
    fitting = [item for item in records if bagel.layout_of(item) == layout]
    assert len(fitting) > 5
    bagel.write(fitting, tmp_path / "b.parquet", layout)
    assert list(bagel.read(tmp_path / "b.parquet", layout)) == fitting


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.randint(0, 7 if depth < 3 else 5)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 7:
        keys = ["a", "b", "ü", "path", "unimedvl", "foreign"]
        return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    return [None, True, rng.randint(-5, 10**12), rng.random() * 10 ** rng.randint(-9, 9), rng.choice(TEXTS), 1.0][kind]


def shuffled(rng: random.Random, item: dict[str, Any]) -> dict[str, Any]:
    keys = list(item)
    rng.shuffle(keys)
    return {key: item[key] for key in keys}


def some(rng: random.Random, item: dict[str, Any], share: float = 0.7) -> dict[str, Any]:
    """The object without some of its keys."""
    return {key: part for key, part in item.items() if rng.random() < share}


def stored(rng: random.Random, folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for index in range(6):
        data, height, width = encoded(rng)
        (folder / f"i{index}.png").write_bytes(data)
        found.append((f"i{index}.png", height, width))
    return found


def turns(rng: random.Random) -> list[dict[str, Any]]:
    spoken = [{"from": rng.choice(["human", "gpt"]), "value": rng.choice(TEXTS)} for _ in range(rng.randint(0, 4))]
    return [shuffled(rng, item | some(rng, {"loss": value(rng)}, 0.2)) for item in spoken]


def entries(rng: random.Random, images: list[tuple[str, int, int]]) -> list[dict[str, Any]] | None:
    found = []
    for _ in range(rng.randint(0, 3)):
        name, height, width = rng.choice(images)
        size = {"height": rng.choice([height, None, float(height)]), "width": width, "x": value(rng)}
        found.append(shuffled(rng, {"path": rng.choice(["", "/"]) + name, **some(rng, size, 0.5)}))
    return found or rng.choice([None, []])


@pytest.mark.parametrize("images", [True, False])
def test_random_files_of_the_authors_survive_us(tmp_path, images):
    rng = random.Random(2)
    known = stored(rng, tmp_path)
    lines = ""
    for _ in range(150):
        other = {
            "main_task_type": rng.choice([None, "image_generation", "weird", ""]),
            "sub_task_type": rng.choice([None, "x"]),
            "modality": rng.choice(["CT", None]),
            "dataset": rng.choice(["d", None]),
            "input_img": entries(rng, known),
            "output_img": entries(rng, known),
            "id": value(rng),
            "ü": value(rng),
        }
        lines += json.dumps(shuffled(rng, {"message": turns(rng), **some(rng, other)}), ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8", newline="")
    found = list(unimedvl_jsonl.read(tmp_path / "a.jsonl", tmp_path, images=images))
    assert len(found) == 150
    unimedvl_jsonl.write(found, tmp_path / "again.jsonl", tmp_path / "again")
    assert (tmp_path / "again.jsonl").read_bytes().decode() == lines


def test_random_llava_files_survive_us(tmp_path):
    rng = random.Random(3)
    names = [name for name, _, _ in stored(rng, tmp_path)]
    lines = ""
    for _ in range(150):
        other = {
            "id": rng.choice([1, "x", None, 3.5]),
            "image": rng.choice([[], None, "", names[0], names[:1], names[:3]]),
            "model": value(rng),
        }
        lines += (
            json.dumps(shuffled(rng, {"conversations": turns(rng), **some(rng, other)}), ensure_ascii=False) + "\n"
        )
    (tmp_path / "l.jsonl").write_text(lines, encoding="utf-8", newline="")
    llava.write(llava.read(tmp_path / "l.jsonl", tmp_path), tmp_path / "again.jsonl", tmp_path / "again")
    assert (tmp_path / "again.jsonl").read_bytes().decode() == lines


@pytest.mark.parametrize("key", [*base64_parquet.IMAGE_KEYS, "uri"])
def test_random_released_tables_survive_us(tmp_path, key):
    rng = random.Random(key)
    rows = []
    for _ in range(20):
        sides: dict[str, list[dict[str, Any]]] = {"input_img": [], "output_img": []}
        for side in sides.values():
            for _ in range(rng.randint(0, 2)):
                data, height, width = encoded(rng)
                text = base64.b64encode(data).decode()
                content = {"bytes": data, "image_bytes": data, "uri": "s3://x"}.get(key, text)
                side.append({"path": "a.png", key: content, "height": height, "width": width, "score": rng.random()})
        message = [{"from": role, "value": rng.choice(TEXTS)} for role in ("human", "gpt")]
        unknown = {"tags": [rng.choice(TEXTS)], "raw": b"\x00\xff", "nested": {"a": [1, None], "b": rng.choice(TEXTS)}}
        rows.append({"modality": rng.choice(["CT", None]), "message": message, **sides, "f": rng.random(), **unknown})
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "theirs.parquet")
    base64_parquet.write(base64_parquet.read(tmp_path / "theirs.parquet"), tmp_path / "ours.parquet", table.schema)
    assert parquet.read_table(tmp_path / "ours.parquet").equals(table)


@pytest.mark.parametrize("layout", [bagel.TEXT_TO_IMAGE, bagel.EDITING])
def test_random_bagel_tables_survive_us(tmp_path, layout):
    rng = random.Random(layout)
    rows: list[dict[str, Any]] = []
    for _ in range(40):
        if layout == bagel.TEXT_TO_IMAGE:
            captions = {name: rng.choice(TEXTS) for name in "abc"[: rng.randint(0, 3)]}
            rows.append({"image": encoded(rng)[0], "captions": json.dumps(captions, ensure_ascii=rng.random() < 0.5)})
        else:
            steps = rng.randint(1, 3)
            said = [[rng.choice(TEXTS) for _ in range(rng.randint(0, 3))] for _ in range(steps)]
            rows.append({"image_list": [encoded(rng)[0] for _ in range(steps + 1)], "instruction_list": said})
        rows[-1]["key"] = rng.choice(TEXTS)
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "theirs.parquet")
    bagel.write(bagel.read(tmp_path / "theirs.parquet", layout), tmp_path / "ours.parquet", layout, table.schema)
    assert parquet.read_table(tmp_path / "ours.parquet").equals(table)
