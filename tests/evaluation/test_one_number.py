"""A name means one number: rewards, benchmarks and the nano's experiment score the same images and answers alike."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from examples.nano import evaluate as nano
from examples.nano.model import SIDE
from unimedvl.evaluation.predictions import Prediction
from unimedvl.evaluation.samples import Sample, sample_of
from unimedvl.evaluation.scoring import Settings, TaskScores
from unimedvl.training import rewards
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import Record, RecordImage
from unimedvl.unimed5m.task_images import drawn_image

COUNT = 3


def blobs(seed: int) -> numpy.ndarray:
    """Levels of the nano's size with some structure, uint8 (SIDE, SIDE, 3)."""
    small = numpy.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    return numpy.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def origin(number: int) -> tasks.Origin:
    extra = {"source_id": str(number), "submodality": "ultrasound", "anatomy": "head"}
    return tasks.Origin(
        "hc18",
        str(number),
        f"patient-{number}",
        "validation",
        "US",
        "CC0-1.0",
        "yes",
        "drawn",
        "ultrasound",
        "A",
        extra,
    )


def records() -> tuple[list[Record], list[Record]]:
    """Requests for images, and segmentations."""
    images = [drawn_image(blobs(number), f"{number}.png") for number in range(COUNT)]
    requests = [tasks.text_to_image(origin(n), image, "an ultrasound") for n, image in enumerate(images)]
    masked = []
    for number, image in enumerate(images):
        classes = numpy.zeros((SIDE, SIDE), numpy.uint8)
        classes[10:40, 20 : 40 + 5 * number] = 1
        masked.append(tasks.segmentation(origin(number), image, classes, [1], "fetal head"))
    return requests, masked


class Painting:
    """A model that draws what it is given to draw."""

    def __init__(self, images: Sequence[Image.Image]):
        self.images = list(images)

    def draw(self, *asked: Any) -> list[Image.Image]:
        return self.images

    def reconstruct(self, image: Image.Image) -> Image.Image:
        return image


def in_benchmark(samples: Sequence[Sample], made: Sequence[Image.Image]) -> dict[str, Any]:
    """What a run of `unimedvl eval` reports."""
    scores = TaskScores(samples[0].task)
    for sample, image in zip(samples, made, strict=True):
        scores.add(sample, Prediction(image=image), Settings())
    return scores.finish(Settings(), None)["metrics"]


def rewarded(reward: Callable[..., list[float]], made: Sequence[Image.Image], truths: Sequence[Image.Image]) -> float:
    return float(numpy.mean(reward(made, [{"reference": truth} for truth in truths])))


def test_likeness_of_images():
    requests, _ = records()
    truths = [nano.seen(record.output_img[0]) for record in requests]
    made = [Image.fromarray(blobs(n) // 2 + blobs(n + 10) // 2) for n in range(COUNT)]
    # The record of a super-resolution, whose result is the same image.
    samples = [
        sample_of(tasks.super_resolution(origin(n), record.output_img[0], 2, "bicubic"))
        for n, record in enumerate(requests)
    ]
    benchmark = in_benchmark(samples, made)
    experiment = nano.score_super_resolution(Painting(made), requests, COUNT)
    pairs = [tuple(numpy.asarray(image) for image in pair) for pair in zip(made, truths, strict=True)]
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    wanted = {
        "ssim": numpy.mean([structural_similarity(*pair, data_range=255, **gaussian) for pair in pairs]),
        "psnr": numpy.mean([peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]),
    }
    for name, reward in (("ssim", rewards.ssim), ("psnr", rewards.psnr)):
        assert benchmark[name] == experiment[name]["nano"], "intervals resample the same patients"
        assert benchmark[name]["low"] < benchmark[name]["value"] < benchmark[name]["high"]
        assert rewarded(reward, made, truths) == pytest.approx(benchmark[name]["value"], abs=1e-6)
        assert benchmark[name]["value"] == pytest.approx(wanted[name], abs=1e-6)


def test_overlap_of_masks():
    _, masked = records()
    truths = [nano.seen(record.output_img[0]) for record in masked]
    # Shifted, and gray where masks are soft.
    made = [Image.fromarray(numpy.roll(numpy.asarray(truth), 6, axis=1) // 4 * 3) for truth in truths]
    benchmark = in_benchmark([sample_of(record) for record in masked], made)["dice"]
    assert nano.score_segmentation(Painting(made), masked, "hc18") == benchmark
    assert rewarded(rewards.dice, made, truths) == pytest.approx(benchmark["value"], abs=1e-6)
    # 30 rows of which 14, 19 and 24 of 20, 25 and 30 columns are covered.
    assert benchmark["value"] == pytest.approx(numpy.mean([14 / 20, 19 / 25, 24 / 30]), abs=1e-6)


def question(number: int, answer: str) -> Record:
    image = drawn_image(blobs(number), f"{number}.png")
    return tasks.vqa(origin(number), [image], "is there a mass?", answer, str(number))


def accuracy_in_benchmark(asked: Sequence[Record], said: Sequence[str]) -> dict[str, Any]:
    scores = TaskScores(asked[0].sub_task_type)
    for record, answer in zip(asked, said, strict=True):
        scores.add(sample_of(record), Prediction(answer), Settings())
    return scores.finish(Settings(), None)["metrics"]["accuracy"]


class Saying:
    """What the nano's evaluation asks of a model, with given answers."""

    def __init__(self, answers: Sequence[str]):
        self.answers = answers

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Sequence[str]:
        return self.answers


def test_accuracy_of_diagnoses():
    """A label that the source states counts where an answer names it."""
    labels = ("Pneumonia", "Normal", "Pneumonia")
    asked = [
        tasks.diagnosis(origin(number), drawn_image(blobs(number), f"{number}.png"), label)
        for number, label in enumerate(labels)
    ]
    said = ["Pneumonia in the left lung.", "A normal chest.", "Nothing is wrong."]
    found = nano.score_diagnosis(Saying(said), asked, asked[0].dataset)
    benchmark = accuracy_in_benchmark(asked, said)
    assert {name: found[name] for name in benchmark} == benchmark
    assert benchmark["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_accuracy_of_answers():
    asked = [question(number, answer) for number, answer in enumerate(("yes", "no", "yes"))]
    said = ["Yes, there is a mass."] * 3
    benchmark = accuracy_in_benchmark(asked, said)
    truths = [record.message[-1].value for record in asked]
    assert numpy.mean(nano.right_answers(asked, said)) == pytest.approx(benchmark["value"], abs=1e-6)
    assert numpy.mean(rewards.answer_match(said, truths)) == pytest.approx(benchmark["value"], abs=1e-6)
    assert benchmark["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_areas_of_readers_classifiers_and_alignment_scores():
    from unimedvl.evaluation.metrics.ranking import counterfactual, reader_study
    from unimedvl.unimed5m.quality import separation

    draw = numpy.random.default_rng(0)
    truth, ratings = draw.integers(0, 2, 60), draw.integers(1, 6, 60)
    wanted = mannwhitneyu(ratings[truth == 1], ratings[truth == 0]).statistic / (truth.sum() * (1 - truth).sum())
    assert reader_study(ratings, truth)["auroc"] == pytest.approx(wanted, abs=1e-6)
    assert counterfactual(ratings / 5, truth)["auroc"] == pytest.approx(wanted, abs=1e-6)
    assert separation._area(ratings[truth == 1], ratings[truth == 0]) == pytest.approx(wanted, abs=1e-6)


def test_a_mask_is_stored_without_loss():
    """What the comparison of masks above rests on."""
    _, masked = records()
    image: RecordImage = masked[0].output_img[0]
    with Image.open(io.BytesIO(image.data)) as stored:
        assert sorted(set(numpy.asarray(stored).ravel().tolist())) == [0, 255]
