"""The record: validation names the field, rows and tables keep every value, `datasets` reads the columns."""

import io

import datasets
import numpy
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from unimedvl.unimed5m.schema import (
    ARROW_SCHEMA,
    FEATURES,
    Quality,
    Record,
    RecordImage,
    Turn,
    features,
    from_table,
    record_id,
    to_table,
)
from unimedvl.unimed5m.trainable import check_trainable


def png(value: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numpy.full((4, 6), value, dtype=numpy.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def record(**changes) -> Record:
    values = {
        "id": record_id("source", "1", "vqa"),
        "main_task_type": "image_understanding",
        "sub_task_type": "vqa",
        "modality": "CT",
        "dataset": "source",
        "input_img": (RecordImage(png(), "a.png", 4, 6),),
        "output_img": (),
        "message": (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A scan.")),
        "license": "CC0",
        "license_tier": "A",
        "redistributable": "yes",
        "provenance": "here",
        "split": "train",
        "group_id": "source/1",
    }
    return Record(**(values | changes))


VARIANTS = [
    record(),
    record(quality=Quality(0.25, 0.5, 0.625, "modality")),
    record(input_img=(RecordImage(None, "b.png", 0, 0, "ab" * 32),)),
    record(
        main_task_type="text_only",
        input_img=(),
        message=(Turn("human", "q"), Turn("gpt", "a"), Turn("human", "ü"), Turn("gpt", "b")),
        synthetic=True,
        extra='{"label": "é"}',
    ),
    record(
        output_img=(RecordImage(png(9), "c.png", 4, 6),), message=(Turn("human", "q"), Turn("gpt", "<image> done"))
    ),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_valid_records_pass_and_survive_a_row(variant):
    variant.validate()
    assert Record.from_row(variant.to_row()) == variant


def test_a_table_and_a_file_keep_every_value(tmp_path):
    table = to_table(VARIANTS)
    assert table.schema == ARROW_SCHEMA
    assert from_table(table) == VARIANTS
    parquet.write_table(table, tmp_path / "records.parquet")
    assert from_table(parquet.read_table(tmp_path / "records.parquet")) == VARIANTS


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_columns(tmp_path, streaming):
    parquet.write_table(to_table(VARIANTS), tmp_path / "records.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "records.parquet"), cache_dir=str(tmp_path / "cache"), streaming=streaming
    )["train"]
    assert loaded.features == FEATURES
    assert next(iter(loaded))["input_img"][0]["image"].size == (6, 4)
    raw = loaded.cast(features(decode=False))
    assert [Record.from_row(row) for row in raw] == VARIANTS


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"id": ""}, "id"),
        ({"main_task_type": "vqa"}, "main_task_type"),
        ({"split": "dev"}, "split"),
        ({"license": ""}, "license"),
        ({"group_id": ""}, "group_id"),
        ({"provenance": None}, "provenance"),
        ({"message": ()}, "message"),
        ({"message": (Turn("human", "q"),)}, "message"),
        ({"message": (Turn("tool", "q"), Turn("gpt", "a"))}, "message[0].from"),
        ({"message": (Turn("system", "q"), Turn("gpt", "a"))}, "message"),
        ({"message": (Turn("system", "<image>"), Turn("human", "q"), Turn("gpt", "a"))}, "message[0].value"),
        ({"message": (Turn("human", "<image><image> q"), Turn("gpt", "a"))}, "message"),
        ({"message": (Turn("human", "<image> q"), Turn("gpt", "a <image>"))}, "message"),
        ({"input_img": (RecordImage(png(), "a.png", 0, 6),)}, "input_img[0]"),
        ({"input_img": (RecordImage(png(), "a.png", 4, 6, "00"),)}, "input_img[0].sha256"),
        ({"input_img": (RecordImage(None, "", 4, 6),)}, "input_img[0]"),
        ({"main_task_type": "text_only"}, "input_img"),
        ({"content_hash": "0" * 64}, "content_hash"),
        ({"extra": "[]"}, "extra"),
        ({"extra": "{"}, "extra"),
    ],
)
def test_an_invalid_record_is_named_by_its_field(changes, field):
    with pytest.raises(ValueError, match="expected") as error:
        record(**changes).validate()
    assert f": {field}: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, place",
    [
        ({"message": (Turn("human", "<image>\n"), Turn("gpt", "a"))}, 0),
        ({"message": (Turn("human", "q"), Turn("gpt", " "))}, 1),
        ({"message": (Turn("system", ""), Turn("human", "q"), Turn("gpt", "a"))}, 0),
        ({"message": (Turn("human", "q"), Turn("gpt", "")), "output_img": (RecordImage(png(), "b.png", 4, 6),)}, None),
    ],
)
def test_f13_a_turn_that_says_nothing_is_named(changes, place):
    made = record(**changes)
    made.validate()
    if place is None:
        check_trainable(made)
    else:
        with pytest.raises(ValueError, match=rf"message\[{place}\].value: expected a text of"):
            check_trainable(made)


def test_a_row_with_other_columns_or_decoded_images_is_refused():
    row = record().to_row()
    with pytest.raises(ValueError, match="unknown"):
        Record.from_row(row | {"more": 1})
    row["input_img"][0]["image"] = Image.new("L", (6, 4))
    with pytest.raises(ValueError, match="decode=False"):
        Record.from_row(row)


def test_ids_and_content_hashes_are_stable_and_telling():
    # Fixed values: records that were published must keep their names.
    assert record_id("source", "1", "vqa") == "bfbbd1db7c3fa01ff90e9471"
    assert record_id("source", "1", "vqa", "2") != record_id("source", "12", "vqa", "")
    same = record(split="test", license="other", extra='{"a": 1}', id="x", group_id="y")
    assert same.content_hash == record().content_hash
    for changes in (
        {"message": (Turn("human", "<image>\nWhat is that?"), Turn("gpt", "A scan."))},
        {"input_img": (RecordImage(png(8), "a.png", 4, 6),)},
        {"sub_task_type": "diagnosis"},
    ):
        assert record(**changes).content_hash != record().content_hash
    assert record().replace(message=record().message[::-1]).content_hash != record().content_hash
