"""Uncertainty: bootstrap intervals that resample whole patients, and paired tests between two runs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

RESAMPLES = 1000
# Of statistics that take a call for each resample.
STATISTIC_RESAMPLES = 300
CONFIDENCE = 0.95
PERMUTATIONS = 10_000
DIGITS = 6


def rounded(value: float | None) -> float | None:
    """A number as the results hold it; None stays None, and so does what is not finite."""
    return None if value is None or not numpy.isfinite(value) else round(float(value), DIGITS)


def group_numbers(groups: Sequence[str]) -> numpy.ndarray:
    """Small whole numbers for names, int64 (samples,)."""
    return numpy.unique(numpy.array(list(groups), dtype=object).astype(str), return_inverse=True)[1]


def group_sums(values: numpy.ndarray, groups: Sequence[str]) -> numpy.ndarray:
    """Sums of rows (samples, columns) over each group, float64 (groups, columns)."""
    numbers = group_numbers(groups)
    sums = numpy.zeros((int(numbers.max()) + 1, values.shape[1]))
    numpy.add.at(sums, numbers, values)
    return sums


def resampling_weights(count: int, resamples: int = RESAMPLES, seed: int = 0) -> numpy.ndarray:
    """How often each of `count` groups is drawn in each resample, float64 (resamples, count)."""
    draw = numpy.random.default_rng(seed)
    return draw.multinomial(count, numpy.full(count, 1 / count), size=resamples).astype(numpy.float64)


def resampled_places(groups: Sequence[str], resamples: int, seed: int = 0) -> Iterator[numpy.ndarray]:
    """Places of the samples of as many groups as there are, drawn with replacement; nothing where there is one."""
    numbers = group_numbers(groups)
    members = numpy.split(numpy.argsort(numbers, kind="stable"), numpy.cumsum(numpy.bincount(numbers))[:-1])
    draw = numpy.random.default_rng(seed)
    for _ in range(resamples if len(members) > 1 else 0):
        yield numpy.concatenate([members[number] for number in draw.integers(0, len(members), len(members))])


def mean_interval(
    values: Sequence[float | None], groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Mean of the values that are defined, with its 95 % percentile interval; groups are resampled as a whole.

    Returns:
        value, low, high, count (defined values); value None where there is none, low and high None for one group
        or without resamples.
    """
    defined = [(float(value), group) for value, group in zip(values, groups, strict=True) if value is not None]
    if not defined:
        return {"value": None, "low": None, "high": None, "count": 0}
    numbers = numpy.array([value for value, _ in defined])
    sums = group_sums(numpy.stack([numbers, numpy.ones(len(numbers))], axis=1), [group for _, group in defined])
    result: dict[str, Any] = {"value": rounded(float(numbers.mean())), "count": len(numbers)}
    ends = _percentiles(sums, lambda totals: totals[:, 0] / totals[:, 1], seed, resamples)
    return result | {side: rounded(bound) for side, bound in ends.items()}


def statistic_intervals(
    rows: numpy.ndarray,
    groups: Sequence[str],
    statistic: Callable[[numpy.ndarray], dict[str, float]],
    seed: int = 0,
    resamples: int = STATISTIC_RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """The same for named statistics of summed rows, such as corpus BLEU of several orders."""
    sums = group_sums(rows.astype(numpy.float64), groups)
    values = statistic(sums.sum(axis=0))
    found = {name: {"value": rounded(value), "count": len(rows)} for name, value in values.items()}

    def columns(totals: numpy.ndarray) -> numpy.ndarray:
        return numpy.array([list(statistic(total).values()) for total in totals])

    intervals = _percentiles(sums, columns, seed, resamples)
    for place, entry in enumerate(found.values()):
        entry |= {side: bounds if bounds is None else rounded(bounds[place]) for side, bounds in intervals.items()}
    return found


def _percentiles(
    sums: numpy.ndarray, statistic: Callable[[numpy.ndarray], numpy.ndarray], seed: int, resamples: int
) -> dict[str, Any]:
    """Ends of the interval of a statistic of resampled sums, for each of its columns."""
    if len(sums) < 2 or not resamples:
        return {"low": None, "high": None}
    drawn = statistic(resampling_weights(len(sums), resamples, seed) @ sums)
    tail = 50 * (1 - CONFIDENCE)
    low, high = numpy.percentile(drawn, [tail, 100 - tail], axis=0)
    return {"low": low, "high": high}


def recentred_interval(value: float, drawn: Sequence[float]) -> dict[str, float | None]:
    """Interval of a statistic that resampling biases (FID): the spread of the resamples around the value itself."""
    if not len(drawn):
        return {"low": None, "high": None}
    shifted = numpy.asarray(drawn) - numpy.mean(drawn) + value
    tail = 50 * (1 - CONFIDENCE)
    low, high = numpy.percentile(shifted, [tail, 100 - tail])
    return {"low": rounded(float(low)), "high": rounded(float(high))}


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Mean of second minus first over samples defined in both, its interval, and a two-sided permutation p-value.

    The test flips the sign of whole groups: under the null hypothesis both runs are exchangeable for each patient.
    """
    pairs = [
        (float(b) - float(a), group)
        for a, b, group in zip(first, second, groups, strict=True)
        if a is not None and b is not None
    ]
    if not pairs:
        return {"difference": None, "low": None, "high": None, "p": None, "count": 0}
    differences = numpy.array([difference for difference, _ in pairs])
    names = [group for _, group in pairs]
    interval = mean_interval(differences.tolist(), names, seed)
    sums = group_sums(differences[:, None], names)[:, 0]
    draw = numpy.random.default_rng(seed + 1)
    signs = draw.integers(0, 2, size=(PERMUTATIONS, len(sums)), dtype=numpy.int8) * 2 - 1
    # In parts: the product makes floating point numbers of all signs that it is given.
    flipped = numpy.concatenate([part @ sums for part in numpy.array_split(signs, PERMUTATIONS // 500)])
    extreme = numpy.abs(flipped) >= abs(sums.sum()) - 1e-12
    return {
        "difference": interval["value"],
        "low": interval["low"],
        "high": interval["high"],
        "p": rounded((float(extreme.sum()) + 1) / (PERMUTATIONS + 1)),
        "count": len(pairs),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for the number of tests (Holm 1979), in the order given."""
    # SciPy's `false_discovery_control` knows Benjamini's corrections alone, and statsmodels would bring five packages
    # for these six lines.
    order = numpy.argsort(p_values)
    corrected = numpy.empty(len(p_values))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]
