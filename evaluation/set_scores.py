"""Scores of whole sets of pictures, with intervals from resampling: FID, KID, diversity, AUROC."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy

from .metrics.counterfactual.counterfactual import auroc, f1
from .metrics.diversity.diversity import diversity_scores
from .metrics.image_distribution.image_distribution import frechet_distance, kernel_distance
from .statistics import recentred_interval, rounded

if TYPE_CHECKING:
    from .scoring import Settings, TaskScores

RESAMPLES = 50


def distribution_set(
    scores: "TaskScores", settings: "Settings", resamples: int = RESAMPLES
) -> tuple[dict[str, Any], dict[str, Any]]:
    """FID and KID as means over modalities, and diversity; then what they are made of."""
    made, real = numpy.array(scores.made), numpy.array(scores.real)
    modalities = numpy.array(scores.modalities)
    assert len(made) == len(real) == len(modalities), "every sample of a task that draws has a picture"
    usable = [name for name in sorted(set(modalities.tolist())) if (modalities == name).sum() >= 2]
    details: dict[str, Any] = {"extractor": settings.extractor.name, "distribution_by_modality": {}}
    if not usable:
        return {}, details
    metrics: dict[str, Any] = {}
    for name, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
        sets = {group: (made[modalities == group], real[modalities == group]) for group in usable}
        values = {group: distance(*pair) for group, pair in sets.items()}
        for group, value in values.items():
            details["distribution_by_modality"].setdefault(group, {"count": int((modalities == group).sum())})
            details["distribution_by_modality"][group][name] = rounded(value)
        value = float(numpy.mean(list(values.values())))
        drawn = _resampled_means(sets, distance, resamples)
        metrics[name] = {"value": rounded(value), "count": len(made)} | recentred_interval(value, drawn)
    least = min(int((modalities == group).sum()) for group in usable)
    details["fid_reliable"] = least > made.shape[1]
    spread = diversity_scores(made, real, modalities)
    for name in ("mean_distance_ratio", "vendi_ratio"):
        metrics[f"diversity_{name}"] = {"value": rounded(spread[name]), "low": None, "high": None, "count": len(made)}
    return metrics, details


def _resampled_means(
    sets: dict[str, tuple[numpy.ndarray, numpy.ndarray]],
    distance: Callable[[numpy.ndarray, numpy.ndarray], float],
    resamples: int,
) -> list[float]:
    draw = numpy.random.default_rng(0)
    means = []
    for _ in range(resamples):
        values = []
        for pair in sets.values():
            values.append(distance(*(rows[draw.integers(0, len(rows), len(rows))] for rows in pair)))
        means.append(float(numpy.mean(values)))
    return means


def counterfactual_set(scores: "TaskScores") -> dict[str, Any]:
    """AUROC and F1 of the classifier's view, where there is a classifier."""
    probabilities = [value for row in scores.rows if (value := row.get("probability")) is not None]
    if not probabilities:
        return {}
    area = auroc(probabilities, scores.present)
    count = len(probabilities)
    found: dict[str, Any] = {"f1": {"value": rounded(f1(probabilities, scores.present)), "low": None, "high": None}}
    if area is not None:
        draw, drawn = numpy.random.default_rng(0), []
        values, truth = numpy.array(probabilities), numpy.array(scores.present)
        for _ in range(RESAMPLES):
            chosen = draw.integers(0, count, count)
            other = auroc(values[chosen].tolist(), truth[chosen].tolist())
            drawn += [] if other is None else [other]
        found["auroc"] = {"value": rounded(area)} | recentred_interval(area, drawn)
    return {name: entry | {"count": count} for name, entry in found.items()}
