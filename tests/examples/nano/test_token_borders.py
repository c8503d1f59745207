"""The figure for latent tokens that show."""

import numpy
import pytest
from PIL import Image, ImageFilter

from examples.nano.token_borders import border_ratio


def noise(number, side=64):
    return numpy.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=numpy.uint8)


def mosaic(number, contrast):
    """Noise on squares of 8 pixels that differ by up to `contrast` levels."""
    squares = numpy.random.default_rng(number).integers(0, contrast + 1, (8, 8, 1))
    return (noise(number) // 8 + numpy.kron(squares, numpy.ones((8, 8, 1), dtype=int))).astype(numpy.uint8)


def test_images_that_know_of_no_tokens_score_one():
    smooth = [Image.fromarray(noise(number)).filter(ImageFilter.GaussianBlur(3)) for number in range(40)]
    assert border_ratio(smooth) == pytest.approx(1.0, abs=0.05)
    assert border_ratio([noise(number) for number in range(40)]) == pytest.approx(1.0, abs=0.02)


def test_a_mosaic_scores_more_the_more_it_shows():
    scores = [border_ratio([mosaic(number, contrast) for number in range(10)]) for contrast in (0, 20, 60, 200)]
    assert scores[0] == pytest.approx(1.0, abs=0.05)
    assert scores == sorted(scores) and scores[-1] > 3


def test_borders_lie_where_the_tokens_do():
    image = mosaic(0, 200)
    moved = numpy.roll(image, 4, axis=(0, 1))
    assert border_ratio([moved]) < 1.0 < border_ratio([moved], unit=4) < border_ratio([image])
    wide = numpy.concatenate([image, image], axis=1)
    assert border_ratio([wide]) > 3
    assert border_ratio([wide.transpose(1, 0, 2)]) == pytest.approx(border_ratio([wide]), rel=1e-9)


def test_plain_images():
    plain = numpy.full((16, 16, 3), 7, dtype=numpy.uint8)
    assert border_ratio([plain]) == 1.0
    plain[8:] = 9
    assert border_ratio([plain]) == float("inf")
    with pytest.raises(ValueError, match="has no border of tokens"):
        border_ratio([plain[:8]])
    with pytest.raises(ValueError, match="no images"):
        border_ratio([])
