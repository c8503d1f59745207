"""The packing benchmark loses nothing at a small size, and its stored result holds what the issue asks for."""

import json

import pytest

from benchmarks.packing import RESULTS, STAGES, measure, measure_upstream
from unimedvl.training.recipe import load_recipe


@pytest.mark.parametrize("stage", STAGES)
def test_a_small_run_loses_nothing(stage):
    result = measure(load_recipe(f"unimedvl-14b/{stage}.yaml"), 1_500)
    assert result["lost"] == result["twice"] == result["too_long"] == 0
    assert result["padding"] < 0.03 and result["largest_share_error"] < 0.02
    assert result["samples_per_second"] > 0


def test_the_upstream_rule_leaves_the_shares():
    result = measure_upstream(load_recipe("unimedvl-14b/stage-1.yaml"), 500)
    assert result["samples"] >= 500 and result["largest_share_error"] > 0.02


def test_the_stored_result_is_whole():
    report = json.loads((RESULTS / "packing.json").read_text())
    for stage in STAGES:
        result = report[stage]
        assert result["samples"] >= 100_000 and min(result["epochs_of_groups"]) >= 1
        assert result["lost"] == result["twice"] == 0
        assert result["padding"] <= 0.03 and result["largest_share_error"] <= 0.01
