"""The nano's card says of each aim whether it was met, and what was not measured."""

import re

import pytest

from examples.nano.card import AIMS, Aim, facts_of, figure_of
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.hub_cards.model_card import build_card


@pytest.mark.parametrize(
    "value, interval, aim, met",
    [
        (0.985, [0.97, 0.99], {"least": 0.99}, False),
        (0.995, [0.98, 1.0], {"least": 0.99}, True),
        (0.06, [0.02, 0.09], {"most": 0.05}, False),
        (0.04, [-0.01, 0.09], {"above": True}, False),
        (0.04, [0.01, 0.09], {"above": True}, True),
        (0.5, [0.4, 0.6], {}, None),
    ],
)
def test_an_aim_is_met_or_missed(value, interval, aim, met):
    row = figure_of(Aim("x", ("a", "b"), "%", **aim), {"a": {"b": {"value": value, "interval": interval, "total": 7}}})
    assert (row.met, row.number) == (met, 7)
    assert row.value == f"{100 * value:.1f} % ({100 * interval[0]:.1f} % to {100 * interval[1]:.1f} %)"


def test_what_was_not_measured_is_said_and_what_was_missed_is_listed():
    found = {"value": 0.5, "interval": [0.4, 0.6], "total": 20}
    parts = {
        "vision": {"steps": 7000, "seconds": 1800.0, "processor_seconds": 1700.0, "device": "2 processor cores"},
        "start": {"seconds": 1800.0, "device": "2 processor cores"},
    }
    distances = {when: {"CT": {"distance": far, "drawn": 9}} for when, far in (("before", 100.0), ("after", 50.0))}
    figures = {"validation": {"modality": found}, "parts": parts, "frechet": {**distances, "ratio": {"CT": 0.5}}}
    facts = facts_of(figures)
    assert facts.limitations[0] == "Missed: modality, eight."
    assert (facts.training.steps, facts.training.duration) == ("vision 7,000", "1.0 hours (0.5 hours of a core)")
    text = build_card(NANO_DIRECTORY, facts)
    assert "| modality, eight | 20 | 50.0 % (40.0 % to 60.0 %) | >= 99.0 % | **missed** |" in text
    assert "| Frechet distance of drawn images, CT | 9 | 50.0; the release before 100.0: -50 % | -40 % | met |" in text
    assert len(re.findall("not measured", text)) >= len(AIMS) - 1
