"""Overlap of masks equals counts by hand and distances of scipy, on random and edge inputs."""

import numpy
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from unimedvl.evaluation.metrics import masks


@pytest.mark.parametrize("seed", range(6))
def test_masks_by_hand(seed):
    draw = numpy.random.default_rng(seed)
    first, second = (gaussian_filter(draw.random((24, 30)), 2) > 0.5 for _ in range(2))
    found = masks.mask_scores(first, second)
    a, b = ({tuple(place) for place in numpy.argwhere(mask)} for mask in (first, second))
    assert found["dice"] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert found["iou"] == pytest.approx(len(a & b) / len(a | b))

    def surface(points):
        steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return numpy.array([p for p in points if any((p[0] + y, p[1] + x) not in points for y, x in steps)])

    distances = cdist(surface(a), surface(b))
    wanted = max(numpy.percentile(distances.min(axis=1), 95), numpy.percentile(distances.min(axis=0), 95))
    assert found["hd95"] == pytest.approx(wanted)


def test_edge_masks():
    empty, full = numpy.zeros((6, 8), bool), numpy.ones((6, 8), bool)
    assert masks.mask_scores(empty, empty) == {"dice": 1, "iou": 1, "hd95": 0}
    assert masks.mask_scores(full, full) == {"dice": 1, "iou": 1, "hd95": 0}
    assert masks.mask_scores(empty, full) == {"dice": 0, "iou": 0, "hd95": 10}
    with pytest.raises(ValueError, match="NaN"):
        masks.read_mask(numpy.full((6, 8), numpy.nan))
    gray = Image.fromarray(numpy.array([[127, 128], [0, 255]], numpy.uint8))
    assert masks.read_mask(gray).tolist() == [[False, True], [False, True]]
    assert masks.read_mask(gray, (4, 4)).sum() == 8
    # Half-way between black and white is dark.
    assert masks.read_mask(numpy.array([[127.5, 127.6]])).tolist() == [[False, True]]


def test_single_numbers_are_those_of_the_row():
    draw = numpy.random.default_rng(9)
    first, second = (draw.random((20, 20)) > 0.5 for _ in range(2))
    row = masks.mask_scores(first, second)
    assert row == {
        "dice": masks.dice(first, second),
        "iou": masks.iou(first, second),
        "hd95": masks.hausdorff_95(first, second),
    }


def test_another_size_is_resized_to_the_reference():
    """Half of the reference's pixels, whatever the size of the prediction."""
    small, large = numpy.zeros((4, 4), bool), numpy.ones((8, 8), bool)
    small[:, :2] = True
    assert masks.dice(small, large) == pytest.approx(2 * 32 / (32 + 64))
    assert masks.iou(small, large) == 0.5
