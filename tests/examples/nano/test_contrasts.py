"""Questions about what an image is not: true by the facts, and not to be guessed from their wording."""

import json
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.nano.contrasts import CALLED, NONE, Facts, contradicts, contrast_records, draw, partners
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, RecordImage
from unimedvl.unimed5m.templates.words import MODALITY_NAMES

KINDS = {
    "nih": ("CXR", "chest", ("pneumonia", "no finding")),
    "tumors": ("MRI", "brain", ("glioma tumor", "meningioma tumor", "no tumor")),
    "hippocampi": ("MRI", "hippocampus", ("",)),
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
    counts = {"nih": 120, "tumors": 150, "hippocampi": 60, "polyps": 90, "eyes": 80, "tissue": 110, "things": 40}
    return list(contrast_records(facts(counts)))


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
        elif extra["finding"] and extra["finding"] in words:
            assert answer == "yes", text
            checked["finding"] += 1
        elif answer == "yes":
            assert extra["anatomy"] in words, text
            checked["anatomy"] += 1
        else:
            # What is denied is neither the image's finding nor its place, nor one that lies in it.
            assert not extra["anatomy"] or f"the {extra['anatomy']}" not in words, text
            if extra["anatomy"] == "hippocampus":
                assert "the brain" not in words, text
            checked["denied"] += 1
    assert min(checked.values()) > 50 and len(checked) == 5


def test_the_wording_tells_no_more_than_chance(asked):
    """The best guess from the whole text of a question, over all questions that are asked often enough to learn it."""
    by_text = defaultdict(Counter)
    for record in asked:
        if record.message[1].value in ("yes", "no") and record.dataset != "things":
            words = text_of(record)
            if "medic" not in words:
                by_text[words][record.message[1].value] += 1
    often = [counts for counts in by_text.values() if counts.total() >= 24]
    assert len(often) > 10
    yes, total = (sum(sum(c[a] for a in answers) for c in often) for answers in (("yes",), ("yes", "no")))
    assert abs(yes / total - 0.5) < 0.03
    # Each wording of each thing: a fair coin within four standard deviations.
    assert all(abs(c["yes"] - c["no"]) < 4 * c.total() ** 0.5 for c in often)


def test_options_hold_the_answer_in_every_place_and_none_in_a_third(asked):
    places, none, total = Counter(), 0, 0
    names = set(MODALITY_NAMES.values()) | {f for _, _, findings in KINDS.values() for f in findings} - {""}
    names |= {anatomy for _, anatomy, _ in KINDS.values()} - {""}
    for record in asked:
        text, answer = text_of(record), record.message[1].value
        if f"or {NONE}" not in text:
            continue
        modality, extra = truth(record)
        listed = text.partition(": ")[2].partition(f", or {NONE}")[0].split(", ")
        assert set(listed) <= names and len(set(listed)) == len(listed) >= 1
        right = {MODALITY_NAMES.get(modality), extra["anatomy"], extra["finding"]} - {"", None}
        if modality:
            total, none = total + 1, none + (answer == NONE)
        if answer == NONE:
            assert not right & set(listed), text
        else:
            assert answer in right and answer in listed
            places[(listed.index(answer), len(listed))] += 1
    assert abs(none / total - 1 / 3) < 0.06
    for size in (2, 3):
        counts = [places[(place, size)] for place in range(size)]
        assert min(counts) > 0.6 * max(counts), counts


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=40), st.text(max_size=3))
def test_partners_differ_and_each_place_is_given_once(values, salt):
    found = partners(values, salt)
    given_places = [place for place in found if place is not None]
    assert len(set(given_places)) == len(given_places)
    assert all(values[place] != value for place, value in zip(found, values, strict=True) if place is not None)
    most = max(Counter(values).values(), default=0)
    if 2 * most <= len(values):
        assert None not in found


def test_a_place_inside_another_does_not_contradict_it():
    assert (
        contradicts("chest", "brain") and not contradicts("hippocampus", "brain") and not contradicts("lung", "lung")
    )


def test_draws_are_the_same_everywhere():
    assert [draw("a", 7), draw("b", 7), draw("a", 1000)] == [draw("a", 7), draw("b", 7), draw("a", 1000)]
    assert {draw(str(number), 3) for number in range(50)} == {0, 1, 2}
