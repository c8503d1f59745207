"""Whether drawn images show the squares of their latent tokens."""

from collections.abc import Sequence

import numpy

from unimedvl.evaluation.metrics.images import ImageLike, rgb_pixels

from .model import UNIT


def border_ratio(images: Sequence[ImageLike], unit: int = UNIT) -> float:
    """Mean step of levels across the borders of tokens over the mean step inside of tokens.

    A step is the absolute difference of two neighbors in a row or a column, in levels. Real images, which know of no
    tokens, score about 1; a mosaic of the tokens scores above 1, and squares smoothed at their borders below.

    Args:
        images: 8-bit images, each of sides larger than `unit`; tokens start at the upper left corner.
        unit: side of a token in pixels, 2 or more.

    Returns:
        The ratio, at least 0: infinite for plain squares of different levels, 1 for images of one level each.

    Raises:
        ValueError: if there is no image, or one has a single row or column of tokens.
    """
    sums, counts = numpy.zeros(2), numpy.zeros(2)
    for image in images:
        levels = rgb_pixels(image).astype(numpy.float64)
        if min(levels.shape[:2]) <= unit:
            raise ValueError(f"an image of {levels.shape[:2]} pixels has no border of tokens of {unit} pixels.")
        for axis in (0, 1):
            steps = numpy.abs(numpy.diff(levels, axis=axis)).mean(axis=(1 - axis, 2))
            at_border = numpy.arange(1, len(steps) + 1) % unit == 0
            for kind, chosen in enumerate((at_border, ~at_border)):
                sums[kind] += steps[chosen].sum()
                counts[kind] += chosen.sum()
    if not counts.all():
        raise ValueError("no images: give one or more.")
    border, inside = sums / counts
    if inside == 0:
        return float("inf") if border > 0 else 1.0
    return float(border / inside)
