"""The nano's card says of each aim whether it was met, and what was not measured."""

import re

import pytest

from examples.nano.card import AIMS, Aim, facts_of, figure_of
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.evaluation.metrics.intervals import mean_interval, proportion_interval
from unimedvl.evaluation.statistics import paired_difference
from unimedvl.hub_cards.model_card import build_card

MANY = [f"patient-{number}" for number in range(40)]


@pytest.mark.parametrize(
    "hits, aim, met",
    [
        (39, {"least": 0.99}, False),
        (40, {"least": 0.99}, True),
        (3, {"most": 0.05}, False),
        (2, {"most": 0.05}, True),
        (20, {}, None),
    ],
)
@pytest.mark.parametrize("rate", [proportion_interval, lambda hits: mean_interval([float(hit) for hit in hits], MANY)])
def test_a_rate_meets_or_misses_its_aim(rate, hits, aim, met):
    found = rate([place < hits for place in range(40)])
    row = figure_of(Aim("x", ("a", "b"), "%", **aim), {"a": {"b": found}})
    assert (row.met, row.number) == (met, 40)
    shown, low, high = (float(number) for number in re.findall(r"([\d.]+) %", row.value))
    assert shown == pytest.approx(100 * hits / 40, abs=0.06)
    assert low <= shown <= high


@pytest.mark.parametrize(("better", "met"), [(40, True), (1, False)])
def test_a_gain_is_the_interval_above_zero(better, met):
    before, after = [0.0] * 40, [1.0 if place < better else -0.02 for place in range(40)]
    row = figure_of(Aim("x", ("gain",), above=True), {"gain": paired_difference(before, after, MANY)})
    assert (row.met, row.number, row.aim) == (met, 40, "interval above 0")


def test_a_figure_of_one_patient_has_no_interval():
    row = figure_of(Aim("x", ("a",), "dB", 20.0), {"a": mean_interval([21.0, 23.0], ["one", "one"])})
    assert (row.value, row.met) == ("22.00 dB", True)
    assert not figure_of(Aim("x", ("a",), above=True), {"a": mean_interval([1.0, 1.0], ["one", "one"])}).met


def test_what_was_not_measured_is_said_and_what_was_missed_is_listed():
    found = proportion_interval([True, False] * 10)
    used = {"seconds": 1800.0, "device": "2 CPU cores", "peak_memory_mib": 1536}
    parts = {
        "vision": {"steps": 7000, "batch": 24, "processor_seconds": 1700.0, **used},
        "stage": {"steps": 100, "samples": 900, **used},
        "start": {**used},
    }
    probes = {"linear probe of the model's ViT": {"accuracy": 0.75, "number": 8}}
    network = {"small network": {"accuracy": 0.5, "number": 40, "folds": 5}}
    distances = {when: {"CT": {"distance": far, "drawn": 9}} for when, far in (("before", 100.0), ("after", 50.0))}
    translated = {"slices": 22, "nano": 18.0, "gray-level map": 18.5, "gain": -0.5}
    figures = {
        "validation": {"modality": found},
        "parts": parts,
        "frechet": {**distances, "ratio": {"CT": 0.5}},
        "left out": {"A": {"T1 -> T2": translated}},
        "specialists": {"brain": {**probes, **network}, "lung": network, "masks": {"polyp": 0.5}},
    }
    facts = facts_of(figures)
    assert (
        facts.limitations[0] == "Missed: modality, seven (validation holds no OCT); T1 -> T2, run without patient A."
    )
    assert (facts.training.steps, facts.training.duration) == (
        "vision 7,000, stage 100",
        "0.5 hours of a CPU core; of each part see below",
    )
    text = build_card(NANO_DIRECTORY, facts)
    # Wilson's interval of 10 in 20, by hand: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n).
    assert (
        "| modality, seven (validation holds no OCT) | 20 | 50.0 % (29.9 % to 70.1 %) | >= 99.0 % | **missed** |"
        in text
    )
    assert "| Frechet distance of drawn images, CT | 9 | 50.0; the release before 100.0: -50 % | -40 % | met |" in text
    row = "T1 -> T2, run without patient A | 22 | 18.0 dB; gray-level map 18.5 dB | above the map | **missed** |"
    assert row in text
    probed = "held-out part: brain | 8 | 75.0 %; small network 50.0 % (of 5 folds, 40 images) |  |  |"
    assert f"| linear probe of the ViT, {probed}" in text and "held-out part: lung" not in text
    # 24 x 7,000 and 900 in 1,800 seconds.
    assert "| training: vision | 2 CPU cores | 1.5 GiB | 30 minutes; 93.3 samples a second |" in text
    assert "| training: stage | 2 CPU cores | 1.5 GiB | 30 minutes; 0.5 samples a second |" in text
    assert "| training: start | 2 CPU cores | 1.5 GiB | 30 minutes |" in text
    assert len(re.findall("not measured", text)) >= len(AIMS) - 1
