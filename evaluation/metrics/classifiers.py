"""transformers' image classifiers as judges of generated images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image


class ImageClassifier:
    """A transformers image classifier.

    Args:
        path: local folder, or a Hub name where `local_only` is off.
        local_only: never ask the Hub.

    Attributes:
        labels: {label: column}.

    Raises:
        ValueError: if there is no classifier.
    """

    def __init__(self, path: str | Path, local_only: bool = True):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        # Without an answer to that, transformers asks on the terminal whether a folder's code may run.
        options: dict[str, Any] = {"local_files_only": local_only, "trust_remote_code": False}
        try:
            self.model = AutoModelForImageClassification.from_pretrained(path, use_safetensors=True, **options).eval()
            self.processor = AutoImageProcessor.from_pretrained(path, **options)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} holds no image classifier of transformers: {str(error).splitlines()[0]}"
            ) from error
        self.labels: dict[str, int] = self.model.config.label2id

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        """Probabilities of all labels, float64 (images, labels): sigmoid where it is multi-label, else softmax."""
        inputs = self.processor([image.convert("RGB") for image in images], return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device)).logits.float()
        several = self.model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if several else logits.softmax(dim=-1)).double().cpu().numpy()


def load_classifier(path: str | Path, label: str) -> Callable[[Sequence[Image.Image]], numpy.ndarray]:
    """The probability that a classifier in a local folder gives to one of its labels, float64 (images,).

    Raises:
        ValueError: if the folder holds no classifier, or it does not know the label.
    """
    classifier = ImageClassifier(path)
    if label not in classifier.labels:
        raise ValueError(f"{path} knows the labels {', '.join(sorted(classifier.labels))}, not {label}.")
    return lambda images: classifier(images)[:, classifier.labels[label]]
