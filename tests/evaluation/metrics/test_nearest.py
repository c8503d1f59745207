"""Copies of training images are found, and chance is allowed for."""

import numpy
import pytest
from PIL import Image
from scipy.stats import binom

from unimedvl.evaluation.metrics import nearest


def test_memorization_flags_returned_images_only():
    draw = numpy.random.default_rng(0)
    training = [Image.fromarray(draw.integers(0, 256, (8, 8), dtype=numpy.uint8)).resize((64, 64)) for _ in range(60)]
    others = [Image.fromarray(draw.integers(0, 256, (8, 8), dtype=numpy.uint8)).resize((64, 64)) for _ in range(60)]
    seen, fresh, held_out = (nearest.thumbnails(images) for images in (training, others[:30], others[30:]))
    distances, places = nearest.nearest(seen[7:9], seen)
    assert distances == pytest.approx([0, 0], abs=1e-6) and places.tolist() == [7, 8]
    mirrored = nearest.thumbnails([training[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert nearest.nearest(mirrored, seen)[0] == pytest.approx([0], abs=1e-6)
    usual = nearest.nearest(held_out, seen)[0]
    caught = nearest.memorization_scores(nearest.nearest(seen[:30], seen)[0], usual)
    clean = nearest.memorization_scores(nearest.nearest(fresh, seen)[0], usual)
    assert caught["memorized"] and caught["copies"] == 30 and not clean["memorized"] and clean["copies"] == 0
    with pytest.raises(ValueError, match="no training images"):
        nearest.nearest(seen, seen[:0])


def test_the_set_function_is_the_same_from_images():
    draw = numpy.random.default_rng(1)
    images = [Image.fromarray(draw.integers(0, 256, (40, 40), dtype=numpy.uint8)) for _ in range(30)]
    made, training, held_out = images[:10], images[5:20], images[20:]
    found = nearest.memorization(made, training, held_out)
    assert found["copies"] == 5 and found["copy_share"] == 0.5 and found["count"] == 10
    # Without a chance copy among ten, the expected share is (0 + 1/2) / (10 + 1).
    assert found["p_value"] == pytest.approx(binom.sf(4, 10, 0.5 / 11))


def test_chance_copies_are_not_taken_for_none_where_few_images_were_held_out():
    """No copy among 10 held-out images means half a copy in 11: 3 copies in 100 are no more than that."""
    found = nearest.memorization_scores(numpy.array([0.0] * 3 + [0.3] * 97), numpy.full(10, 0.3))
    assert found["copies"] == 3 and found["held_out_copy_share"] == 0
    assert found["p_value"] == pytest.approx(binom.sf(2, 100, 0.5 / 11), rel=1e-9)
    assert not found["memorized"]
    # Among 1000 they are: 1 - P(at most 2 of 100 at 0.5 / 1001) is far below 1 %.
    found = nearest.memorization_scores(numpy.array([0.0] * 3 + [0.3] * 97), numpy.full(1000, 0.3))
    assert found["p_value"] == pytest.approx(binom.sf(2, 100, 0.5 / 1001), rel=1e-6)
    assert found["memorized"]
    # One copy among 10 counts as one and a half of 11.
    found = nearest.memorization_scores(numpy.array([0.0] * 30 + [0.3] * 70), numpy.array([0.0] + [0.3] * 9))
    assert found["p_value"] == pytest.approx(binom.sf(29, 100, 1.5 / 11), rel=1e-6)
