"""How different the generated pictures of one kind are from one another, beside how different real ones are."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy

from unimedvl.evaluation.metrics.image_features import DEFAULT, load_feature_extractor

DESCRIPTION = """Diversity within each group (modality) in the features of a named extractor.
mean_distance: mean Euclidean distance of all pairs. vendi: effective number of different pictures, the exponential of
the entropy of the eigenvalues of the Gaussian kernel matrix divided by the number of pictures; the kernel's width is
the median distance of the real pictures. Each is also divided by that of as many real pictures: 1 is as diverse as
reality, near 0 is collapse."""
INPUTS = """
Args:
    predictions (list of images): generated. references (list of images): real; as many.
    groups (list of str): modality of each pair. extractor: see `image_features.load_feature_extractor`.
Returns:
    mean_distance, vendi and their `_ratio` to real pictures, means over groups of at least 2 pictures; groups.
"""
CITATION = """@article{friedman2023vendi, title={The Vendi Score: A Diversity Evaluation Metric for Machine Learning},
author={Friedman, Dan and Dieng, Adji Bousso}, journal={TMLR}, year={2023}}"""


def mean_distance(features: numpy.ndarray) -> float:
    """Mean distance of all pairs of rows."""
    from scipy.spatial.distance import pdist

    return float(pdist(features).mean())


def vendi_score(features: numpy.ndarray, width: float) -> float:
    """Effective number of different rows under a Gaussian kernel of that width, from 1 to their number."""
    from scipy.spatial.distance import pdist, squareform

    kernel = numpy.exp(-(squareform(pdist(features)) ** 2) / (2 * max(width, 1e-12) ** 2)) / len(features)
    values = numpy.linalg.eigvalsh(kernel).clip(min=0)
    values = values[values > 0]
    return float(numpy.exp(-(values * numpy.log(values)).sum()))


def diversity_scores(generated: numpy.ndarray, real: numpy.ndarray, groups: numpy.ndarray) -> dict[str, Any]:
    """Scores per group and their means; `groups` names the group of the i-th row of both."""
    from scipy.spatial.distance import pdist

    if not numpy.isfinite(generated).all() or not numpy.isfinite(real).all():
        raise ValueError("the features hold NaN or infinite values: check the extractor.")
    rows: dict[str, dict[str, float]] = {}
    for group in sorted(set(groups.tolist())):
        made, true = generated[groups == group], real[groups == group]
        if len(made) < 2:
            continue
        width = float(numpy.median(pdist(true)))
        distances, numbers = (
            (mean_distance(made), mean_distance(true)),
            (vendi_score(made, width), vendi_score(true, width)),
        )
        rows[group] = {
            "mean_distance": distances[0],
            "mean_distance_ratio": distances[0] / distances[1] if distances[1] else 0.0,
            "vendi": numbers[0],
            "vendi_ratio": numbers[0] / numbers[1],
            "count": len(made),
        }
    if not rows:
        raise ValueError("no group has 2 pictures: score more samples.")
    names = ("mean_distance", "mean_distance_ratio", "vendi", "vendi_ratio")
    return {name: sum(row[name] for row in rows.values()) / len(rows) for name in names} | {"groups": rows}


class Diversity(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        picture = datasets.Image()
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": picture, "references": picture}),
            reference_urls=["https://arxiv.org/abs/2210.02410"],
        )

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        groups: Sequence[str] | None = None,
        extractor: str = DEFAULT,
    ) -> dict[str, Any]:
        extract = load_feature_extractor(extractor)
        names = numpy.array(groups if groups is not None else ["all"] * len(predictions))
        return diversity_scores(extract(predictions), extract(references), names) | {"extractor": extract.name}
