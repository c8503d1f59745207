"""Foreign tables with columns of any type, images in any form, and texts that were edited after reading."""

import base64
import datetime
import json
from decimal import Decimal
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from tests.unimed5m.mini_folder import drawing
from unimedvl.unimed5m.formats import bagel, base64_parquet, extra_fields, typed_json, unimedvl_jsonl
from unimedvl.unimed5m.schema import Record, Turn

PNG = drawing(1)
ENCODED = base64.b64encode(PNG).decode()
MESSAGE = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
NOON = datetime.datetime(2025, 1, 31, 12, 30, 15, 123456)
IMAGE = {"bytes": b"\x00\xff", "path": None}
IMAGE_TYPE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])

COLUMNS: dict[str, tuple[pyarrow.DataType, list[Any]]] = {
    "microseconds": (pyarrow.timestamp("us"), [NOON, None]),
    "nanoseconds": (pyarrow.timestamp("ns"), [1738326615123456789, None]),
    "zone": (pyarrow.timestamp("us", "Europe/Berlin"), [NOON, None]),
    "nanoseconds in a zone": (pyarrow.timestamp("ns", "America/New_York"), [1738326615123456789, None]),
    "date": (pyarrow.date32(), [NOON.date(), datetime.date.min]),
    "time": (pyarrow.time64("us"), [NOON.time(), None]),
    "duration": (pyarrow.duration("us"), [datetime.timedelta(days=-3, microseconds=7), None]),
    "long duration": (pyarrow.duration("ns"), [123456789, None]),
    "decimal": (pyarrow.decimal128(9, 2), [Decimal("1.20"), Decimal("-0.01")]),
    "list of bytes": (pyarrow.list_(pyarrow.binary()), [[b"\x00", None], []]),
    "map": (pyarrow.map_(pyarrow.string(), pyarrow.date32()), [[("a", NOON.date()), ("b", None)], None]),
    "image": (IMAGE_TYPE, [IMAGE, {"bytes": None, "path": "p"}]),
    "images": (pyarrow.list_(IMAGE_TYPE), [[IMAGE, IMAGE], None]),
    "big": (pyarrow.uint64(), [2**64 - 1, 0]),
    "half": (pyarrow.float32(), [0.1, None]),
    "choices": (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["x", "y"]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_unknown_columns_of_any_type_survive_us(tmp_path, name):
    kind, values = COLUMNS[name]
    table = pyarrow.Table.from_pylist(
        [{"input_img": [{"path": "a.png", "image": ENCODED}], "message": MESSAGE}] * 2
    ).append_column(name, pyarrow.array(values, kind))
    parquet.write_table(table, tmp_path / "theirs.parquet")
    records = list(base64_parquet.read(tmp_path / "theirs.parquet"))
    for record in records:
        record.validate()
    schema = parquet.read_schema(tmp_path / "theirs.parquet")
    base64_parquet.write(records, tmp_path / "ours.parquet", schema)
    assert parquet.read_table(tmp_path / "ours.parquet").equals(parquet.read_table(tmp_path / "theirs.parquet"))


def test_a_column_that_cannot_be_carried_is_an_error():
    with pytest.raises(ValueError, match="expected numbers, texts, times, .* found <object"):
        typed_json.packed([object()])


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "a.png", "image": {"bytes": PNG, "path": None}},
        {"image": {"path": "inner.png", "bytes": PNG}, "note": "x"},
        {"bytes": PNG, "path": "a.png"},
        {"path": "a.png", "height": 3, "width": 4, "image": {"bytes": None, "path": "elsewhere.png"}},
        PNG,
    ],
)
def test_images_as_structures_survive_us(tmp_path, entry):
    table = pyarrow.Table.from_pylist([{"input_img": [entry, entry], "output_img": [], "message": MESSAGE}])
    parquet.write_table(table, tmp_path / "theirs.parquet")
    records = list(base64_parquet.read(tmp_path / "theirs.parquet"))
    assert records[0].input_img[0].data == (None if "elsewhere" in str(entry) else PNG)
    if isinstance(entry, dict):
        assert records[0].input_img[0].path == ("inner.png" if "note" in entry else "a.png")
    # The image is not stored a second time in what is remembered.
    assert len(records[0].extra) < 1000
    base64_parquet.write(records, tmp_path / "ours.parquet", table.schema)
    assert parquet.read_table(tmp_path / "ours.parquet").equals(table)


def edited(record: Record, text: str) -> Record:
    """The record with another request in the first turn, its image where it was."""
    mark = "<image>\n" if "<image>" in record.message[0].value else ""
    return record.replace(message=(Turn("human", mark + text), *record.message[1:]))


CAPTIONS = [
    ('{"caption": "old"}', '{"caption": "new ü"}'),
    ('{"caption":"old"}', '{"caption":"new ü"}'),
    ('{"long": "old", "short": "o"}', '{"long": "new ü", "short": "o"}'),
    ('{"a":"\\u00e9"}', '{"a":"new \\u00fc"}'),
    ('{ "a" : "old" }', '{"a": "new ü"}'),
    ('{"a": ["old", "o"], "b": null}', '{"a": ["new ü", "o"], "b": null}'),
    ('["old", "o"]', '["new ü", "o"]'),
    ("[]", '["new ü"]'),
    ("{}", '{"caption": "new ü"}'),
    ("null", '{"caption": "new ü"}'),
    (None, '{"caption": "new ü"}'),
]


@pytest.mark.parametrize("captions, expected", CAPTIONS)
def test_an_edited_caption_is_written(captions, expected):
    row = {"image": PNG, "captions": captions, "key": 1}
    record = bagel.from_row(row, bagel.TEXT_TO_IMAGE, "d", "r:0")
    record.validate()
    assert bagel.to_row(record, bagel.TEXT_TO_IMAGE) == row
    assert bagel.to_row(edited(record, "new ü"), bagel.TEXT_TO_IMAGE) == row | {"captions": expected}


def test_captions_that_are_no_texts_are_an_error(tmp_path):
    parquet.write_table(pyarrow.table({"image": [PNG], "captions": ['{"a": 3}']}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="row 0: expected captions or instructions in words, found 3"):
        list(bagel.read(tmp_path / "b.parquet", bagel.TEXT_TO_IMAGE))


@pytest.mark.parametrize("said", [[["old"]], [["old", "o"]], [[]], [["old", "o"], ["then"]]])
def test_an_edited_instruction_is_written(said):
    row = {"image_list": [PNG] * (len(said) + 1), "instruction_list": said, "seed": 4}
    record = bagel.from_row(row, bagel.EDITING, "d", "r:0")
    assert bagel.to_row(record, bagel.EDITING) == row
    expected = [["new", *said[0][1:]], *said[1:]]
    assert bagel.to_row(edited(record, "new"), bagel.EDITING) == row | {"instruction_list": expected}


@pytest.mark.parametrize("spell", [{}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 1}])
def test_an_edited_message_in_json_text_is_written(spell):
    message = [{"from": "human", "value": "é"}, {"from": "gpt", "value": "a", "weight": 1}]
    row = {"message": json.dumps(message, **spell), "input_img": None}
    record = base64_parquet.from_row(row, "r:0")
    assert {name: base64_parquet.to_row(record)[name] for name in row} == row
    found = json.loads(base64_parquet.to_row(edited(record, "new"))["message"])
    assert [turn["value"] for turn in found] == ["new", "a"]


def test_half_surrogates_of_foreign_lines_survive_us(tmp_path):
    line = r'{"message": [{"from": "human", "value": "bad \ud800"}, {"from": "gpt", "value": "a"}]}' + "\n"
    (tmp_path / "a.jsonl").write_text(line)
    records = list(unimedvl_jsonl.read(tmp_path / "a.jsonl", tmp_path))
    with pytest.raises(ValueError, match=r"message\[0\].value: expected text that UTF-8 can hold"):
        records[0].validate()
    unimedvl_jsonl.write(records, tmp_path / "again.jsonl", tmp_path)
    assert (tmp_path / "again.jsonl").read_text() == line


def test_spellings_of_json_text_are_distinguished():
    value = {"ü": [1, 2.5, None]}
    for spelling in ([False, False], [True, False], [False, True], [True, True]):
        assert extra_fields.spelling_of(extra_fields.spelled(value, spelling), value) == spelling
    assert extra_fields.spelling_of(json.dumps(value, indent=1), value) is None
