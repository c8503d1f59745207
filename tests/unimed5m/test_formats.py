"""Round trips with the four foreign layouts: ours there and back, theirs here and back, both exactly."""

import base64
import json

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unimed5m.mini_folder import drawing
from tests.unimed5m.test_schema import VARIANTS
from unimedvl.unimed5m.formats import bagel, base64_parquet, extra_fields, llava, unimedvl_jsonl
from unimedvl.unimed5m.schema import Turn

PNG, JPEG = drawing(1), drawing(2, color=True, kind="JPEG")


def test_our_records_survive_the_authors_files(tmp_path, mini_records):
    records = [*mini_records, *VARIANTS]
    assert unimedvl_jsonl.write(records, tmp_path / "a.jsonl", tmp_path) == len(records)
    assert list(unimedvl_jsonl.read(tmp_path / "a.jsonl", tmp_path)) == records


def test_our_records_survive_the_released_parquet(tmp_path, mini_records):
    records = [*mini_records, *VARIANTS]
    assert base64_parquet.write(records, tmp_path / "r.parquet") == len(records)
    assert list(base64_parquet.read(tmp_path / "r.parquet")) == records


def test_our_records_survive_llava(tmp_path, mini_records):
    records = [record for record in [*mini_records, *VARIANTS] if llava.fits(record)]
    assert {"vqa", "report", "dialogue"} <= {record.sub_task_type for record in records}
    assert llava.write(records, tmp_path / "l.jsonl", tmp_path) == len(records)
    assert list(llava.read(tmp_path / "l.jsonl", tmp_path)) == records
    with pytest.raises(ValueError, match="expected no output image"):
        llava.write([record for record in mini_records if record.output_img], tmp_path / "l.jsonl", tmp_path)


@pytest.mark.parametrize(
    "layout, tasks",
    [
        (bagel.TEXT_TO_IMAGE, {"text_to_image", "planned_text_to_image"}),
        (bagel.EDITING, {"segmentation", "super_resolution", "cross_modal", "counterfactual", "virtual_staining"}),
    ],
)
def test_our_records_survive_bagel(tmp_path, mini_records, layout, tasks):
    records = [record for record in mini_records if bagel.layout_of(record) == layout]
    assert tasks <= {record.sub_task_type for record in records}
    path = tmp_path / "b.parquet"
    bagel.write(records, path, layout)
    assert list(bagel.read(path, layout)) == records
    row = parquet.read_table(path).to_pylist()[0]
    if layout == bagel.TEXT_TO_IMAGE:
        assert row["image"] == records[0].output_img[0].data
        assert "<image>" not in json.loads(row["captions"])["caption"]
    else:
        assert row["image_list"] == [records[0].input_img[0].data, records[0].output_img[0].data]
        assert "<image>" not in row["instruction_list"][0][0]
    assert bagel.describe([path]) == {str(path): {"num_rows": len(records), "num_row_groups": -(-len(records) // 100)}}
    with pytest.raises(ValueError, match="expected one output image"):
        bagel.to_row(next(record for record in mini_records if not record.output_img), layout)


def test_the_authors_loaders_find_what_they_read(tmp_path, mini_records):
    """Their editing loader joins paths to a folder and takes whole turns as text, placeholders included."""
    unimedvl_jsonl.write(mini_records, tmp_path / "a.jsonl", tmp_path)
    for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        for entry in item["input_img"] + item["output_img"]:
            assert (tmp_path / entry["path"].lstrip("/")).is_file()
        places = sum(turn["value"].count("<image>") for turn in item["message"])
        assert places == (0 if item["output_img"] else len(item["input_img"]))


# What the authors' examples look like, and what else may be found in such files.
AUTHORS = [
    {
        "main_task_type": "image_generation",
        "sub_task_type": "medical_vqa",
        "dataset": "CFP_clean",
        "input_img": [{"path": "/in/a.png", "height": 48, "width": 64, "score": 0.5}],
        "output_img": [{"path": "out/b.jpeg"}],
        "message": [{"from": "human", "value": "Make it."}, {"from": "gpt", "value": "Here.", "weight": None}],
        "clip": 1,
        "nested": {"b": [1, 1.0, True, None], "a": "é"},
    },
    {"message": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "input_img": None},
    {
        "id": 7,
        "modality": "CXR",
        "input_img": [{"width": 1, "height": 2, "path": "/in/a.png"}],
        "message": [{"value": "<image> q", "from": "human"}, {"from": "gpt", "value": "a"}],
    },
]


def test_the_authors_files_survive_us(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for name, data in (("in/a.png", PNG), ("out/b.jpeg", JPEG)):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_bytes(data)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in AUTHORS)
    (theirs / "a.jsonl").write_text(lines, encoding="utf-8")
    records = list(unimedvl_jsonl.read(theirs / "a.jsonl", theirs))
    records[0].validate()
    assert records[0].input_img[0].data == PNG
    assert records[0].output_img[0].height == 48
    assert [record.main_task_type for record in records[1:]] == ["text_only", "image_understanding"]
    unimedvl_jsonl.write(records, ours / "a.jsonl", ours)
    assert (ours / "a.jsonl").read_text(encoding="utf-8") == lines
    assert (ours / "in/a.png").read_bytes() == PNG and (ours / "out/b.jpeg").read_bytes() == JPEG
    # Without images: paths only, still exact.
    records = list(unimedvl_jsonl.read(theirs / "a.jsonl", tmp_path, images=False))
    unimedvl_jsonl.write(records, ours / "paths.jsonl", ours)
    assert (ours / "paths.jsonl").read_text(encoding="utf-8") == lines


@pytest.mark.parametrize("path", ["../secret.png", "/../../secret.png", "missing.png", ""])
def test_image_paths_stay_below_their_folder(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(PNG)
    folder = tmp_path / "data"
    folder.mkdir()
    item = {"input_img": [{"path": path}], "message": []}
    (folder / "a.jsonl").write_text(json.dumps(item), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: expected"):
        list(unimedvl_jsonl.read(folder / "a.jsonl", folder))
    outside = list(unimedvl_jsonl.read(folder / "a.jsonl", folder, images=False))[0]
    image = type(outside.input_img[0])(PNG, "../outside.png", 48, 64)
    with pytest.raises(ValueError, match="expected an image path below"):
        unimedvl_jsonl.write([outside.replace(input_img=(image,))], tmp_path / "b.jsonl", folder)


ENCODED = base64.b64encode(PNG).decode()
RELEASED = [
    {"input_img": [{"path": "a.png", "height": 48, "width": 64, "base64": ENCODED}], "output_img": []},
    {"input_img": [{"path": "a.png", "bytes": PNG, "note": "x"}], "output_img": None},
    {"input_img": json.dumps([{"path": "a.png", "image": ENCODED}]), "output_img": json.dumps([])},
    {"input_img": json.dumps([{"path": "é.png", "image": ENCODED}], ensure_ascii=False), "output_img": "[]"},
    {"input_img": [f"data:image/png;base64,{ENCODED}"], "output_img": [ENCODED]},
    {"input_img": [{"path": "gone.png", "height": 5, "width": 6}], "output_img": []},
]


@pytest.mark.parametrize("images", RELEASED)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_released_parquet_survives_us(tmp_path, images, as_text):
    message = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = {"index": 3, "modality": "CT", "message": json.dumps(message) if as_text else message, **images}
    row |= {"score": 0.1 + 0.2, "raw": b"\x00\xff"}
    table = pyarrow.Table.from_pylist([row, row])
    parquet.write_table(table, tmp_path / "theirs.parquet")
    records = list(base64_parquet.read(tmp_path / "theirs.parquet"))
    assert len({record.id for record in records}) == 2
    assert records[0].message == (Turn("human", "q"), Turn("gpt", "a"))
    if "gone" not in str(images):
        assert records[0].input_img[0].data == PNG
    # The image is not stored a second time in what is remembered.
    assert len(records[0].extra) < 1000
    base64_parquet.write(records, tmp_path / "ours.parquet", table.schema)
    assert parquet.read_table(tmp_path / "ours.parquet").equals(table)


LLAVA = [
    {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nq"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": 5},
    {"image": ["a.png", "a.png"], "conversations": [], "model": ""},
]


def test_llava_files_survive_us(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    lines = "".join(json.dumps(item) + "\n" for item in LLAVA)
    (tmp_path / "l.jsonl").write_text(lines)
    records = list(llava.read(tmp_path / "l.jsonl", tmp_path, "medical"))
    assert [len(record.input_img) for record in records] == [1, 0, 2]
    llava.write(records, tmp_path / "again.jsonl", tmp_path / "again")
    assert (tmp_path / "again.jsonl").read_text() == lines


@pytest.mark.parametrize(
    "layout, rows",
    [
        (
            bagel.TEXT_TO_IMAGE,
            [
                {"image": PNG, "captions": json.dumps({"long": "A scan of a head.", "short": "Head."}), "key": "1"},
                {"image": JPEG, "captions": "{}", "key": None},
            ],
        ),
        (
            bagel.EDITING,
            [
                {"image_list": [PNG, JPEG], "instruction_list": [["Do it.", "Please do it."]], "seed": 4},
                {"image_list": [PNG, JPEG, PNG], "instruction_list": [["Do it."], ["Undo it."]], "seed": 5},
            ],
        ),
    ],
)
def test_bagel_files_survive_us(tmp_path, layout, rows):
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "theirs.parquet")
    records = list(bagel.read(tmp_path / "theirs.parquet", layout))
    for record in records:
        record.validate()
    bagel.write(records, tmp_path / "ours.parquet", layout, table.schema)
    assert parquet.read_table(tmp_path / "ours.parquet").equals(table)


def test_a_text_that_was_edited_in_a_foreign_file_is_read(tmp_path, mini_records):
    record = next(record for record in mini_records if record.sub_task_type == "segmentation")
    row = bagel.to_row(record, bagel.EDITING) | {"instruction_list": [["Mark it."]]}
    edited = bagel.from_row(row, bagel.EDITING, "x", "x")
    edited.validate()
    assert edited.message == (Turn("human", "<image>\nMark it."), record.message[1])
    value = unimedvl_jsonl.to_object(record, tmp_path)
    value["message"][1]["value"] = "There."
    edited = unimedvl_jsonl.from_object(value, tmp_path, "x")
    edited.validate()
    assert edited.message[1] == Turn("gpt", "There.")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_any_value_is_restored_from_any_other(original, reproduced):
    """Also through JSON, where it is stored; repr distinguishes 1 from 1.0 and True, and holds the order of keys."""
    patch = json.loads(json.dumps(extra_fields.difference(original, reproduced)))
    assert repr(extra_fields.patched(patch, reproduced)) == repr(original)


@pytest.mark.parametrize("line", ["[]", "{", '"text"', '{"message": 3}', '{"input_img": [{}]}'])
def test_lines_that_are_no_record_are_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text("\n" + line)
    with pytest.raises(ValueError, match="line 2"):
        list(unimedvl_jsonl.read(tmp_path / "a.jsonl", tmp_path))
