"""Whether a counterfactual shows what was asked for, judged by a classifier: AUROC and F1."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy
import torch
from PIL import Image

THRESHOLD = 0.5
DESCRIPTION = """A classifier, independent of the model, looks at the generated picture: does it give a finding that
should be there a higher probability than one that should not? AUROC over all pictures, and F1 at a threshold
(torchmetrics). The paper "follows ProgEmu" without naming the classifier, labels or threshold: its figures are not
comparable with those of another classifier."""
INPUTS = """
Args:
    predictions (list of float): probability of the finding. references (list of int): 1 where it should be there.
    threshold: for F1.
Returns:
    auroc (None where only one class occurs), f1, count.
"""
CITATION = """@article{ma2025progemu, title={Towards Interpretable Counterfactual Generation via Multimodal
Autoregression}, author={Ma, Chenglong and others}, year={2025}}"""

Classifier = Callable[[Sequence[Image.Image]], numpy.ndarray]


def auroc(probabilities: Sequence[float], present: Sequence[int]) -> float | None:
    """Area under the ROC curve; None where only one class occurs."""
    from torchmetrics.functional.classification import binary_auroc

    scores, truth = _checked(probabilities, present)
    if len(set(truth.tolist())) < 2:
        return None
    return float(binary_auroc(scores, truth))


def f1(probabilities: Sequence[float], present: Sequence[int], threshold: float = THRESHOLD) -> float:
    """F1 of the finding; 0 where it occurs neither in truth nor in the predictions."""
    from torchmetrics.functional.classification import binary_f1_score

    scores, truth = _checked(probabilities, present)
    return float(binary_f1_score(scores, truth, threshold=threshold))


def _checked(probabilities: Sequence[float], present: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.tensor(numpy.asarray(probabilities, dtype=numpy.float64))
    truth = torch.tensor(numpy.asarray(present, dtype=numpy.int64))
    if not len(scores):
        raise ValueError("there is nothing to score: pass at least one probability.")
    if not bool(torch.isfinite(scores).all()) or float(scores.min()) < 0 or float(scores.max()) > 1:
        raise ValueError("probabilities must lie in [0, 1]: found NaN or other values.")
    if not set(truth.tolist()) <= {0, 1}:
        raise ValueError("references must be 0 or 1.")
    return scores, truth


def load_classifier(path: str | Path, label: str) -> Classifier:
    """A transformers image classifier in a local folder, as the probability of one of its labels.

    Raises:
        ValueError: if the folder holds none, or it does not know the label.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    # Without an answer to that, transformers asks on the terminal whether a folder's code may run.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForImageClassification.from_pretrained(path, use_safetensors=True, **options).eval()
        processor = AutoImageProcessor.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no image classifier of transformers: {str(error).splitlines()[0]}") from error
    known = model.config.label2id
    if label not in known:
        raise ValueError(f"{path} knows the labels {', '.join(sorted(known))}, not {label}.")
    several = model.config.problem_type == "multi_label_classification"

    @torch.inference_mode()
    def classify(images: Sequence[Image.Image]) -> numpy.ndarray:
        logits = model(**processor([image.convert("RGB") for image in images], return_tensors="pt")).logits
        probabilities = logits.sigmoid() if several else logits.softmax(dim=-1)
        return probabilities[:, known[label]].double().numpy()

    return classify


class CounterfactualScore(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://github.com/Masaaki-75/progemu"],
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[int], threshold: float = THRESHOLD
    ) -> dict[str, Any]:
        return {
            "auroc": auroc(predictions, references),
            "f1": f1(predictions, references, threshold),
            "count": len(predictions),
        }
