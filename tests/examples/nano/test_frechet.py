"""Distances of drawn to real images by modality."""

import numpy
import pytest
from PIL import Image

from examples.nano.frechet import SIDE, distances, features_of


def test_images_that_are_moved_are_as_far_as_they_were_moved():
    real = {name: numpy.random.default_rng(seed).normal(size=(60, 8)) for seed, name in enumerate(("CT", "MRI"))}
    found = distances({"CT": real["CT"] + 2.0, "MRI": real["MRI"]}, real)
    # Equal covariances leave the squared distance of the means: eight features, each moved by two.
    assert found["CT"]["distance"] == pytest.approx(8 * 2.0**2, rel=1e-3)
    assert found["MRI"]["distance"] == pytest.approx(0.0, abs=1e-2)
    assert (found["CT"]["drawn"], found["CT"]["real"]) == (60, 60)
    assert 0 < found["CT"]["halves of real images"] < found["CT"]["distance"]


def test_features_are_of_images_at_one_size():
    sizes = []

    def extractor(images):
        sizes.extend(image.size for image in images)
        return numpy.array([[numpy.asarray(image).mean()] for image in images])

    found = features_of(extractor, {"US": [Image.new("L", (96, 72), 10), Image.new("RGB", (20, 30), (7, 7, 7))]})
    assert sizes == [(SIDE, SIDE)] * 2
    assert found["US"].tolist() == [[10.0], [7.0]]
