"""Scores of whole sets of images, with intervals from resampling whole groups: FID, KID, diversity, AUROC."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from .metrics.distributions import diversity_scores, frechet_distance, kernel_distance
from .metrics.intervals import recentered_interval, resampled_places, rounded
from .metrics.ranking import auroc, f1_score

RESAMPLES = 50


def distribution_set(
    made: numpy.ndarray,
    real: numpy.ndarray,
    modalities: Sequence[str],
    groups: Sequence[str],
    extractor: str,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """FID and KID as means over modalities, and diversity.

    Args:
        made: features of generated images, (N, F).
        real: features of the real image of each generated one, (N, F).
        modalities: modality of each image, N of them.
        groups: patient or other group of each image, N of them; intervals come from resampling whole groups.
        extractor: name of what made the features.
        resamples: how often the groups are drawn anew.

    Returns:
        `{metric: {value, low, high, count}}`, and details: the extractor, the distances in each modality, and whether
        every modality has more images than features.
    """
    modality_names, group_names = numpy.array(modalities), numpy.array(groups)
    assert len(made) == len(real) == len(modality_names), "every sample of a task that draws has an image"
    usable = [name for name in sorted(set(modalities)) if (modality_names == name).sum() >= 2]
    details: dict[str, Any] = {"extractor": extractor, "distribution_by_modality": {}}
    if not usable:
        return {}, details
    metrics: dict[str, Any] = {}
    for name, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
        places = {modality: numpy.flatnonzero(modality_names == modality) for modality in usable}
        sets = {modality: (made[chosen], real[chosen], group_names[chosen]) for modality, chosen in places.items()}
        values = {modality: distance(*pair) for modality, (*pair, _) in sets.items()}
        for modality, value in values.items():
            details["distribution_by_modality"].setdefault(modality, {"count": len(places[modality])})
            details["distribution_by_modality"][modality][name] = rounded(value)
        value = float(numpy.mean(list(values.values())))
        drawn = _resampled_means(sets, distance, resamples)
        metrics[name] = {"value": rounded(value), "count": len(made)} | recentered_interval(value, drawn)
    least = min(int((modality_names == modality).sum()) for modality in usable)
    details["fid_reliable"] = least > made.shape[1]
    spread = diversity_scores(made, real, modality_names)
    for name in ("mean_distance_ratio", "vendi_ratio"):
        metrics[f"diversity_{name}"] = {"value": rounded(spread[name]), "low": None, "high": None, "count": len(made)}
    return metrics, details


def _resampled_means(
    sets: dict[str, tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]],
    distance: Callable[[numpy.ndarray, numpy.ndarray], float],
    resamples: int,
) -> list[float]:
    """Means over modalities, each from groups of its own drawn anew; none where a modality has one group only."""
    columns = []
    for seed, (made, real, groups) in enumerate(sets.values()):
        drawn = resampled_places(groups.tolist(), resamples, seed)
        columns.append([distance(made[places], real[places]) for places in drawn])
    return [float(numpy.mean(values)) for values in zip(*columns, strict=False)]


def counterfactual_set(
    probabilities: Sequence[float], present: Sequence[int], groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """AUROC and F1 of a classifier's view of generated images.

    Args:
        probabilities: of the asked finding, one for each image, in [0, 1].
        present: 1 where the finding was asked to be there, else 0.
        groups: patient or other group of each image.

    Returns:
        `{metric: {value, low, high, count}}`; nothing for no images.
    """
    if not probabilities:
        return {}
    area = auroc(probabilities, present)
    count = len(probabilities)
    value = rounded(f1_score(probabilities, present))
    found: dict[str, Any] = {"f1": {"value": value, "low": None, "high": None}}
    if area is not None:
        drawn = []
        values, truth = numpy.array(probabilities), numpy.array(present)
        for chosen in resampled_places(groups, RESAMPLES):
            other = auroc(values[chosen].tolist(), truth[chosen].tolist())
            drawn += [] if other is None else [other]
        found["auroc"] = {"value": rounded(area)} | recentered_interval(area, drawn)
    return {name: entry | {"count": count} for name, entry in found.items()}
