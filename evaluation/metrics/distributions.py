"""Sets of generated images beside sets of real ones: FID and KID, and how diverse they are.

Features come from a named extractor (`image_features`), which is part of what a figure means.
"""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from PIL import Image
from scipy.spatial.distance import pdist, squareform

from .image_features import DEFAULT, load_feature_extractor


def frechet_distance(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two feature sets (Heusel et al. 2017, FID).

    The trace of the covariances' geometric mean comes from symmetric eigenvalues, which also holds for singular ones.

    Args:
        first: features, float64 (N, D), N of at least 2.
        second: features, float64 (M, D), M of at least 2.

    Returns:
        The squared distance of means and covariances, at least 0 up to rounding; it is symmetric.

    Raises:
        ValueError: for fewer than 2 rows, or features that are not finite.
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
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, KID).

    Args:
        first: features, float64 (N, D), N of at least 2.
        second: features, float64 (M, D), M of at least 2.

    Returns:
        The estimate, which may be slightly below 0 for equal distributions.

    Raises:
        ValueError: for fewer than 2 rows, or features that are not finite.
    """
    from torchmetrics.image.kid import poly_mmd

    _check(first, second)
    return float(poly_mmd(torch.from_numpy(first), torch.from_numpy(second)))


def _check(*sets: numpy.ndarray) -> None:
    for features in sets:
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"a distribution needs at least 2 images, found {len(features)}.")
        if not numpy.isfinite(features).all():
            raise ValueError("the features hold NaN or infinite values: check the extractor.")


def distribution_scores(
    generated: numpy.ndarray, real: numpy.ndarray, generated_groups: numpy.ndarray, real_groups: numpy.ndarray
) -> dict[str, Any]:
    """FID and KID of each group and their means over groups with at least 2 images on both sides.

    Args:
        generated: features of generated images, float64 (N, D).
        real: features of real images, float64 (M, D).
        generated_groups: the group of each generated image, (N,).
        real_groups: the group of each real image, (M,).

    Returns:
        `fid`, `kid` (means over groups), `fid_reliable` (every set has more images than features) and `groups`.

    Raises:
        ValueError: if no group has 2 images on both sides, or features are not finite.
    """
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
        raise ValueError("no group has 2 images on both sides: score more samples.")
    least = min(min(row["generated"], row["real"]) for row in groups.values())
    return {
        "fid": sum(row["fid"] for row in groups.values()) / len(groups),
        "kid": sum(row["kid"] for row in groups.values()) / len(groups),
        "fid_reliable": bool(least > generated.shape[1]),
        "groups": groups,
    }


def image_distribution(
    predictions: Sequence[Image.Image],
    references: Sequence[Image.Image],
    groups: Sequence[str] | None = None,
    extractor: str = DEFAULT,
) -> dict[str, Any]:
    """Distance between the distributions of generated and real images: FID and KID.

    FID is the Frechet distance between Gaussians fitted to the features of both sets, and KID the unbiased squared
    maximum mean discrepancy with the kernel (x.y / d + 1)^3. Both are given per group (modality) and as the mean of
    the groups. FID is biased upwards for few images, and meaningless below the number of features: `fid_reliable` says
    whether every set has more images than features. KID has no such bias. Numbers of different extractors cannot be
    compared.

    Args:
        predictions: generated images.
        references: real images, as many.
        groups: modality of each pair; one group by default.
        extractor: see `image_features.load_feature_extractor`.

    Returns:
        `fid` and `kid` (means over groups), `fid_reliable`, `extractor`, and `groups`: {name: {`fid`, `kid`,
        `generated`, `real`}}.

    Raises:
        ValueError: if no group has two images on both sides, or there is no such extractor.

    Source:
        Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (FID);
        Binkowski et al. 2018, "Demystifying MMD GANs" (KID); Parmar et al. 2022, clean-fid (resize rule).
    """
    extract = load_feature_extractor(extractor)
    names = numpy.array(groups if groups is not None else ["all"] * len(predictions))
    features = [extract(images) for images in (predictions, references)]
    return distribution_scores(features[0], features[1], names, names) | {"extractor": extract.name}


def mean_distance(features: numpy.ndarray) -> float:
    """Mean Euclidean distance of all pairs of rows of features, float64 (N, D), N of at least 2."""
    return float(pdist(features).mean())


def vendi_score(features: numpy.ndarray, width: float) -> float:
    """Effective number of different rows (Friedman and Dieng 2023, definition 3.1), in [1, N].

    Args:
        features: float64 (N, D).
        width: standard deviation of the Gaussian kernel, in units of the features.

    Returns:
        The exponential of the entropy of the eigenvalues of the kernel matrix divided by N.
    """
    kernel = numpy.exp(-(squareform(pdist(features)) ** 2) / (2 * max(width, 1e-12) ** 2)) / len(features)
    values = numpy.linalg.eigvalsh(kernel).clip(min=0)
    values = values[values > 0]
    return float(numpy.exp(-(values * numpy.log(values)).sum()))


def diversity_scores(generated: numpy.ndarray, real: numpy.ndarray, groups: numpy.ndarray) -> dict[str, Any]:
    """Diversity of each group of generated images beside as many real ones, and the means over groups.

    Args:
        generated: features of generated images, float64 (N, D).
        real: features of real images, float64 (N, D).
        groups: the group of the i-th row of both, (N,).

    Returns:
        `mean_distance`, `vendi`, each also as `_ratio` to the real images, and `groups`.

    Raises:
        ValueError: if no group has 2 images, or features are not finite.
    """
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
        raise ValueError("no group has 2 images: score more samples.")
    names = ("mean_distance", "mean_distance_ratio", "vendi", "vendi_ratio")
    return {name: sum(row[name] for row in rows.values()) / len(rows) for name in names} | {"groups": rows}


def diversity(
    predictions: Sequence[Image.Image],
    references: Sequence[Image.Image],
    groups: Sequence[str] | None = None,
    extractor: str = DEFAULT,
) -> dict[str, Any]:
    """How different the generated images of one kind are from one another, beside how different real ones are.

    Within each group (modality), in the features of a named extractor. mean_distance: mean Euclidean distance of all
    pairs. vendi: effective number of different images, the exponential of the entropy of the eigenvalues of the
    Gaussian kernel matrix divided by the number of images; the kernel's width is the median distance of the real
    images. Each is also divided by that of as many real images: 1 is as diverse as reality, near 0 is collapse.

    Args:
        predictions: generated images.
        references: real images, as many.
        groups: modality of each pair; one group by default.
        extractor: see `image_features.load_feature_extractor`.

    Returns:
        `mean_distance`, `vendi` and their `_ratio` to real images, means over groups of at least 2 images; `groups`.

    Raises:
        ValueError: if no group has two images, or there is no such extractor.

    Source:
        Friedman and Dieng 2023, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR.
    """
    extract = load_feature_extractor(extractor)
    names = numpy.array(groups if groups is not None else ["all"] * len(predictions))
    return diversity_scores(extract(predictions), extract(references), names) | {"extractor": extract.name}
