"""Distances and diversity of sets equal independent implementations, on random and edge inputs."""

import numpy
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from unimedvl.evaluation.metrics import distributions


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_fid_of_gaussians_with_a_known_distance(dtype):
    """Exact means and covariances: |m1 - m2|^2 + sum (s1 - s2)^2 for diagonal ones."""
    draw = numpy.random.default_rng(0)
    raw = draw.normal(size=(500, 4))
    centered = raw - raw.mean(axis=0)
    white = centered @ numpy.linalg.inv(numpy.linalg.cholesky(numpy.cov(centered, rowvar=False))).T
    first = (white * [1, 2, 3, 4] + [0, 1, 0, 0]).astype(dtype)
    second = (white * [2, 2, 1, 4] + [3, 1, 0, 2]).astype(dtype)
    assert distributions.frechet_distance(first, second) == pytest.approx(9 + 4 + 1 + 4, rel=1e-4)
    assert distributions.frechet_distance(first, first) == pytest.approx(0, abs=1e-4)


class Flatten(torch.nn.Module):
    num_features = 12

    def forward(self, x):
        return x.float().flatten(1)[:, :12]


@pytest.mark.parametrize("seed", range(3))
def test_fid_equals_scipy_and_torchmetrics(seed):
    draw = numpy.random.default_rng(seed)
    first, second = (draw.normal(size=(40, 12)) @ draw.normal(size=(12, 12)) for _ in range(2))
    covariances = [numpy.cov(x, rowvar=False) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + numpy.trace(covariances[0] + covariances[1] - 2 * root)
    assert distributions.frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    bytes_ = [draw.integers(0, 60 + 60 * side, (40, 12), dtype=numpy.uint8) for side in range(2)]
    other = FrechetInceptionDistance(feature=Flatten(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    for features, real in zip(bytes_, (True, False), strict=True):
        other.update(torch.from_numpy(features).reshape(40, 3, 2, 2), real=real)
    ours = distributions.frechet_distance(*(features.astype(float) for features in bytes_))
    assert ours == pytest.approx(float(other.compute()), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_kid_by_definition(seed):
    draw = numpy.random.default_rng(seed)
    x, y = draw.normal(size=(15, 5)), draw.normal(0.3, 1, size=(15, 5))

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    m = len(x)
    within = sum((kernel(a, a).sum() - numpy.trace(kernel(a, a))) / (m * (m - 1)) for a in (x, y))
    wanted = within - 2 * kernel(x, y).mean()
    assert distributions.kernel_distance(x, y) == pytest.approx(wanted, abs=1e-9)


def test_edge_distributions():
    constant = numpy.ones((5, 3))
    assert distributions.frechet_distance(constant, constant) == 0
    with pytest.raises(ValueError, match="at least 2"):
        distributions.frechet_distance(constant[:1], constant)
    with pytest.raises(ValueError, match="NaN"):
        distributions.kernel_distance(constant, constant * numpy.nan)


def test_diversity_of_known_sets():
    """Far apart rows are all different (Vendi = their number); equal rows are one."""
    far = numpy.eye(5) * 100
    assert distributions.vendi_score(far, 1.0) == pytest.approx(5)
    assert distributions.vendi_score(numpy.ones((5, 3)), 1.0) == pytest.approx(1)
    assert distributions.mean_distance(numpy.array([[0.0], [1], [3]])) == pytest.approx(2)
    found = distributions.diversity_scores(numpy.ones((5, 5)), far, numpy.array(["a"] * 5))
    assert found["mean_distance_ratio"] == 0 and found["vendi"] == pytest.approx(1) and found["vendi_ratio"] < 0.5
