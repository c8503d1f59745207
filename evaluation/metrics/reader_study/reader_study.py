"""Whether readers can tell generated pictures from real ones: rates, and the ROC of their confidence."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy

DESCRIPTION = """Readers rate each picture from 1 (surely real) to 5 (surely generated) without knowing which it is.
true_positive_rate: generated pictures rated above the threshold; true_negative_rate: real pictures rated at most it;
balanced_accuracy: their mean, 0.5 where readers cannot tell. auroc: area under the ROC of the ratings, ties counted
half. The paper's study (A.6.1: 50 + 50 pictures, two experts): 0.64, 0.80, 0.72."""
INPUTS = """
Args:
    predictions (list of float): ratings. references (list of int): 1 for generated, 0 for real.
    threshold: ratings above it call the picture generated (default 3).
Returns:
    true_positive_rate, true_negative_rate, balanced_accuracy, auroc, roc (list of [false, true positive rate]), count.
"""
CITATION = """@book{zhou2011statistical, title={Statistical Methods in Diagnostic Medicine}, author={Zhou, Xiao-Hua and
others}, year={2011}}"""


def reader_scores(ratings: Sequence[float], generated: Sequence[int], threshold: float = 3) -> dict[str, Any]:
    """The scores of one reader, or of several whose ratings are put together.

    Raises:
        ValueError: for missing ratings, or pictures of one kind only.
    """
    from scipy.stats import rankdata

    values, truth = numpy.asarray(ratings, dtype=numpy.float64), numpy.asarray(generated, dtype=bool)
    if not numpy.isfinite(values).all():
        raise ValueError("every picture needs a rating: some are missing.")
    made, real = int(truth.sum()), int((~truth).sum())
    if not made or not real:
        raise ValueError("a reader study needs generated and real pictures: found one kind only.")
    called = values > threshold
    sensitivity, specificity = float(called[truth].mean()), float((~called[~truth]).mean())
    area = (rankdata(values)[truth].sum() - made * (made + 1) / 2) / (made * real)
    cuts = [numpy.inf, *sorted(set(values.tolist()), reverse=True)]
    roc = [[float((values[~truth] >= cut).mean()), float((values[truth] >= cut).mean())] for cut in cuts]
    return {
        "true_positive_rate": sensitivity,
        "true_negative_rate": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "auroc": float(area),
        "roc": roc,
        "count": len(values),
    }


class ReaderStudy(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2510.15710"],
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[int], threshold: float = 3
    ) -> dict[str, Any]:
        return reader_scores(predictions, references, threshold)
