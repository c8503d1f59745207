"""Scores of single images that need no library: whether the asked change was made, and whether nothing was."""

import numpy
import pytest
from PIL import Image

from unimedvl.evaluation.metrics.images import change_score, is_copy


def halves(left: int, right: int, size: tuple[int, int] = (16, 8)) -> Image.Image:
    """A gray image of two halves."""
    levels = numpy.full((size[1], size[0]), left, dtype=numpy.uint8)
    levels[:, size[0] // 2 :] = right
    return Image.fromarray(levels)


BEFORE, AFTER = halves(100, 100), halves(150, 100)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (halves(150, 100), 1.0),  # the change itself
        (halves(120, 100), 1.0),  # less of it, but nothing else
        (halves(50, 100), -1.0),  # its opposite
        (halves(100, 150), 0.0),  # as large a change elsewhere
        (halves(150, 150), 0.5**0.5),  # the change, and as much elsewhere
        (halves(50, 150), -(0.5**0.5)),
        (halves(100, 100), 0.0),  # a copy of the input
    ],
)
def test_change_is_the_cosine_with_the_change_that_was_asked_for(made, expected):
    assert change_score(made, BEFORE, AFTER) == pytest.approx(expected, abs=1e-6)
    assert change_score(made.convert("RGB"), BEFORE, AFTER) == pytest.approx(expected, abs=1e-6)


def test_where_nothing_had_to_change_there_is_no_score():
    assert change_score(AFTER, BEFORE, BEFORE) is None


def test_a_copy_is_the_input_up_to_two_levels_and_its_size():
    for made in (BEFORE, halves(101, 101), halves(100, 100, (32, 16))):
        assert is_copy(made, BEFORE)
    assert not is_copy(halves(102, 102), BEFORE) and not is_copy(AFTER, BEFORE)
    # Three levels in half of the image are a root mean square of 2.1, and of 1.4 where it is two.
    assert is_copy(halves(102, 100), BEFORE) and not is_copy(halves(103, 100), BEFORE)
