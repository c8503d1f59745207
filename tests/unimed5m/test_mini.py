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
