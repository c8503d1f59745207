"""Scores of each sample and of each task, with intervals, from predictions that are on disk."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy
from PIL import Image

from unimedvl.unimed5m.task_images import shown_image

from .metrics import texts
from .metrics.answers import score_answer
from .metrics.image_features import FeatureExtractor, load_feature_extractor
from .metrics.image_text import ImageTextEncoder
from .metrics.images import change_score, image_scores, is_copy
from .metrics.intervals import mean_interval, rounded, statistic_intervals
from .metrics.masks import mask_scores
from .metrics.nearest import memorization_scores, nearest, thumbnails
from .metrics.words import reads_as_english
from .predictions import Prediction
from .samples import TASKS, Sample, final_answer
from .set_metrics import counterfactual_set, distribution_set

Value = float | None


@dataclasses.dataclass
class Settings:
    """How to score.

    Attributes:
        extractor: features for FID, KID and diversity.
        image_text: encoder of the image-text score, None for none.
        classifier: probability of the asked finding in images, None for none.
        rule: the rule of all answers; "" for the sample's own, which one with a stated value has, else `own_rule`.
        own_rule: the rule of the benchmark.
        resize: the rule for images of different sizes, see `metrics.images`.
        lpips: distance of two images, None for none.
        meteor: whether METEOR runs.
        clinical: {score: function of two lists of texts} for reports.
    """

    extractor: FeatureExtractor = dataclasses.field(default_factory=load_feature_extractor)
    image_text: ImageTextEncoder | None = None
    classifier: Callable[[Sequence[Image.Image]], numpy.ndarray] | None = None
    rule: str = ""
    own_rule: str = "normalized"
    resize: str = "prediction"
    lpips: Any = None
    meteor: bool = True
    clinical: dict[str, Callable[[list[str], list[str]], Sequence[float]]] = dataclasses.field(default_factory=dict)


class TaskScores:
    """Everything that is collected over the samples of one task."""

    def __init__(self, task: str):
        self.task = task
        self.ids: list[str] = []
        self.groups: list[str] = []
        self.modalities: list[str] = []
        self.datasets: list[str] = []
        self.rows: list[dict[str, Value]] = []
        self.texts: list[tuple[str, str]] = []
        self.made: list[numpy.ndarray] = []
        self.real: list[numpy.ndarray] = []
        self.made_small: list[numpy.ndarray] = []
        self.real_small: list[numpy.ndarray] = []
        self.present: list[int] = []
        self.rules: Counter[str] = Counter()

    def add(self, sample: Sample, prediction: Prediction, settings: Settings) -> None:
        """Score one sample and keep what the scores of the whole set need.

        Args:
            sample: with its reference.
            prediction: the answer, the image, or both; without an image there are no scores of it.
            settings: how answers and images are scored.
        """
        self.ids.append(sample.id)
        self.groups.append(sample.group_id)
        self.modalities.append(sample.modality)
        self.datasets.append(sample.dataset)
        family, row = TASKS[sample.task].family, dict[str, Value]()
        if family == "answer":
            rule = settings.rule or sample.rule or settings.own_rule
            self.rules[f"{rule} (stated values)" if sample.rule and not settings.rule else rule] += 1
            text = final_answer(prediction.text)
            row |= score_answer(text, sample.reference, sample.kind, sample.options or None, rule)
            self.texts.append((text, sample.reference))
        elif family == "text" or (family == "counterfactual" and sample.reference):
            self.texts.append((prediction.text, sample.reference))
            row |= texts.rouge_scores(*self.texts[-1])
        if sample.output is not None and prediction.image is not None:
            row |= self._image(family, sample, prediction.image, settings)
        self.rows.append(row)

    def _image(self, family: str, sample: Sample, made: Image.Image, settings: Settings) -> dict[str, Value]:
        assert sample.output is not None
        real = shown_image(sample.output)
        if family == "segmentation":
            return dict(mask_scores(made, real))
        row: dict[str, Value] = {}
        if family in ("translation", "counterfactual"):
            row |= image_scores(made, real, settings.resize, settings.lpips)
            row["input_copied"] = float(is_copy(made, shown_image(sample.inputs[-1])))
        if family == "counterfactual":
            row["change"] = change_score(made, shown_image(sample.inputs[-1]), real)
            if settings.classifier is not None:
                row["probability"] = float(settings.classifier([made])[0])
                self.present.append(int(sample.extra.get("change") != "removed"))
        if family in ("generation", "counterfactual"):
            self.made.append(settings.extractor([made])[0])
            self.real.append(settings.extractor([real])[0])
        if family == "generation":
            self.made_small.append(thumbnails([made])[0])
            self.real_small.append(thumbnails([real])[0])
            if settings.image_text is not None:
                row["image_text"] = float(settings.image_text.similarity([made], [sample.text])[0])
        return row

    def finish(self, settings: Settings, training: numpy.ndarray | None, intervals: bool = True) -> dict[str, Any]:
        """The scores of the task.

        Args:
            training: thumbnails of training images, for the search for copies.
            intervals: whether to resample; baselines are shown without.

        Returns:
            count, metrics {name: {value, low, high, count}}, by {modality: {name: value}}, and what the family adds;
            `unicode_words` counts the texts that do not read as English (see `metrics.texts.report_text`).
        """
        self._add_meteor_and_clinical(settings)
        few: dict[str, Any] = {} if intervals else {"resamples": 0}
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        metrics = {name: mean_interval([row.get(name) for row in self.rows], self.groups, **few) for name in names}
        result: dict[str, Any] = {"count": len(self.rows)}
        family = TASKS[self.task].family
        if family == "answer":
            result["rules"] = dict(sorted(self.rules.items()))
        elif self.texts:
            metrics |= self._corpus_text(**few)
            if others := sum(not reads_as_english(*pair) for pair in self.texts):
                result["unicode_words"] = others
        if family in ("generation", "counterfactual") and len(self.made) >= 2:
            names_, details = distribution_set(
                numpy.array(self.made),
                numpy.array(self.real),
                self.modalities,
                self.groups,
                settings.extractor.name,
                **few,
            )
            metrics |= names_
            result |= details
        if family == "generation" and training is not None and len(training) and self.made_small:
            result["memorization"] = self._memorization(training)
        if family == "counterfactual":
            judged = [
                (value, group)
                for row, group in zip(self.rows, self.groups, strict=True)
                if (value := row.get("probability")) is not None
            ]
            metrics |= counterfactual_set([value for value, _ in judged], self.present, [group for _, group in judged])
        result["metrics"] = metrics
        result["by_modality"] = self._split_by(self.modalities, names)
        result["by_dataset"] = self._split_by(self.datasets, names)
        return result

    def _add_meteor_and_clinical(self, settings: Settings) -> None:
        if TASKS[self.task].family not in ("text", "counterfactual") or not self.texts:
            return
        said, wanted = ([pair[side] for pair in self.texts] for side in (0, 1))
        rows = [row for row in self.rows if "rouge_l" in row]
        _fill(rows, "cider", texts.cider_scores(said, wanted))
        # These know English only.
        rows = [row for row, pair in zip(rows, self.texts, strict=True) if reads_as_english(*pair)]
        said, wanted = ([pair[side] for pair in self.texts if reads_as_english(*pair)] for side in (0, 1))
        if rows and settings.meteor and not texts.meteor_problem():
            _fill(rows, "meteor", texts.meteor_scores(said, wanted))
        for name, score in settings.clinical.items() if rows and self.task == "report" else ():
            _fill(rows, name, score(said, wanted))

    def _corpus_text(self, **few: int) -> dict[str, Any]:
        rows = numpy.array([texts.bleu_statistics(*pair) for pair in self.texts])
        groups = [group for group, row in zip(self.groups, self.rows, strict=True) if "rouge_l" in row]
        return statistic_intervals(rows, groups, texts.bleu_from_statistics, **few)

    def _memorization(self, training: numpy.ndarray) -> dict[str, Any]:
        made = nearest(numpy.array(self.made_small), training)[0]
        held_out = nearest(numpy.array(self.real_small), training)[0]
        scores = memorization_scores(made, held_out)
        return {name: rounded(value) if isinstance(value, float) else value for name, value in scores.items()}

    def _split_by(self, names: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(set(names)):
            rows = [row for row, other in zip(self.rows, names, strict=True) if other == name]
            found[name] = {"count": len(rows)}
            for metric in metrics:
                values = [value for row in rows if (value := row.get(metric)) is not None]
                if values:
                    found[name][metric] = rounded(sum(values) / len(values))
        return found


def _fill(rows: Sequence[dict[str, Value]], name: str, values: Sequence[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = float(value)


def score_all(pairs: Iterable[tuple[Sample, Prediction]], settings: Settings) -> dict[str, TaskScores]:
    """Scores of every task that has predictions."""
    found: dict[str, TaskScores] = {}
    for sample, prediction in pairs:
        found.setdefault(sample.task, TaskScores(sample.task)).add(sample, prediction, settings)
    return found
