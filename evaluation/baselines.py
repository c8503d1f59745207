"""Predictors that need no model: references that every model has to be better than.

majority        the commonest training answer; for masks the mean training mask of the target
question-only   the answer that the most similar training questions have, never looking at an image
copy-input      the input image as the result (for super-resolution that is plain interpolation)
training-image  a training image of the same modality instead of a generated one
"""

import collections
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy
from PIL import Image

from unimedvl.unimed5m.task_images import shown_image

from .metrics.nearest import SIDE, thumbnails
from .predictions import Prediction
from .samples import TASKS, Sample
from .text_neighbors import TextNeighbors

NAMES = ("majority", "question-only", "copy-input", "training-image")
NEIGHBORS = 15
MASK_SIDE = 64
# Training images per task and modality that `training-image` chooses from.
KEPT_IMAGES = 100


class TrainingSplit:
    """The training split as the baselines and the search for copies use it, read once.

    Attributes:
        count: training samples read.
        searched: of these, samples with an image that is only generated from text.
        thumbnails: gray thumbnails of all training target images, float32 (images, 1024), see `metrics.nearest`.
    """

    def __init__(self, samples: Iterable[Sample], images: bool = True):
        """
        Args:
            images: also read the images of tasks that draw.
        """
        self.count = self.searched = 0
        self.answers: dict[tuple[str, str], collections.Counter[str]] = {}
        self.questions: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.images: dict[tuple[str, str], list[tuple[str, Any]]] = {}
        masks: dict[str, list[numpy.ndarray]] = {}
        rows: list[numpy.ndarray] = []
        seen: set[str] = set()
        for sample in samples:
            self.count += 1
            task = TASKS[sample.task]
            if task.writes and not task.draws:
                key = sample.task, sample.kind
                self.answers.setdefault(key, collections.Counter())[sample.reference] += 1
                self.questions.setdefault(key, []).append((sample.text, sample.reference))
            if not images or not task.draws or sample.output is None:
                continue
            if task.family == "segmentation":
                small = shown_image(sample.output).convert("L").resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX)
                masks.setdefault(str(sample.extra.get("target", "")), []).append(numpy.asarray(small) / 255)
            elif task.family == "generation":
                kept = self.images.setdefault((sample.task, sample.modality), [])
                # The smallest digests: a random choice that any machine repeats.
                kept.append((hashlib.sha256(sample.id.encode()).hexdigest(), sample.output))
                kept.sort(key=lambda pair: pair[0])
                del kept[KEPT_IMAGES:]
                self.searched += 1
            if task.family == "generation" and sample.output.sha256 not in seen:
                seen.add(sample.output.sha256)
                rows.append(thumbnails([shown_image(sample.output)])[0])
        self.thumbnails = numpy.array(rows, dtype=numpy.float32).reshape(len(rows), SIDE * SIDE)
        self.masks = {target: numpy.mean(found, axis=0) > 0.5 for target, found in masks.items()}
        self._neighbors: dict[tuple[str, str], TextNeighbors] = {}

    def majority(self, sample: Sample) -> str:
        """The commonest training answer to questions of this kind; of equals the first in the alphabet."""
        counts = self.answers.get((sample.task, sample.kind)) or collections.Counter({"": 0})
        return min(counts.items(), key=lambda pair: (-pair[1], pair[0]))[0]

    def from_question(self, sample: Sample) -> str:
        """The vote of the training questions that are most similar in words."""
        key = sample.task, sample.kind
        if key not in self.questions:
            return ""
        if key not in self._neighbors:
            self._neighbors[key] = TextNeighbors([question for question, _ in self.questions[key]])
        votes: dict[str, float] = collections.defaultdict(float)
        for place, weight in self._neighbors[key].nearest(sample.text, NEIGHBORS):
            votes[self.questions[key][place][1]] += weight
        return min(votes.items(), key=lambda pair: (-pair[1], pair[0]))[0]


class Baseline:
    """A predictor without a model."""

    def __init__(self, name: str, training: TrainingSplit):
        self.name, self.training = name, training
        self.settings: dict[str, Any] = {"baseline": name, "training_samples": training.count}

    def supports(self, task: str, sample: Sample | None = None) -> bool:
        """Whether the training split holds what this baseline needs for a task, or for one sample of it."""
        kind = TASKS[task]
        if self.name in ("majority", "question-only") and kind.writes and not kind.draws:
            return bool(self.training.answers)
        if self.name == "majority":
            return kind.family == "segmentation" and bool(self.training.masks)
        if self.name == "copy-input":
            return kind.draws and kind.family != "generation"
        if self.name == "training-image":
            found = self.training.images
            return any(key[0] == task and (sample is None or key[1] == sample.modality) for key in found)
        return False

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """A prediction for each sample, from its inputs and the training split alone."""
        return [self._predict(sample) for sample in samples]

    def _predict(self, sample: Sample) -> Prediction:
        if self.name == "copy-input":
            return Prediction(image=shown_image(sample.inputs[-1]))
        if self.name == "training-image":
            choices = self.training.images[sample.task, sample.modality]
            return Prediction(image=shown_image(choices[sample.seed(0) % len(choices)][1]))
        if self.name == "question-only":
            return Prediction(self.training.from_question(sample))
        if TASKS[sample.task].family == "segmentation":
            mask = self.training.masks.get(str(sample.extra.get("target", "")), numpy.zeros((1, 1), bool))
            return Prediction(image=Image.fromarray(numpy.where(mask, 255, 0).astype(numpy.uint8)))
        return Prediction(self.training.majority(sample))
