"""Whether generated pictures are copies of training pictures."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy
from PIL import Image
from scipy.stats import binomtest

SIDE = 32
# Root mean square difference of levels in [0, 1] below which two pictures of 32x32 are taken for the same.
COPY = 0.02
SIGNIFICANCE = 0.01

DESCRIPTION = """Distance of each generated picture to the nearest training picture: root mean square difference of
grey levels in [0, 1] after averaging to 32x32, the least over the picture and its mirror image. A distance below 0.02
is a copy. Held-out real pictures say how many copies chance (repeated views, near-empty pictures) would give: the set
is flagged where its number of copies is above that share (one-sided binomial test, p < 0.01) and at least 1 % of all.
`nearer_than_held_out` is the share of generated pictures nearer to training pictures than 95 % of the held-out are."""
INPUTS = """
Args:
    predictions (list of images): generated. references (list of images): training pictures, any number.
    held_out (list of images): real pictures that were not trained on.
Returns:
    copies, copy_share, held_out_copy_share, median_distance, nearer_than_held_out, memorised (bool), count.
"""
CITATION = """@inproceedings{carlini2023extracting, title={Extracting Training Data from Diffusion Models},
author={Carlini, Nicholas and others}, year={2023}}"""


def thumbnails(images: Sequence[Image.Image]) -> numpy.ndarray:
    """Grey levels in [0, 1], float32 (pictures, 32 * 32)."""
    rows = [
        numpy.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=numpy.float32).ravel() / 255
        for image in images
    ]
    return numpy.array(rows, dtype=numpy.float32).reshape(len(rows), SIDE * SIDE)


def nearest(queries: numpy.ndarray, training: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Distance (queries,) of each thumbnail to the nearest training thumbnail or its mirror image, and its index."""
    if not len(training):
        raise ValueError("there are no training pictures to compare with.")
    mirrored = training.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE * SIDE)
    squares = (training.astype(numpy.float64) ** 2).sum(axis=1)
    distances, places = numpy.empty(len(queries)), numpy.empty(len(queries), dtype=numpy.int64)
    for row, query in enumerate(queries.astype(numpy.float64)):
        best = squares - 2 * numpy.maximum(training @ query, mirrored @ query)
        places[row] = int(best.argmin())
        other = training[places[row]], mirrored[places[row]]
        distances[row] = min(float(numpy.sqrt(((query - picture) ** 2).mean())) for picture in other)
    return distances, places


def memorisation_scores(generated: numpy.ndarray, held_out: numpy.ndarray) -> dict[str, Any]:
    """The verdict from nearest distances of generated and of held-out pictures."""
    if not len(generated) or not len(held_out):
        raise ValueError("memorisation needs generated and held-out pictures: pass at least one of each.")
    copies, chance = int((generated < COPY).sum()), int((held_out < COPY).sum())
    share, usual = copies / len(generated), chance / len(held_out)
    # The estimated share of chance copies, kept away from 0 by one half of a picture.
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
        "memorised": bool(test.pvalue < SIGNIFICANCE and share >= 0.01),
        "count": len(generated),
    }


class Memorisation(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        pictures = datasets.List(datasets.Image())
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            # One row: the three sets have different sizes.
            features=datasets.Features({"predictions": pictures, "references": pictures, "held_out": pictures}),
            reference_urls=["https://arxiv.org/abs/2301.13188"],
        )

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], held_out: Sequence[Any]
    ) -> dict[str, Any]:
        made, training, others = (
            thumbnails([image for row in rows for image in row]) for rows in (predictions, references, held_out)
        )
        return memorisation_scores(nearest(made, training)[0], nearest(others, training)[0])
