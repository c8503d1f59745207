"""95 % intervals of the nano's figures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
from scipy.stats import t


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Of a proportion (Wilson 1927)."""
    z, share = 1.96, hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # At the ends the exact bound is the share itself, which rounding must not miss.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """A proportion with its Wilson interval."""
    return {"value": sum(hits) / len(hits), "interval": wilson_interval(sum(hits), len(hits)), "total": len(hits)}


def mean_interval(values: Sequence[float], draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """Of a mean, by the percentile bootstrap over the values."""
    array = numpy.asarray(values, dtype=float)
    index = numpy.random.default_rng(seed).integers(len(array), size=(draws, len(array)))
    low, high = numpy.percentile(array[index].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of a mean of few values, two or more, by Student's t."""
    array = numpy.asarray(values, dtype=float)
    half = float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    mean = float(array.mean())
    return mean - half, mean + half
