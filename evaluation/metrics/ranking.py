"""Whether scores set two kinds apart: AUROC, F1, counterfactuals as a classifier sees them, and reader studies."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch

# Of a probability above which a finding counts as shown, and of a rating above which an image is called generated.
PROBABILITY, RATING = 0.5, 3.0


def auroc(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """The chance that a positive scores above a negative, ties counting half: the area under the ROC curve.

    Args:
        scores: any finite numbers, more for what is rather positive.
        labels: 1 for positives, 0 for negatives.

    Returns:
        the area in [0, 1] (torchmetrics, float32), None where only one kind occurs.

    Raises:
        ValueError: without a score, for NaN or infinite scores, or labels other than 0 and 1.
    """
    from torchmetrics.functional.classification import binary_auroc

    values, truth = _checked(scores, labels)
    if len(numpy.unique(truth)) < 2:
        return None
    # Only the order counts. Ranks in [0, 1] keep it, where torchmetrics would put other scores through a sigmoid, in
    # which large ones tie.
    ranks = numpy.unique(values, return_inverse=True)[1] / len(values)
    return float(binary_auroc(torch.from_numpy(ranks), torch.from_numpy(truth), validate_args=False))


def f1_score(probabilities: Sequence[float], labels: Sequence[int], threshold: float = PROBABILITY) -> float:
    """F1 of the positives in [0, 1] (torchmetrics); 0 where they occur neither in truth nor in the predictions.

    Args:
        probabilities: of being positive, in [0, 1].
        labels: 1 for positives, 0 for negatives.
        threshold: what is above it is called positive.

    Raises:
        ValueError: for probabilities outside [0, 1], and for what `auroc` refuses.
    """
    from torchmetrics.functional.classification import binary_f1_score

    values, truth = _checked(probabilities, labels)
    if values.min() < 0 or values.max() > 1:
        raise ValueError("probabilities must lie in [0, 1]: found other values.")
    return float(binary_f1_score(torch.from_numpy(values), torch.from_numpy(truth), threshold=threshold))


def _checked(scores: Sequence[float], labels: Sequence[int]) -> tuple[numpy.ndarray, numpy.ndarray]:
    values, truth = numpy.asarray(scores, dtype=numpy.float64), numpy.asarray(labels, dtype=numpy.int64)
    if not len(values):
        raise ValueError("there is nothing to score: pass at least one score.")
    if not numpy.isfinite(values).all():
        raise ValueError("every entry needs a score: found NaN or infinite ones.")
    if not set(truth.tolist()) <= {0, 1}:
        raise ValueError("labels must be 0 or 1.")
    return values, truth


def counterfactual(
    predictions: Sequence[float], references: Sequence[int], threshold: float = PROBABILITY
) -> dict[str, Any]:
    """Whether counterfactuals show what was asked for, judged by a classifier: AUROC and F1.

    A classifier, independent of the model, looks at the generated image: does it give a finding that should be there a
    higher probability than one that should not? AUROC over all images, and F1 at a threshold (torchmetrics). The paper
    "follows ProgEmu" without naming the classifier, labels or threshold: its figures are not comparable with those of
    another classifier.

    Args:
        predictions: probability of the finding in each image.
        references: 1 where it should be there, else 0.
        threshold: for F1.

    Returns:
        `auroc` (None where only one kind occurs), `f1`, `count`.

    Raises:
        ValueError: without an image, or for probabilities outside [0, 1].

    Source:
        Ma et al. 2025, "Towards Interpretable Counterfactual Generation via Multimodal Autoregression" (ProgEmu).
    """
    return {
        "f1": f1_score(predictions, references, threshold),
        "auroc": auroc(predictions, references),
        "count": len(predictions),
    }


def reader_study(predictions: Sequence[float], references: Sequence[int], threshold: float = RATING) -> dict[str, Any]:
    """Whether readers can distinguish generated images from real ones: rates, and the ROC of their confidence.

    Readers rate each image from 1 (surely real) to 5 (surely generated) without knowing which it is.
    true_positive_rate: generated images rated above the threshold; true_negative_rate: real images rated at most it;
    balanced_accuracy: their mean, 0.5 where readers only guess. auroc: area under the ROC of the ratings, ties
    counted half. The paper's study (A.6.1: 50 + 50 images, two experts): 0.64, 0.80, 0.72.

    Args:
        predictions: ratings, of one reader or of several together.
        references: 1 for generated images, 0 for real ones.
        threshold: ratings above it call the image generated.

    Returns:
        `true_positive_rate`, `true_negative_rate`, `balanced_accuracy`, `auroc`, `roc` (list of [false positive rate,
        true positive rate], from (0, 0) to (1, 1)) and `count`.

    Raises:
        ValueError: for missing ratings, or images of one kind only.

    Source:
        Zhou, Obuchowski and McClish 2011, "Statistical Methods in Diagnostic Medicine"; the paper, appendix A.6.1.
    """
    area = auroc(predictions, references)
    if area is None:
        raise ValueError("a reader study needs generated and real images: found one kind only.")
    values, truth = numpy.asarray(predictions, dtype=numpy.float64), numpy.asarray(references, dtype=bool)
    called = values > threshold
    sensitivity, specificity = float(called[truth].mean()), float((~called[~truth]).mean())
    cuts = [numpy.inf, *sorted(set(values.tolist()), reverse=True)]
    roc = [[float((values[~truth] >= cut).mean()), float((values[truth] >= cut).mean())] for cut in cuts]
    return {
        "true_positive_rate": sensitivity,
        "true_negative_rate": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "auroc": area,
        "roc": roc,
        "count": len(values),
    }
