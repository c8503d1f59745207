"""The nearest training image of a generated one, and whether generated images are copies of training images."""

from collections.abc import Sequence
from typing import Any

import numpy
from PIL import Image
from scipy.stats import binomtest

SIDE = 32
# Root mean square difference of levels in [0, 1] below which two images of 32x32 are taken for the same.
COPY = 0.02
SIGNIFICANCE = 0.01


def thumbnails(images: Sequence[Image.Image]) -> numpy.ndarray:
    """Gray levels in [0, 1] averaged over a grid of 32 x 32, float32 (images, 32 * 32)."""
    rows = [
        numpy.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=numpy.float32).ravel() / 255
        for image in images
    ]
    return numpy.array(rows, dtype=numpy.float32).reshape(len(rows), SIDE * SIDE)


def nearest(queries: numpy.ndarray, training: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The nearest training thumbnail of each query, mirror images included.

    Args:
        queries: thumbnails, float32 (queries, 1024).
        training: thumbnails, float32 (training images, 1024), at least one.

    Returns:
        root mean square distances in levels of [0, 1], float64 (queries,), and places among the training thumbnails,
        int64 (queries,).

    Raises:
        ValueError: without a training thumbnail.
    """
    if not len(training):
        raise ValueError("there are no training images to compare with.")
    mirrored = training.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE * SIDE)
    squares = (training.astype(numpy.float64) ** 2).sum(axis=1)
    distances, places = numpy.empty(len(queries)), numpy.empty(len(queries), dtype=numpy.int64)
    for row, query in enumerate(queries.astype(numpy.float64)):
        best = squares - 2 * numpy.maximum(training @ query, mirrored @ query)
        places[row] = int(best.argmin())
        other = training[places[row]], mirrored[places[row]]
        distances[row] = min(float(numpy.sqrt(((query - image) ** 2).mean())) for image in other)
    return distances, places


def memorization_scores(generated: numpy.ndarray, held_out: numpy.ndarray) -> dict[str, Any]:
    """The verdict from the distances of generated and of held-out real images to their nearest training images.

    Args:
        generated: distances of generated images as `nearest` returns them, float64 (images,).
        held_out: distances of real images that were not trained on, float64 (images,).

    Returns:
        What `memorization` returns, with its rule.

    Raises:
        ValueError: for an empty set.
    """
    if not len(generated) or not len(held_out):
        raise ValueError("memorization needs generated and held-out images: pass at least one of each.")
    copies, chance = int((generated < COPY).sum()), int((held_out < COPY).sum())
    share, usual = copies / len(generated), chance / len(held_out)
    # The estimated share of chance copies, kept away from 0 by one half of an image.
    expected = min((chance + 0.5) / (len(held_out) + 1), 1.0)
    test = binomtest(copies, len(generated), expected, alternative="greater")
    return {
        "copies": copies,
        "copy_share": share,
        "held_out_copy_share": usual,
        "median_distance": float(numpy.median(generated)),
        "held_out_median_distance": float(numpy.median(held_out)),
        "nearer_than_held_out": float((generated < numpy.quantile(held_out, 0.05)).mean()),
        "p_value": float(test.pvalue),
        "memorized": bool(test.pvalue < SIGNIFICANCE and share >= 0.01),
        "count": len(generated),
    }


def memorization(
    predictions: Sequence[Image.Image], references: Sequence[Image.Image], held_out: Sequence[Image.Image]
) -> dict[str, Any]:
    """Whether generated images are copies of training images.

    Distance of each generated image to the nearest training image: root mean square difference of gray levels in
    [0, 1] after averaging to 32x32, the least over the image and its mirror image. A distance below 0.02 is a copy.
    Held-out real images say how many copies chance (repeated views, near-empty images) would give: the set is flagged
    where its number of copies is above that share (one-sided binomial test, p < 0.01) and at least 1 % of all. In a
    call of the `evaluate` module each of the three sets is one row: `predictions=[images]`.

    Args:
        predictions: generated images.
        references: training images, any number.
        held_out: real images that were not trained on.

    Returns:
        `copies`, `copy_share`, `held_out_copy_share`, `median_distance`, `held_out_median_distance`,
        `nearer_than_held_out` (share of generated images nearer to training images than 95 % of the held-out are),
        `p_value`, `memorized` (bool) and `count`.

    Raises:
        ValueError: for an empty set.

    Source:
        Carlini et al. 2023, "Extracting Training Data from Diffusion Models", USENIX Security (arXiv 2301.13188).
    """
    made, training, others = (thumbnails(images) for images in (predictions, references, held_out))
    return memorization_scores(nearest(made, training)[0], nearest(others, training)[0])
