"""Templates and task construction: enough phrasings, stable choices, block order, images as they are described."""

import io
import json
import re

import numpy
import pytest
from PIL import Image

from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.planning import CaptionAugmenter, TransformersWriter, plan_from_facts, rewrite
from unimedvl.unimed5m.sentences import article
from unimedvl.unimed5m.task_images import (
    draw_lesion,
    drawn_image,
    lower_resolution,
    pixels_of,
    stored_image,
)
from unimedvl.unimed5m.templates import LIBRARY, MINIMUM, choose

ORIGIN = tasks.Origin(
    dataset="source",
    original_id="case 1",
    group_id="source/patient 1",
    split="train",
    modality="MRI",
    license="CC0",
    redistributable="yes",
    provenance="drawn",
    description="brain MRI",
    extra={"site": "head"},
)
GRAY = numpy.add.outer(numpy.arange(64), 2 * numpy.arange(80)).astype(numpy.uint8)
IMAGE = drawn_image(GRAY, "case.png")
OTHER = drawn_image(GRAY[::-1].copy(), "other.png")


# Answers that are the source's own text, and phrasings that exist for one side only.
OWN_ANSWERS = {
    "vqa",
    "vqa_images",
    "multiple_choice",
    "caption",
    "caption_images",
    "report",
    "clinical_note",
    "reasoning",
    "planned_text_to_image",
    "writing",
    "dialogue",
    "counterfactual",
}
ANSWERS_ONLY = {"facts", "plan"}


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_every_side_has_enough_different_phrasings(name):
    library = LIBRARY[name]
    for side, absent in (("human", ANSWERS_ONLY), ("gpt", OWN_ANSWERS)):
        phrasings = getattr(library, side)
        if name in absent:
            assert not phrasings
        else:
            assert len({phrasing.lower() for phrasing in phrasings}) == len(phrasings) >= MINIMUM
    values = {field: f"({field})" for field in library.fields()}
    for side in ("human", "gpt"):
        for phrasing in getattr(library, side):
            assert "{" not in phrasing.format(**values)


def test_phrasings_agree_with_one_image_or_several_and_with_any_target():
    several = re.compile(r"\b(this|the) (image|image)\b", re.IGNORECASE)
    for name in ("vqa_images", "caption_images"):
        assert not [phrasing for phrasing in LIBRARY[name].human if several.search(phrasing)]
    many = tasks.vqa(ORIGIN, [IMAGE, OTHER], "What changed?", "Nothing.")
    assert many.message[0].value.removeprefix("<image><image>\n") in {
        phrasing.format(question="What changed?") for phrasing in LIBRARY["vqa_images"].human
    }
    # Targets may be plural: "the kidneys".
    for phrasing in LIBRARY["segmentation"].human + LIBRARY["segmentation"].gpt:
        assert not re.search(r"^(Where|What) is the \{target\}|^The \{target\} (is|has|was)\b", phrasing)


def test_notes_are_asked_for_as_notes():
    asked = {tasks.report(ORIGIN, [IMAGE], "Fever.", str(index), note=True).message[0].value for index in range(99)}
    assert len(asked) == len(LIBRARY["clinical_note"].human)
    assert not [text for text in asked if "report" in text]


def test_phrasings_are_chosen_by_id_and_all_of_them_occur():
    def chosen(index: int) -> str:
        return choose("segmentation", "human", f"id {index}", target="liver", description="CT")

    assert [chosen(index) for index in range(400)] == [chosen(index) for index in range(400)]
    assert len({chosen(index) for index in range(400)}) == len(LIBRARY["segmentation"].human)
    # Fixed: a published record must not change its words.
    assert chosen(1) == "Where do you see the liver? Answer with a mask."


def built() -> dict[str, tasks.Record]:
    classes = numpy.zeros(GRAY.shape, numpy.uint8)
    classes[:20, :30] = 2
    plan = plan_from_facts("key", "a brain MRI", "MRI", [("anatomy", "brain")])
    return {
        "vqa": tasks.vqa(ORIGIN, [IMAGE, OTHER], "Same <image> patient?", " yes "),
        "multiple_choice": tasks.multiple_choice(ORIGIN, [IMAGE], "Which?", ["T1", "T2"], 1),
        "diagnosis": tasks.diagnosis(ORIGIN, IMAGE, "glioma"),
        "presence": tasks.presence(ORIGIN, IMAGE, "glioma", "no tumor", False),
        "count": tasks.count(ORIGIN, IMAGE, "ventricles", 4),
        "acquisition": tasks.acquisition(ORIGIN, IMAGE, "plane", "axial"),
        "reasoning": tasks.reasoning(ORIGIN, [IMAGE], "What?", "First this.", "That."),
        "reasoning in words": tasks.reasoning(ORIGIN, [], "What?", "First this.", "That."),
        "caption": tasks.caption(ORIGIN, [IMAGE], "A brain."),
        "report": tasks.report(ORIGIN, [IMAGE], "No finding."),
        "text_to_image": tasks.text_to_image(ORIGIN, IMAGE, "A brain."),
        "planned_text_to_image": tasks.planned_text_to_image(ORIGIN, IMAGE, plan),
        "dialogue": tasks.dialogue(ORIGIN, "What is fever?", "A raised temperature."),
        "note": tasks.note_dialogue(ORIGIN, "Fever and cough.", "influenza"),
        "writing": tasks.writing_dialogue(ORIGIN, [("anatomy", "brain")], "A brain."),
        "segmentation": tasks.segmentation(ORIGIN, IMAGE, classes, [2], "ventricle"),
        "sampled": tasks.segmentation(ORIGIN, IMAGE, classes, [2], "ventricle", sampled=True),
        "super_resolution": tasks.super_resolution(ORIGIN, IMAGE, 4, "k-space"),
        "restoration": tasks.restoration(ORIGIN, IMAGE, OTHER, "an averaged scan"),
        "virtual_staining": tasks.virtual_staining(ORIGIN, IMAGE, OTHER, "HER2 IHC"),
        "cross_modal": tasks.cross_modal(ORIGIN, IMAGE, OTHER, "T1", "T2"),
        "counterfactual": tasks.counterfactual(ORIGIN, IMAGE, "Add fluid.", OTHER, "Fluid is new."),
        "added": tasks.synthetic_counterfactual(ORIGIN, IMAGE, removed=False),
        "removed": tasks.synthetic_counterfactual(ORIGIN, IMAGE, removed=True),
    }


@pytest.mark.parametrize("name", sorted(built()))
def test_every_task_gives_a_valid_and_repeatable_record(name):
    record = built()[name]
    record.validate()
    assert record == built()[name]
    assert "{" not in record.text()
    assert json.loads(record.extra)["site"] == "head"
    for field in ("dataset", "group_id", "split", "license", "modality"):
        assert getattr(record, field) == getattr(ORIGIN, field)


def test_source_text_is_kept_and_placeholders_match_the_images():
    records = built()
    assert records["vqa"].message[0].value.startswith("<image><image>\n")
    assert "Same  patient?" in records["vqa"].message[0].value
    assert records["vqa"].message[1].value == "yes"
    assert records["report"].message[1].value == "No finding."
    assert records["multiple_choice"].message[1].value == "B"
    assert records["reasoning"].message[1].value == "<think>First this.</think>\nThat."
    assert records["reasoning in words"].main_task_type == "text_only"


@pytest.mark.parametrize(
    "name, first",
    [
        ("text_to_image", False),
        ("planned_text_to_image", False),
        ("segmentation", False),
        ("sampled", True),
        ("super_resolution", False),
        ("restoration", False),
        ("virtual_staining", False),
        ("cross_modal", True),
        ("counterfactual", True),
        ("added", True),
    ],
)
def test_the_image_stands_where_the_task_puts_it(name, first):
    answer = built()[name].message[1].value
    assert answer.startswith("<image>\n") is first
    assert answer.endswith("\n<image>") is not first


def test_the_source_decides_over_the_task():
    assert tasks.image_first("brats2023", "segmentation")
    assert not tasks.image_first("vl-health", "cross_modal", sampled=True)


def test_masks_are_black_and_white_per_class():
    record = built()["segmentation"]
    mask = pixels_of(record.output_img[0])
    assert set(numpy.unique(mask)) == {0, 255}
    assert (mask == 255).sum() == 20 * 30
    assert json.loads(record.extra)["area"] == pytest.approx(600 / GRAY.size, abs=1e-6)
    with pytest.raises(ValueError, match="expected a mask of 64x80 like its image, found 5x5"):
        tasks.segmentation(ORIGIN, IMAGE, numpy.zeros((5, 5)), [1], "ventricle")


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("method", ["bicubic", "k-space"])
@pytest.mark.parametrize("shape", [(64, 80), (63, 41), (40, 40, 3)])
def test_lower_resolution_keeps_the_grid_and_removes_detail(scale, method, shape):
    noise = numpy.random.default_rng(0).integers(0, 255, size=shape, dtype=numpy.uint8)
    coarse = lower_resolution(noise, scale, method)
    assert coarse.shape == noise.shape and coarse.dtype == numpy.uint8
    assert coarse.std() < 0.75 * noise.std()
    flat = numpy.full(shape, 90, numpy.uint8)
    assert numpy.array_equal(lower_resolution(flat, scale, method), flat)


def test_k_space_truncation_keeps_low_frequencies_exactly_and_drops_high_ones():
    x = numpy.arange(64)
    low = 100 + 40 * numpy.cos(2 * numpy.pi * 3 * x / 64)
    high = 20 * numpy.cos(2 * numpy.pi * 20 * x / 64)
    image = numpy.rint(numpy.tile(low + high, (64, 1))).astype(numpy.uint8)
    assert numpy.abs(lower_resolution(image, 4, "k-space").astype(float) - low).max() <= 1.5


def test_a_drawn_lesion_changes_one_place_and_says_so():
    altered, place = draw_lesion(GRAY, 5, bright=True)
    changed = numpy.argwhere(altered != GRAY)
    assert 0 < len(changed) < 0.2 * GRAY.size
    row, column = changed.mean(axis=0)
    sides = {("upper", "", "lower")[int(3 * row / 64)], ("left", "", "right")[int(3 * column / 80)]} - {""}
    assert set(place.split()) & {"upper", "lower", "left", "right"} == sides
    for name in ("added", "removed"):
        record = built()[name]
        assert record.synthetic
        assert "synthetic" in record.provenance and "synthetic" in json.loads(record.extra)
        assert all("artificial" in turn.value for turn in record.message)
    assert built()["added"].input_img[0] == IMAGE
    assert built()["removed"].output_img[0] == IMAGE
    with pytest.raises(ValueError, match="32x32"):
        draw_lesion(GRAY[:20], 0, bright=False)


@pytest.mark.parametrize("bright", [True, False])
def test_a_drawn_lesion_can_be_seen(bright):
    # Bright tissue on the left, dark tissue on the right.
    image = numpy.tile(numpy.where(numpy.arange(80) < 40, 215, 40).astype(numpy.uint8), (64, 1))
    for seed in range(20):
        altered, _ = draw_lesion(image, seed, bright=bright)
        assert numpy.abs(altered.astype(int) - image).max() >= 40


def test_gray_levels_beyond_8_bits_are_windowed():
    buffer = io.BytesIO()
    Image.fromarray(numpy.arange(0, 64 * 64 * 16, 16, dtype=numpy.uint16).reshape(64, 64)).save(buffer, format="PNG")
    pixels = pixels_of(stored_image(buffer.getvalue(), "deep.png"))
    assert pixels.shape == (64, 64) and pixels.dtype == numpy.uint8
    assert pixels.min() == 0 and pixels.max() == 255 and 100 < pixels.mean() < 155


def test_images_that_are_none_are_refused():
    with pytest.raises(ValueError, match="expected an image"):
        stored_image(b"no image", "x.png")
    buffer = io.BytesIO()
    Image.new("P", (5, 4)).save(buffer, format="PNG")
    assert pixels_of(stored_image(buffer.getvalue(), "palette.png")).shape == (4, 5, 3)


def test_articles_agree_with_what_fills_a_phrasing():
    fields = {"modality": "MRI", "Modality": "MRI", "description": "ultrasound", "Description": "Ultrasound"}
    fields |= {"origin": "FLAIR", "target": "MRI", "kind": "finding", "where": "", "finding": ""}
    texts = [
        choose(name, side, str(key), **fields)
        for name, side in [("facts", "gpt"), ("plan", "gpt"), ("cross_modal", "human"), ("cross_modal", "gpt")]
        for key in range(200)
    ]
    wrong = re.compile(r"\b(a (MRI|ultrasound)|an FLAIR)\b", re.IGNORECASE)
    assert not [text for text in texts if wrong.search(text)]
    assert any("an MRI" in text for text in texts) and any("a FLAIR" in text for text in texts)


@pytest.mark.parametrize("noun, word", [("MRI", "an"), ("CT", "a"), ("SD-OCT B-scan", "an"), ("FLAIR image", "a")])
def test_articles(noun, word):
    assert article(noun) == word


class Scripted:
    """A writer whose answers are fixed; the augmenter takes it for a model."""

    def __init__(self, *answers: str):
        self.answers = list(answers)
        self.prompts: list[str] = []

    def write(self, prompt, images):
        self.prompts.append(prompt)
        return self.answers.pop(0)


def test_captions_are_augmented_in_three_steps():
    fused = "Please generate a realistic MRI image showing a brain."
    writer = Scripted(
        "A brain.", fused, "<think>Show it.</think>\nHere is the generated MRI image that displays:\n- a"
    )
    plan = CaptionAugmenter(writer).plan(IMAGE, "brain, axial", "MRI")
    assert plan.prompt == fused
    assert "brain, axial" in writer.prompts[1] and fused in writer.prompts[2]
    record = tasks.planned_text_to_image(ORIGIN, IMAGE, plan)
    record.validate()
    assert record.message[1].value.startswith("<think>Show it.</think>\n")


@pytest.mark.parametrize(
    "answers", [("d", "A brain.", ""), ("d", "Please generate a realistic MRI image showing x", "-")]
)
def test_a_writer_that_leaves_the_form_is_refused(answers):
    with pytest.raises(ValueError, match="expected"):
        CaptionAugmenter(Scripted(*answers)).plan(IMAGE, "brain", "MRI")


def test_templates_are_rewritten_around_the_images():
    record = built()["virtual_staining"]
    rewritten = rewrite(record, Scripted("Show it with HER2 IHC.", " Done,\nas HER2 IHC. "))
    rewritten.validate()
    assert [turn.value for turn in rewritten.message] == [
        "<image>\nShow it with HER2 IHC.",
        "Done, as HER2 IHC.\n<image>",
    ]
    assert json.loads(rewritten.extra)["template"] == [turn.value for turn in record.message]
    assert (rewritten.id, rewritten.output_img) == (record.id, record.output_img)
    with pytest.raises(ValueError, match="expected a rewritten sentence"):
        rewrite(record, Scripted("", ""))
    with pytest.raises(ValueError, match="expected a templated task"):
        rewrite(built()["report"], Scripted("x"))


def test_a_model_of_transformers_writes(tmp_path):
    tiny_checkpoint(tmp_path)
    writer = TransformersWriter(str(tmp_path), max_new_tokens=3, trust_remote_code=True)
    assert IMAGE.data is not None
    assert writer.write("Describe.", [IMAGE.data]) == writer.write("Describe.", [IMAGE.data])
    assert isinstance(writer.write("Rewrite.", []), str)
