"""Intervals cover what they should, resample whole groups, and equal their formulas."""

import numpy
import pytest
import scipy.stats

from unimedvl.evaluation.metrics.intervals import (
    mean_interval,
    percentiles,
    proportion_interval,
    ratio_interval,
    recentered_interval,
    resampled_places,
    statistic_intervals,
    student_interval,
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
    """Ten copies of each of 40 patients say no more than the 40 patients."""
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


def test_recentered_interval_surrounds_the_value():
    # The middle 95 % of numbers evenly spread over one unit around 10, moved to 3.
    found = recentered_interval(3.0, numpy.linspace(9.5, 10.5, 1001))
    assert (found["low"], found["high"]) == pytest.approx((3 - 0.475, 3 + 0.475), abs=1e-6)
    assert recentered_interval(3.0, []) == {"low": None, "high": None}


def test_the_percentile_interval_has_95_percent_of_the_resamples():
    drawn = numpy.arange(1001) / 1000
    assert percentiles(drawn) == pytest.approx((0.025, 0.975))
    assert percentiles(numpy.stack([drawn, 2 * drawn], axis=1))[1] == pytest.approx([0.975, 1.95])


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (50, 100), (38, 45), (1, 1)])
def test_wilson_by_its_formula(hits, trials):
    """Wilson 1927: the shares p with |p - share| <= z sqrt(p (1 - p) / n)."""
    z, share = scipy.stats.norm.ppf(0.975), hits / trials
    bounds = numpy.roots([1 + z * z / trials, -2 * share - z * z / trials, share * share])
    found = proportion_interval([True] * hits + [False] * (trials - hits))
    assert (found["low"], found["high"]) == pytest.approx((bounds.min(), bounds.max()), abs=1e-9)
    assert found["value"] == share and found["count"] == trials and found["low"] <= share <= found["high"]


def test_student_by_its_table():
    """The 97.5 % quantile of t with 2 degrees of freedom is 4.302653."""
    found = student_interval([1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5
    assert (found["value"], found["low"], found["high"]) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-6)
    assert student_interval([0.5, 0.5]) == {"value": 0.5, "low": 0.5, "high": 0.5, "count": 2}


def test_ratio_of_two_sets():
    draw = numpy.random.default_rng(0)
    above, below = draw.normal(3, 0.5, 400), draw.normal(6, 1, 300)
    found = ratio_interval((above, range(400)), (below, range(300)), resamples=2000)
    value = above.mean() / below.mean()
    # The relative variance of a ratio of independent means is the sum of theirs.
    error = value * ((above.std() / above.mean()) ** 2 / 400 + (below.std() / below.mean()) ** 2 / 300) ** 0.5
    assert found["value"] == pytest.approx(value, abs=1e-6) and found["count"] == 400
    assert found["low"] == pytest.approx(value - 1.96 * error, abs=0.1 * error + 2e-3)
    assert found["high"] == pytest.approx(value + 1.96 * error, abs=0.1 * error + 2e-3)
    one = ratio_interval((above, ["a"] * 400), (below, range(300)))
    assert one["value"] == found["value"] and one["low"] is None and one["high"] is None
    assert ratio_interval(([1.0], ["a"]), ([0.0], ["b"]))["value"] is None


def test_what_gives_no_interval_is_refused():
    with pytest.raises(ValueError, match="at least 2 values"):
        student_interval([1.0])
    with pytest.raises(ValueError, match="no trial"):
        proportion_interval([])
