"""95 % intervals: of means and other statistics by resampling whole patients, of proportions, and of few values.

Every function that takes `groups` wants the patient (or slide, or study) of each value: values of one patient are no
independent draws, so patients are drawn with replacement, each with all its values (the cluster bootstrap; Davison and
Hinkley 1997, "Bootstrap Methods and their Application", section 3.8).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

RESAMPLES = 1000
# Of statistics that take a call for each resample.
STATISTIC_RESAMPLES = 300
CONFIDENCE = 0.95
DIGITS = 6


def rounded(value: float | None) -> float | None:
    """A number as results hold it, with six decimals; None for None and for what is not finite."""
    return None if value is None or not numpy.isfinite(value) else round(float(value), DIGITS)


def group_numbers(groups: Sequence[Any]) -> numpy.ndarray:
    """Numbers from 0 in the place of names, equal for equal names, int64 (samples,)."""
    return numpy.unique(numpy.array([str(group) for group in groups]), return_inverse=True)[1]


def group_sums(values: numpy.ndarray, groups: Sequence[Any]) -> numpy.ndarray:
    """Sums of rows (samples, columns) over each group, float64 (groups, columns)."""
    numbers = group_numbers(groups)
    sums = numpy.zeros((int(numbers.max()) + 1, values.shape[1]))
    numpy.add.at(sums, numbers, values)
    return sums


def resampling_weights(count: int, resamples: int = RESAMPLES, seed: int = 0) -> numpy.ndarray:
    """How often each of `count` groups is drawn in each resample, float64 (resamples, count)."""
    draw = numpy.random.default_rng(seed)
    return draw.multinomial(count, numpy.full(count, 1 / count), size=resamples).astype(numpy.float64)


def resampled_places(groups: Sequence[Any], resamples: int, seed: int = 0) -> Iterator[numpy.ndarray]:
    """Places of the samples of as many groups as there are, drawn with replacement; nothing where there is one."""
    numbers = group_numbers(groups)
    members = numpy.split(numpy.argsort(numbers, kind="stable"), numpy.cumsum(numpy.bincount(numbers))[:-1])
    draw = numpy.random.default_rng(seed)
    for _ in range(resamples if len(members) > 1 else 0):
        yield numpy.concatenate([members[number] for number in draw.integers(0, len(members), len(members))])


def percentiles(drawn: Any) -> tuple[Any, Any]:
    """Ends of the percentile interval of resampled values (resamples,) or (resamples, columns)."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = numpy.percentile(drawn, [tail, 100 - tail], axis=0)
    return low, high


def mean_interval(
    values: Sequence[float | None], groups: Sequence[Any], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Mean of the values that are defined, with its percentile interval over resampled groups.

    Args:
        values: one number per sample, None where it is not defined.
        groups: the patient of each sample.
        seed: of the resampling.
        resamples: 0 for no interval.

    Returns:
        `value`, `low`, `high` and `count` (defined values). `value` is None without a defined value; `low` and `high`
        are None without resamples and for one group, from which no interval can be said.
    """
    defined = [(float(value), group) for value, group in zip(values, groups, strict=True) if value is not None]
    if not defined:
        return {"value": None, "low": None, "high": None, "count": 0}
    numbers = numpy.array([value for value, _ in defined])
    sums = group_sums(numpy.stack([numbers, numpy.ones(len(numbers))], axis=1), [group for _, group in defined])
    result: dict[str, Any] = {"value": rounded(float(numbers.mean())), "count": len(numbers)}
    ends = _ends(sums, lambda totals: totals[:, 0] / totals[:, 1], seed, resamples)
    return result | {side: rounded(bound) for side, bound in ends.items()}


def statistic_intervals(
    rows: numpy.ndarray,
    groups: Sequence[Any],
    statistic: Callable[[Any], dict[str, float]],
    seed: int = 0,
    resamples: int = STATISTIC_RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Named statistics of summed rows, such as corpus BLEU of several orders, as `mean_interval` gives a mean.

    Args:
        rows: counts of each sample that add up, (samples, columns).
        groups: the patient of each sample.
        statistic: from summed counts (columns,) to {name: value}.
        seed: of the resampling.
        resamples: 0 for no interval.

    Returns:
        {name: {`value`, `low`, `high`, `count`}}.
    """
    sums = group_sums(rows.astype(numpy.float64), groups)
    values = statistic(sums.sum(axis=0))
    found = {name: {"value": rounded(value), "count": len(rows)} for name, value in values.items()}

    def columns(totals: numpy.ndarray) -> numpy.ndarray:
        return numpy.array([list(statistic(total).values()) for total in totals])

    intervals = _ends(sums, columns, seed, resamples)
    for place, entry in enumerate(found.values()):
        entry |= {side: bounds if bounds is None else rounded(bounds[place]) for side, bounds in intervals.items()}
    return found


def _ends(
    sums: numpy.ndarray, statistic: Callable[[numpy.ndarray], numpy.ndarray], seed: int, resamples: int
) -> dict[str, Any]:
    """Ends of the interval of a statistic of resampled sums, for each of its columns."""
    if len(sums) < 2 or not resamples:
        return {"low": None, "high": None}
    low, high = percentiles(statistic(resampling_weights(len(sums), resamples, seed) @ sums))
    return {"low": low, "high": high}


def recentered_interval(value: float, drawn: Sequence[float]) -> dict[str, float | None]:
    """Interval of a statistic that resampling biases (FID): the spread of the resamples around the value itself.

    Args:
        value: the statistic of the samples.
        drawn: the statistic of each resample.

    Returns:
        `low` and `high`, None without resamples.
    """
    if not len(drawn):
        return {"low": None, "high": None}
    low, high = percentiles(numpy.asarray(drawn) - numpy.mean(drawn) + value)
    return {"low": rounded(float(low)), "high": rounded(float(high))}


def ratio_interval(
    above: tuple[Sequence[float], Sequence[Any]],
    below: tuple[Sequence[float], Sequence[Any]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Ratio of the means of two independent sets, with its percentile interval over resampled groups of both.

    Args:
        above: values of the numerator and the patient of each.
        below: the same of the denominator.
        seed: of the resampling.
        resamples: how many.

    Returns:
        `value`, `low`, `high` and `count` (values of the numerator). `value` is None where the denominator's mean is
        0; `low` and `high` are None where that happens in a resample, or where a side has one group.
    """
    sums = [group_sums(numpy.array([values, numpy.ones(len(values))]).T, groups) for values, groups in (above, below)]
    means = [side[:, 0].sum() / side[:, 1].sum() for side in sums]
    result = {"value": rounded(means[0] / means[1]) if means[1] else None, "low": None, "high": None}
    if min(len(side) for side in sums) > 1:
        totals = [resampling_weights(len(side), resamples, seed + place) @ side for place, side in enumerate(sums)]
        drawn = [total[:, 0] / total[:, 1] for total in totals]
        if drawn[1].all():
            result["low"], result["high"] = (rounded(float(end)) for end in percentiles(drawn[0] / drawn[1]))
    return result | {"count": len(above[0])}


def proportion_interval(hits: Sequence[bool]) -> dict[str, Any]:
    """A proportion of independent trials with its Wilson score interval (Wilson 1927), which holds at 0 and at 1.

    Trials that share patients are not independent: those are means of 0 and 1 for `mean_interval`.

    Args:
        hits: whether each trial succeeded, at least one.

    Returns:
        `value`, `low`, `high` and `count`.

    Raises:
        ValueError: without a trial.
    """
    from scipy.stats import binomtest

    if not len(hits):
        raise ValueError("there is no trial to take a proportion of: score at least one.")
    interval = binomtest(sum(map(bool, hits)), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    value = sum(map(bool, hits)) / len(hits)
    return {"value": value, "low": float(interval.low), "high": float(interval.high), "count": len(hits)}


def student_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean of few independent values, such as runs of several seeds, with Student's t interval.

    Args:
        values: at least two.

    Returns:
        `value`, `low`, `high` and `count`.

    Raises:
        ValueError: for fewer than two values.
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, found {len(values)}: run more seeds.")
    mean, error = float(numpy.mean(values)), float(stats.sem(values))
    # Equal values have no spread, for which scipy returns NaN.
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, mean, error) if error else (mean, mean)
    return {"value": mean, "low": float(low), "high": float(high), "count": len(values)}
