"""Intervals cover what they should, resample whole groups, and paired tests have their level."""

import numpy
import pytest
import scipy.stats

from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.scoring import Settings, TaskScores
from unimedvl.evaluation.set_metrics import counterfactual_set, distribution_set
from unimedvl.evaluation.statistics import (
    holm,
    mean_interval,
    paired_difference,
    recentred_interval,
    resampled_places,
    statistic_intervals,
)


def test_interval_of_independent_values_is_that_of_the_normal_law():
    values = numpy.random.default_rng(0).normal(5, 2, 400)
    found = mean_interval(values.tolist(), [str(number) for number in range(400)], resamples=20_000)
    error = values.std() / 20
    assert found["value"] == pytest.approx(values.mean(), abs=1e-6) and found["count"] == 400
    # Ends at the quantiles of 2.5 and 97.5 %, within a tenth of a standard error; a 97.5 % interval is off by 0.28.
    assert (found["low"] - values.mean()) / error == pytest.approx(scipy.stats.norm.ppf(0.025), abs=0.1)
    assert (found["high"] - values.mean()) / error == pytest.approx(scipy.stats.norm.ppf(0.975), abs=0.1)


def test_interval_agrees_with_the_bootstrap_of_scipy():
    values = numpy.random.default_rng(7).exponential(1, 80)
    found = mean_interval(values.tolist(), [str(number) for number in range(80)], resamples=20_000)
    wanted = scipy.stats.bootstrap(
        (values,), numpy.mean, confidence_level=0.95, n_resamples=20_000, method="percentile",
        rng=numpy.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    error = values.std() / 80**0.5
    assert found["low"] == pytest.approx(wanted.low, abs=0.1 * error)
    assert found["high"] == pytest.approx(wanted.high, abs=0.1 * error)


def test_groups_are_resampled_as_a_whole():
    """Ten copies of each of 40 patients tell no more than the 40 patients."""
    values = numpy.random.default_rng(1).normal(size=40)
    alone = mean_interval(values.tolist(), [str(n) for n in range(40)])
    copied = mean_interval(numpy.repeat(values, 10).tolist(), [str(n) for n in numpy.repeat(range(40), 10)])
    assert (copied["low"], copied["high"]) == (alone["low"], alone["high"])


def test_edge_values():
    assert mean_interval([None, None], ["a", "b"]) == {"value": None, "low": None, "high": None, "count": 0}
    assert mean_interval([2.0], ["a"]) == {"value": 2.0, "count": 1, "low": None, "high": None}
    constant = mean_interval([1.0, 1.0, None], ["a", "b", "c"])
    assert (constant["value"], constant["low"], constant["high"], constant["count"]) == (1, 1, 1, 2)


def test_coverage_of_the_interval():
    """95 % intervals of 200 samples from a skewed law hold the mean in 90 to 99 % of cases."""
    draw = numpy.random.default_rng(2)
    inside = 0
    for _ in range(200):
        found = mean_interval(draw.exponential(1, 60).tolist(), [str(n) for n in range(60)])
        inside += found["low"] <= 1 <= found["high"]
    assert 0.88 <= inside / 200 <= 0.99


def test_statistic_of_sums_agrees_with_the_mean():
    values = numpy.random.default_rng(3).random(50)
    groups = [str(n % 20) for n in range(50)]
    rows = numpy.stack([values, numpy.ones(50)], axis=1)
    found = statistic_intervals(rows, groups, lambda t: {"mean": t[0] / t[1], "sum": t[0]}, resamples=1000)
    assert found["mean"] == mean_interval(values.tolist(), groups)
    assert found["sum"]["low"] < found["sum"]["value"] < found["sum"]["high"]


def test_places_of_whole_groups_are_drawn():
    groups = ["a", "b", "a", "c", "c", "c"]
    for places in resampled_places(groups, 20):
        drawn = [groups[place] for place in places]
        sizes = {"a": 2, "b": 1, "c": 3}
        assert all(drawn.count(name) % size == 0 for name, size in sizes.items())
        assert sum(drawn.count(name) // size for name, size in sizes.items()) == 3
    assert not list(resampled_places(["a", "a"], 20))


def scores_of(task: str, groups: list[str]) -> TaskScores:
    """Scores of one picture per group name, of which pictures of one group are alike."""
    draw = {group: numpy.random.default_rng(ord(group)).random(3) for group in groups}
    found = TaskScores(task)
    found.groups, found.modalities = groups, ["CXR"] * len(groups)
    found.made = [draw[group] for group in groups]
    found.real = [numpy.sqrt(draw[group]) for group in groups]
    found.rows = [{"probability": float(draw[group][0])} for group in groups]
    found.present = [ord(group) % 2 for group in groups]
    return found


def test_intervals_of_sets_resample_whole_groups():
    """Ten copies of each patient's picture tell no more than one: the interval does not become narrower."""
    names = [chr(number) for number in range(ord("a"), ord("a") + 16)]
    alone, copied = (scores_of("counterfactual", names * times) for times in (1, 10))
    areas = [counterfactual_set(found)["auroc"] for found in (alone, copied)]
    assert areas[1]["high"] - areas[1]["low"] == pytest.approx(areas[0]["high"] - areas[0]["low"], rel=0.05)
    settings = Settings(extractor=load_feature_extractor("pixels-1"))
    sets = [distribution_set(found, settings)[0]["fid"] for found in (alone, copied)]
    assert sets[1]["high"] - sets[1]["low"] == pytest.approx(sets[0]["high"] - sets[0]["low"], rel=0.2)
    one = scores_of("counterfactual", ["a"] * 5)
    assert distribution_set(one, settings)[0]["kid"]["low"] is None


def test_recentred_interval_surrounds_the_value():
    # The middle 95 % of numbers evenly spread over one unit around 10, moved to 3.
    found = recentred_interval(3.0, numpy.linspace(9.5, 10.5, 1001))
    assert (found["low"], found["high"]) == pytest.approx((3 - 0.475, 3 + 0.475), abs=1e-6)
    assert recentred_interval(3.0, []) == {"low": None, "high": None}


def test_paired_test_finds_a_difference_and_agrees_with_scipy():
    draw = numpy.random.default_rng(4)
    first = draw.normal(size=60)
    second = first + 0.2 + draw.normal(0, 0.5, 60)
    groups = [str(n) for n in range(60)]
    found = paired_difference(first.tolist(), second.tolist(), groups)
    wanted = scipy.stats.permutation_test(
        (second - first,), numpy.mean, permutation_type="samples", n_resamples=9999, rng=numpy.random.default_rng(0)
    )
    assert found["difference"] == pytest.approx((second - first).mean(), abs=1e-6)
    assert found["p"] == pytest.approx(wanted.pvalue, abs=0.01)
    same = paired_difference(first.tolist(), first.tolist(), groups)
    assert same["p"] == 1 and same["difference"] == same["low"] == same["high"] == 0


def test_paired_test_keeps_its_level():
    """Without a difference p falls below 5 % in about 5 % of cases."""
    draw = numpy.random.default_rng(5)
    groups = [str(n) for n in range(15)]
    low = sum(
        paired_difference(draw.normal(size=15).tolist(), draw.normal(size=15).tolist(), groups)["p"] < 0.05
        for _ in range(100)
    )
    assert low <= 12


def test_values_missing_in_one_run_are_left_out():
    found = paired_difference([1.0, None, 2.0], [2.0, 5.0, None], ["a", "b", "c"])
    assert found["count"] == 1 and found["difference"] == 1
    assert paired_difference([None], [1.0], ["a"])["p"] is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
