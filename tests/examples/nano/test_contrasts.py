"""Questions about what an image is not: true by the facts, and not to be guessed from their wording."""

import json
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.nano.contrasts import CALLED, FINDINGS, NONE, Facts, contradicts, contrast_records, draw
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, RecordImage
from unimedvl.unimed5m.templates.words import MODALITY_NAMES

KINDS = {
    "nih": ("CXR", "chest", ("pneumonia", "no finding")),
    "tumors": ("MRI", "brain", ("glioma tumor", "meningioma tumor", "no tumor")),
    "hippocampi": ("MRI", "hippocampus", ("",)),
    "heads": ("US", "fetal head", ("",)),
    "polyps": ("ENDO", "colon", ("polyp",)),
    "eyes": ("CFP", "retina", ("severe NPDR", "no apparent retinopathy")),
    "tissue": ("HIS", "lung", ("lung adenocarcinoma", "benign lung tissue")),
    "things": ("", "", ("",)),
}


def facts(counts: dict[str, int]) -> list[Facts]:
    found = []
    for source, count in counts.items():
        modality, anatomy, findings = KINDS[source]
        for number in range(count):
            finding = findings[number % len(findings)]
            extra = {"finding": finding, "anatomy": anatomy}
            origin = tasks.Origin(
                source,
                f"{source}{number}",
                f"{source}{number}",
                "train",
                modality,
                "CC0-1.0",
                "yes",
                "made",
                extra=extra,
            )
            image = RecordImage(b"", f"{source}{number}.png", 8, 8)
            record = tasks.acquisition(origin, image, "imaging modality", "unused")
            found.append(Facts(record, modality, anatomy, finding, source))
    return found


@pytest.fixture(scope="module")
def asked():
    counts = {
        "nih": 120,
        "tumors": 150,
        "hippocampi": 60,
        "heads": 50,
        "polyps": 90,
        "eyes": 80,
        "tissue": 110,
        "things": 40,
    }
    return list(contrast_records(facts(counts)))


NAMES = {MODALITY_NAMES[modality] for modality in CALLED}
NAMES |= {text for _, anatomy, findings in KINDS.values() for text in (anatomy, *findings)} - {""}


def text_of(record):
    return record.message[0].value.removeprefix(f"{IMAGE_PLACEHOLDER}\n")


def truth(record):
    source = record.dataset
    return KINDS[source][0], json.loads(record.extra)


def test_every_question_has_an_id_of_its_own_and_one_image(asked):
    assert len({record.id for record in asked}) == len(asked) > 2000
    assert {record.sub_task_type for record in asked} == {"contrast"}
    assert all(len(record.input_img) == 1 and not record.output_img for record in asked)


def test_yes_and_no_are_true(asked):
    called = {name: modality for modality, names in CALLED.items() for name in names}
    checked = Counter()
    for record in asked:
        modality, extra = truth(record)
        text, answer = text_of(record), record.message[1].value
        if answer not in ("yes", "no"):
            continue
        words = text.rstrip("?.")
        name = max((name for name in called if words.endswith(name)), key=len, default=None)
        if name:
            assert (called[name] == modality) == (answer == "yes"), text
            checked["modality"] += 1
        elif "medical" in words or "medicine" in words:
            assert bool(modality) == (answer == "yes"), text
            checked["medical"] += 1
        elif extra["finding"] and FINDINGS.get(extra["finding"], extra["finding"]) in words:
            assert answer == "yes", text
            checked["finding"] += 1
        elif answer == "yes":
            assert extra["anatomy"] in words, text
            checked["anatomy"] += 1
        else:
            # What is denied is neither the image's finding nor its place, nor one that lies in it.
            assert not extra["anatomy"] or f"the {extra['anatomy']}" not in words, text
            if extra["anatomy"] in ("hippocampus", "fetal head"):
                assert "the brain" not in words, text
            checked["denied"] += 1
    assert min(checked.values()) > 50 and len(checked) == 5


def answers_by_text(records):
    found = defaultdict(Counter)
    for record in records:
        if record.message[1].value in ("yes", "no"):
            found[text_of(record)][record.message[1].value] += 1
    return found


def test_whoever_reads_the_text_alone_is_right_by_chance(asked):
    answers = answers_by_text(asked)
    assert len(answers) > 100
    assert all(found["yes"] == found["no"] for found in answers.values())
    # Nor do the options: whoever knows how often each is right among the same options is right in less than half.
    options = defaultdict(Counter)
    for record in asked:
        if "-which-" in record.id:
            text, answer = text_of(record), record.message[1].value
            listed = frozenset(name for name in NAMES if name in text)
            options[listed, NONE in text][answer] += 1
    often = [found for found in options.values() if found.total() > 20]
    right, total = sum(max(found.values()) for found in often), sum(found.total() for found in often)
    assert len(often) > 12 and right / total < 0.5, right / total


def test_options_hold_the_answer_in_every_place_and_none_in_some(asked):
    places, none, total = Counter(), 0, 0
    for record in asked:
        text, answer = text_of(record), record.message[1].value
        if f"or {NONE}" not in text:
            continue
        modality, extra = truth(record)
        listed = text.partition(": ")[2].partition(f", or {NONE}")[0].split(", ")
        assert set(listed) <= NAMES and len(set(listed)) == len(listed) >= 1
        right = {MODALITY_NAMES.get(modality), extra["anatomy"], extra["finding"]} - {"", None}
        if modality:
            total, none = total + 1, none + (answer == NONE)
        if answer == NONE:
            assert not right & set(listed), text
        else:
            assert answer in right and answer in listed
            places[(listed.index(answer), len(listed))] += 1
    assert 0.12 < none / total < 0.3
    for size in (2, 3):
        counts = [places[(place, size)] for place in range(size)]
        assert min(counts) > 0.6 * max(counts), counts


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from(sorted(KINDS)), st.integers(1, 30), min_size=1), st.text(max_size=3))
def test_any_images_give_each_text_both_answers_as_often(counts, salt):
    records = list(contrast_records(facts(counts), salt))
    assert len({record.id for record in records}) == len(records)
    answers = answers_by_text(records)
    assert all(found["yes"] == found["no"] for found in answers.values())


def test_what_is_denied_is_denied_of_every_other_kind_of_image(asked):
    """And more often of images that are mistaken for it, and of those that the same source labels otherwise."""
    denied = defaultdict(Counter)
    for record in asked:
        parts = record.id.split("-")[1:]
        if parts[-1] == "no" and parts[0] in ("modality", "finding"):
            denied["-".join(parts[:-1])][record.dataset] += 1
    for name in ("modality-MRI", "modality-CFP", "modality-CXR"):
        own = {source for source, (modality, *_) in KINDS.items() if modality == name.removeprefix("modality-")}
        assert set(denied[name]) == set(KINDS) - own
    assert denied["modality-CFP"]["polyps"] > 1.5 * denied["modality-CFP"]["nih"]
    assert denied["finding-pneumonia"]["nih"] > denied["finding-pneumonia"].total() / 2
    assert set(denied["finding-polyp"]) == set(KINDS) - {"polyps"}


def test_a_place_inside_another_does_not_contradict_it():
    assert (
        contradicts("chest", "brain") and not contradicts("hippocampus", "brain") and not contradicts("lung", "lung")
    )


def test_draws_are_the_same_everywhere():
    assert [draw("a", 7), draw("b", 7), draw("a", 1000)] == [draw("a", 7), draw("b", 7), draw("a", 1000)]
    assert {draw(str(number), 3) for number in range(50)} == {0, 1, 2}
