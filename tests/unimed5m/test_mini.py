"""What the compact data's labels become: questions whose answers follow from the labels, and from nothing else."""

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from tests.unimed5m.mini_folder import SCHEMA, labeled_row
from unimedvl.unimed5m.mini import MiniSource

PER_LABEL = 12


def questions(folder, source, labels, kind):
    """(labels of the image, question, answer) of the yes-or-no questions about images with these labels."""
    rows = [
        labeled_row(source, "train", index, list(labels[index % len(labels)]), label_kind=kind)
        for index in range(PER_LABEL * len(labels))
    ]
    path = folder / "tier_A" / source / "train.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), path)
    stated = {row["id"]: tuple(row["labels"]) for row in rows}
    found = []
    for record in MiniSource(("A",)).records(folder):
        extra = json.loads(record.extra)
        if record.sub_task_type == "vqa" and extra.get("answer") in ("yes", "no"):
            found.append((stated[extra["source_id"]], record.message[0].value, extra["answer"]))
    return found


def test_a_label_that_refines_another_is_never_denied(tmp_path):
    found = questions(tmp_path, "kvasir-seg", [("polyp",), ("polyp", "sessile polyp")], "finding")
    # Every image shows a polyp, and whether others are sessile is not stated: nothing can be asked.
    assert found == []


def test_a_label_that_may_accompany_is_never_denied(tmp_path):
    labels = [("COVID-19",), ("COVID-19", "ARDS"), ("Streptococcus",)]
    found = questions(tmp_path, "covid-chestxray", labels, "diagnosis")
    assert not [entry for entry in found if "ARDS" in entry[1] and entry[2] == "no"]
    asked = [entry for entry in found if "a Streptococcus infection" in entry[1]]
    assert {entry[2] for entry in asked} == {"yes", "no"}
    assert all((entry[0] == ("Streptococcus",)) is (entry[2] == "yes") for entry in asked)


@pytest.mark.parametrize(
    "labels", [("COVID-19", "non-COVID-19"), ("hemorrhage", "no hemorrhage"), ("cataract", "no cataract")]
)
def test_a_stated_absence_is_answered_with_no(tmp_path, labels):
    found = questions(tmp_path, "source", [(label,) for label in labels], "diagnosis")
    assert len(found) == 2 * PER_LABEL
    for stated, question, answer in found:
        assert answer == ("yes" if stated == labels[:1] else "no")
        assert labels[0] in question and labels[1] not in question


def test_adjectives_become_nouns_in_questions(tmp_path):
    found = questions(tmp_path, "busi", [("benign",), ("malignant",), ("normal",)], "diagnosis")
    assert {answer for _, _, answer in found} == {"yes", "no"}
    assert all("a benign lesion" in question or "a malignant lesion" in question for _, question, _ in found)


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        ("hrf", [("healthy",), ("glaucoma",), ("diabetic retinopathy",)]),
        (
            "idrid",
            [
                ("no apparent retinopathy", "macular edema risk 0"),
                ("mild NPDR", "macular edema risk 1"),
                ("severe NPDR", "macular edema risk 2"),
            ],
        ),
    ],
)
def test_a_normal_eye_is_an_absence_and_each_stated_label_is_asked_for(tmp_path, source, labels):
    found = questions(tmp_path, source, labels, "diagnosis")
    assert not any(word in question for _, question, _ in found for word in ("healthy", "no apparent", "risk 0"))
    assert {answer for stated, _, answer in found if stated == labels[0]} == {"no"}
    nouns = {"macular edema risk 1": "risk of grade 1", "macular edema risk 2": "risk of grade 2"}
    for label in {label for stated in labels[1:] for label in stated}:
        asked = {answer for _, question, answer in found if nouns.get(label, label) in question}
        assert asked == {"yes", "no"}, label
    for stated, question, answer in found:
        assert any(nouns.get(label, label) in question for label in stated) == (answer == "yes")


def test_the_window_of_a_slice_is_kept(tmp_path):
    values = {"modality": "CT", "submodality": "chest CT", "label_kind": "acquisition", "plane": "axial"}
    row = labeled_row(
        "tcga-lung-ct", "train", 0, ["non-contrast"], notes="stated age 45; window -1000..400 HU", **values
    )
    path = tmp_path / "tier_A" / "tcga-lung-ct" / "train.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist([row], schema=SCHEMA), path)
    windows = [json.loads(record.extra).get("window") for record in MiniSource(("A",)).records(tmp_path)]
    assert windows and all(window == [-1000, 400] for window in windows)
