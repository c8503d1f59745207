"""Paired tests between two runs; intervals of one run are in `metrics.intervals`."""

from collections.abc import Sequence
from typing import Any

import numpy

from .metrics.intervals import group_sums, mean_interval, rounded

PERMUTATIONS = 10_000


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Mean of second minus first over samples defined in both, its interval, and a two-sided permutation p-value.

    The test flips the sign of whole groups: under the null hypothesis both runs are exchangeable for each patient
    (Fisher's randomization test with `PERMUTATIONS` random flips).

    Args:
        first: a score of each sample in the first run, None where it is not defined.
        second: the same samples in the second run.
        groups: the patient of each sample.
        seed: of resampling and flipping.

    Returns:
        `difference`, `low`, `high` (95 %, resampled patients), `p` in (0, 1] and `count`; all but `count` are None
        where no sample is defined in both.
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
    """P-values corrected for the number of tests by the step-down rule of Holm 1979 (Scandinavian J. of Statistics 6).

    Args:
        p_values: in [0, 1], one for each test.

    Returns:
        The corrected values in the order given, at most 1.
    """
    # SciPy's `false_discovery_control` knows Benjamini's corrections alone, and statsmodels would bring five packages
    # for these six lines.
    order = numpy.argsort(p_values)
    corrected = numpy.empty(len(p_values))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]
