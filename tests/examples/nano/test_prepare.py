"""What a nano learns from: which records are left out, and their images, answers and conversations."""

import dataclasses
import json

import numpy
import pytest
import torch

from examples.nano import (
    evaluate,
    prepare,
    tokenizer,
)
from tests.examples.nano.conftest import drawn
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.unimed5m.templates.words import MODALITY_NAMES


def training_records(work):
    (path,) = (work / "records" / "data").glob("train-*.parquet")
    return [record for table in prepare.batches(path) for record in map(prepare.Record.from_row, table.to_pylist())]


def test_excluded_sources_tier_c_and_validation_are_not_read(work):
    records = training_records(work)
    read = {"hc18", "nih-chestxray14-subset", "lc25000-lung", "vqa-rad"}
    assert {record.dataset for record in records} == {*read, "not-medical"}
    assert all("validation" not in record.group_id for record in records)
    assert len({record.id for record in records}) == len(records)
    for record in records:
        record.validate()


def test_what_is_not_medical_is_said_to_be_so(work):
    records = [record for record in training_records(work) if record.dataset == "not-medical"]
    named = [record for record in records if record.sub_task_type == "modality"]
    assert {record.message[-1].value for record in named} == {"not a medical image"} and len(named) > 10
    answers = {record.message[-1].value for record in records if record.sub_task_type == "contrast"}
    assert answers == {"no", "none of these"}
    assert not any(record.output_img for record in records)


def test_images_keep_the_sides_that_the_model_reads(work):
    for record in training_records(work):
        if record.dataset == "not-medical":
            continue
        for image in (*record.input_img, *record.output_img):
            exact = record.sub_task_type == "super_resolution"
            assert (image.width, image.height) == ((96, 80) if exact else (132, 110))


def test_answers_are_short_and_images_come_without_words(work):
    for record in training_records(work):
        answer = record.message[-1].value
        if record.output_img:
            assert answer == IMAGE_PLACEHOLDER
        elif record.sub_task_type == "diagnosis":
            assert answer == json.loads(record.extra)["label"]
        elif record.sub_task_type == "modality" and record.dataset != "not-medical":
            assert answer == MODALITY_NAMES[record.modality]


def test_conversations_ask_every_question_once_in_several_orders(work):
    records = training_records(work)
    talks = [r for r in records if r.sub_task_type == "conversation" and r.dataset == "nih-chestxray14-subset"]
    assert len(talks) == 4 * prepare.CONVERSATION_ORDERS
    orders = set()
    for talk in talks:
        questions = [turn.value for turn in talk.message if turn.role == "human"]
        assert [IMAGE_PLACEHOLDER in question for question in questions] == [True] + [False] * (len(questions) - 1)
        assert 3 < len(questions) <= prepare.LONGEST_CONVERSATION and len(set(questions)) == len(questions)
        orders.add(tuple(turn.value for turn in talk.message if turn.role == "gpt"))
    assert len(orders) > 2
    single = [r for r in records if r.dataset == "lc25000-lung" and r.sub_task_type == "caption"]
    assert list(prepare.conversations(single[:1])) == []


def test_held_out_groups_are_whole_and_few(built):
    (record, *_) = prepare.read_records(built, "train")
    many = {record.dataset: {str(number) for number in range(400)}}
    chosen = [dataclasses.replace(record, group_id=str(number)) for number in range(400)]
    held = [prepare._held_out(item, many) for item in chosen]
    assert 10 <= sum(held) <= 45
    assert held == [prepare._held_out(item, many) for item in chosen]
    assert not prepare._held_out(chosen[held.index(True)], {record.dataset: {"one"}})


def test_tokenizer_round_trips_any_text(tmp_path):
    trained = tokenizer.train_tokenizer(["What imaging modality is this?", "chest X-ray"] * 9, tmp_path, 400)
    text = "Pneumothorax, 3.5 cm – µm 日本\n\tend"
    assert trained.decode(trained.encode(text)) == text
    ids = [trained.convert_tokens_to_ids(token) for token in tokenizer.SPECIAL_TOKENS]
    assert ids == list(range(len(trained) - 8, len(trained)))


def test_training_images_equal_the_processor(finished, work):
    """A record's image of the exact size is what the processor feeds the ViT and the autoencoder."""
    nano = evaluate.Nano(str(finished))
    image = drawn(3)
    shown = nano.processor.image_processor([shown_image(image)], generation_mode="image", return_tensors="pt")
    small = shown_image(prepare.small_image(image, 1.0))
    again = nano.processor.image_processor([small], generation_mode="image", return_tensors="pt")
    torch.testing.assert_close(shown["pixel_values"], again["pixel_values"], rtol=0, atol=0.02)
    assert evaluate.seen(image).size == small.size == (96, 80)


def test_a_slice_is_also_shown_in_other_windows():
    extra = {
        "source_id": "one",
        "submodality": "chest CT",
        "anatomy": "chest",
        "plane": "axial",
        "window": [-1000, 400],
    }
    origin = tasks.Origin(
        "tcga-lung-ct", "one", "one", "train", "CT", "CC0-1.0", "yes", "drawn", "chest CT", "A", extra
    )
    records = list(prepare.nano_records(tasks.text_to_image(origin, drawn(5), "a chest CT")))
    assert len({record.id for record in records}) == len(records)
    named = [record for record in records if record.sub_task_type == "modality"]
    assert len({record.input_img[0].sha256 for record in named}) == len(named) == 3
    assert {record.message[-1].value for record in named} == {MODALITY_NAMES["CT"]}
    requests = {record.message[0].value: record for record in records if record.sub_task_type == "text_to_image"}
    (lung,) = (record for text, record in requests.items() if "axial plane, lung window;" in text)
    assert lung.output_img[0].sha256 in {record.input_img[0].sha256 for record in named}
    assert sum(prepare.is_image_request(record) for record in records) == 1


@pytest.mark.parametrize(("side", "kept"), [(3, 0), (30, 1)])
def test_masks_of_which_nothing_is_left_are_no_task(side, kept):
    origin = tasks.Origin("idrid", "one", "one", "train", "CFP", "CC0-1.0", "yes", "drawn", "photograph", "A", {})
    classes = numpy.zeros((256, 384), dtype=numpy.uint8)
    classes[40 : 40 + side, 50 : 50 + side] = 1
    record = tasks.segmentation(origin, drawn(6, size=(384, 256)), classes, [1], "soft exudates")
    made = list(
        prepare.nano_records(record.replace(extra=json.dumps({"submodality": "photograph", "source_id": "1"})))
    )
    assert len(made) == kept
