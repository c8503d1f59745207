"""Words about an image: facts of the source, measured looks, and the grade from which a patient is referred."""

import numpy
import pytest

from examples.nano.captions import (
    GRADES,
    detailed_prompt,
    finding_of,
    grade_of,
    label_of,
    look_of,
    plain_prompt,
    referable,
    tone_of,
)
from examples.nano.not_medical import not_medical_images, packaged_images
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.task_images import drawn_image, pixels_of


def record(dataset, modality, **extra):
    origin = tasks.Origin(dataset, "one", "one", "train", modality, "CC0-1.0", "yes", "made", extra=extra)
    return tasks.text_to_image(origin, drawn_image(numpy.zeros((8, 8), dtype=numpy.uint8), "a.png"), "an image")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("no apparent retinopathy; macular edema risk 0", False),
        ("mild NPDR and macular edema risk 0", False),
        ("moderate NPDR; macular edema risk 1", True),
        ("proliferative DR", True),
        ("glaucoma", None),
        ("", None),
    ],
)
def test_moderate_retinopathy_and_more_is_referable(label, expected):
    assert referable(label) is expected


def test_grades_are_in_order():
    assert [grade_of(f"{grade}; macular edema risk 2") for grade in GRADES] == [0, 1, 2, 3, 4]


def test_labels_of_acquisitions_and_labels_that_may_hold_together_are_no_findings():
    assert label_of("bccd", {"label": "RBC: 3; WBC: 1"}) == ""
    assert label_of("idrid", {"label": "severe NPDR; macular edema risk 2"}) == "severe NPDR"
    assert finding_of(record("covid-chestxray", "CXR", label="ARDS")) == ""
    assert finding_of(record("tcia-brain-tumor-progression", "MRI", label="T2")) == ""
    assert finding_of(record("nih-chestxray14-subset", "CXR", label="pneumonia")) == "pneumonia"


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((128, 128, 128), "gray"),
        ((200, 40, 40), "red"),
        ((220, 140, 40), "orange"),
        ((40, 160, 40), "green"),
        ((40, 40, 200), "blue"),
        ((220, 60, 160), "pink"),
        ((120, 60, 200), "violet"),
    ],
)
def test_tones_are_named_as_people_name_them(color, expected):
    assert tone_of(numpy.array(color, dtype=float)) == expected


def test_looks_are_measured():
    dark = numpy.zeros((8, 8), dtype=numpy.uint8)
    assert look_of(dark) == "dark, low contrast, gray"
    halves = dark.copy()
    halves[:4] = 255
    assert look_of(halves) == "of medium brightness, high contrast, gray"
    assert look_of(numpy.full((8, 8, 3), (250, 200, 200), dtype=numpy.uint8)) == "bright, low contrast, red"


def test_a_detailed_request_names_every_fact_once():
    facts = {"submodality": "abdominal CT", "anatomy": "abdomen", "plane": "axial"}
    black = numpy.zeros((8, 8), dtype=numpy.uint8)
    text = detailed_prompt(record("totalsegmentator-example", "CT", **facts), facts, black)
    assert text == "a CT image: abdominal CT, abdomen, axial plane; dark, low contrast, gray."
    film = {"submodality": "chest radiograph", "anatomy": "chest", "plane": "L"}
    assert "chest radiograph, lateral view;" in detailed_prompt(record("covid-chestxray", "CXR", **film), film, black)
    crop = {"submodality": "T1 MRI, hippocampus crop", "anatomy": "hippocampus", "plane": "array axis 1"}
    assert "array" not in detailed_prompt(record("msd-hippocampus", "MRI", **crop), crop, black)
    facts = {
        "submodality": "color fundus photograph",
        "anatomy": "retina",
        "label": "mild NPDR; macular edema risk 0",
    }
    text = detailed_prompt(record("idrid", "CFP", **facts), facts, black)
    assert "labeled mild NPDR and macular edema risk 0" in text and text.startswith("a fundus photograph: ")
    assert "labeled" not in detailed_prompt(record("bccd", "HIS", label="RBC: 3"), {"label": "RBC: 3"}, black)


def test_plain_requests_name_the_modality_and_at_most_one_fact():
    facts = {"label": "severe NPDR; macular edema risk 2", "anatomy": "retina"}
    text = plain_prompt(record("idrid", "CFP", **facts), facts).lower()
    assert text.startswith("a fundus photograph") and "edema" not in text


def test_packaged_and_drawn_images_are_new_ones_and_those_of_tests_are_left_out():
    train, held_out = (list(not_medical_images(32, split)) for split in ("train", "validation"))
    names = [origin.original_id for origin, _ in train + held_out]
    assert len(set(names)) == len(names) > 400 and len(held_out) > 20
    assert not {origin.group_id for origin, _ in train} & {origin.group_id for origin, _ in held_out}
    shown = {name for name, *_ in packaged_images()}
    assert len(shown) > 10
    for word in ("astronaut", "coffee", "chelsea", "cat", "retina", "ihc", "microaneurysms", "cell", "phantom"):
        assert not any(word in name.partition("/")[2].partition(".")[0].split("_") for name in shown), word
    pixels = [pixels_of(image) for _, image in train]
    assert all(image.shape[:2] == (32, 32) for image in pixels)
    assert len({image.tobytes() for image in pixels}) > 0.95 * len(pixels)
    again = next(iter(not_medical_images(32, "train")))
    assert again[1].sha256 == train[0][1].sha256
