"""Distance between the distributions of generated and real pictures: FID and KID."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy
import torch

from unimedvl.evaluation.metrics.image_features import DEFAULT, load_feature_extractor

DESCRIPTION = """FID, the Frechet distance between Gaussians fitted to the features of both sets, and KID, the unbiased
squared maximum mean discrepancy with the kernel (x.y / d + 1)^3. Both are given per group (modality) and as the mean
of the groups. FID is biased upwards for few pictures, and meaningless below the number of features: `fid_reliable`
says whether every set has more pictures than features. KID has no such bias. Numbers of different extractors cannot
be compared."""
INPUTS = """
Args:
    predictions (list of images): generated. references (list of images): real; as many.
    groups (list of str): modality of each pair; one group by default.
    extractor: see `image_features.load_feature_extractor`.
Returns:
    fid, kid (means over groups), fid_reliable, extractor, groups: {name: {fid, kid, generated, real}}.
"""
CITATION = """@inproceedings{heusel2017gans, title={GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium}, author={Heusel, Martin and others}, year={2017}}"""


def frechet_distance(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two feature sets, float64 (N, D), N of at least 2.

    The trace of the covariances' geometric mean comes from symmetric eigenvalues, which also holds for singular ones.
    """
    _check(first, second)
    means = [features.mean(axis=0) for features in (first, second)]
    covariances = [numpy.atleast_2d(numpy.cov(features, rowvar=False)) for features in (first, second)]
    values, vectors = numpy.linalg.eigh(covariances[0])
    root = (vectors * numpy.sqrt(values.clip(min=0))) @ vectors.T
    mixed = numpy.linalg.eigvalsh(root @ covariances[1] @ root)
    overlap = numpy.sqrt(mixed.clip(min=0)).sum()
    difference = means[0] - means[1]
    return float(difference @ difference + numpy.trace(covariances[0]) + numpy.trace(covariances[1]) - 2 * overlap)


def kernel_distance(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel; it may be slightly below 0."""
    from torchmetrics.image.kid import poly_mmd

    _check(first, second)
    return float(poly_mmd(torch.from_numpy(first), torch.from_numpy(second)))


def _check(*sets: numpy.ndarray) -> None:
    for features in sets:
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"a distribution needs at least 2 pictures, found {len(features)}.")
        if not numpy.isfinite(features).all():
            raise ValueError("the features hold NaN or infinite values: check the extractor.")


class ImageDistribution(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        picture = datasets.Image()
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": picture, "references": picture}),
            reference_urls=["https://github.com/GaParmar/clean-fid"],
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
        features = [extract(images) for images in (predictions, references)]
        result = distribution_scores(features[0], features[1], names, names)
        return result | {"extractor": extract.name}


def distribution_scores(
    generated: numpy.ndarray, real: numpy.ndarray, generated_groups: numpy.ndarray, real_groups: numpy.ndarray
) -> dict[str, Any]:
    """FID and KID per group and their means. Groups with fewer than 2 pictures on a side are left out."""
    groups: dict[str, dict[str, float]] = {}
    for group in sorted(set(generated_groups.tolist())):
        pair = [features[names == group] for features, names in ((generated, generated_groups), (real, real_groups))]
        if min(len(features) for features in pair) < 2:
            continue
        groups[group] = {
            "fid": frechet_distance(*pair),
            "kid": kernel_distance(*pair),
            "generated": len(pair[0]),
            "real": len(pair[1]),
        }
    if not groups:
        raise ValueError("no group has 2 pictures on both sides: score more samples.")
    least = min(min(row["generated"], row["real"]) for row in groups.values())
    return {
        "fid": sum(row["fid"] for row in groups.values()) / len(groups),
        "kid": sum(row["kid"] for row in groups.values()) / len(groups),
        "fid_reliable": bool(least > generated.shape[1]),
        "groups": groups,
    }
