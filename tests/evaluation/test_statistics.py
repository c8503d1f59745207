"""Intervals of sets resample whole groups, and paired tests have their level."""

import numpy
import pytest
import scipy.stats

from unimedvl.evaluation.set_metrics import counterfactual_set, distribution_set
from unimedvl.evaluation.statistics import holm, paired_difference


def values_of(groups: list[str]) -> numpy.ndarray:
    """Three numbers for each image, alike for images of one group."""
    return numpy.array([numpy.random.default_rng(ord(group)).random(3) for group in groups])


def area(groups: list[str]) -> dict:
    present = [ord(group) % 2 for group in groups]
    return counterfactual_set(values_of(groups)[:, 0].tolist(), present, groups)["auroc"]


def distances(groups: list[str]) -> dict:
    made = values_of(groups)
    return distribution_set(made, numpy.sqrt(made), ["CXR"] * len(groups), groups, "three numbers")[0]


def test_intervals_of_sets_resample_whole_groups():
    """Ten copies of each patient's image say no more than one: the interval does not become narrower."""
    names = [chr(number) for number in range(ord("a"), ord("a") + 16)]
    areas = [area(names * times) for times in (1, 10)]
    assert areas[1]["high"] - areas[1]["low"] == pytest.approx(areas[0]["high"] - areas[0]["low"], rel=0.05)
    sets = [distances(names * times)["fid"] for times in (1, 10)]
    assert sets[1]["high"] - sets[1]["low"] == pytest.approx(sets[0]["high"] - sets[0]["low"], rel=0.2)
    assert distances(["a"] * 5)["kid"]["low"] is None


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
