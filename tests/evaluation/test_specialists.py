"""Specialists are trained on the training split for what a benchmark asks, and are scored like any model."""

import json

import pytest
import torch

from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.scoring import Settings
from unimedvl.evaluation.specialists import Specialist
from unimedvl.evaluation.specialists.networks import UNet
from unimedvl.evaluation.specialists.train import main, train
from unimedvl.utils.command_line import run_module


def test_an_untrained_residual_network_returns_its_input():
    images = torch.rand(2, 3, 16, 20) * 2 - 1
    assert torch.equal(UNet(3, residual=True)(images), images)


def test_trains_saves_loads_and_is_scored(records, tmp_path):
    tasks = ["vqa", "diagnosis", "segmentation", "super_resolution"]
    data = BenchmarkData(get_benchmark("unimed-mini"), records, limit=4, tasks=tasks)
    made = train(data.training(), steps=3, side=16)
    assert set(made.networks) == {"answers", "segmentation", "super_resolution"}
    made.save(tmp_path / "specialist")
    loaded = Specialist.load(tmp_path / "specialist")
    settings = Settings(extractor=load_feature_extractor("pixels-1"), meteor=False)
    results = evaluate(Run("s", tmp_path / "out", baselines=False), loaded, [data], settings, print)
    found = results["benchmarks"]["unimed-mini"]
    assert set(found["tasks"]) == set(tasks) and not found["unsupported_tasks"]
    assert made.design["answers"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (
        loaded.settings["answers"] == len(made.design["answers"]) == manifest["settings"]["model_settings"]["answers"]
    )
    sample = next(sample for _, sample in data.samples() if sample.task == "segmentation")
    assert loaded.predict([sample])[0].image.size == (sample.inputs[0].width, sample.inputs[0].height)
    with pytest.raises(ValueError, match="holds no specialist"):
        Specialist.load(tmp_path)


@pytest.mark.parametrize("benchmark", ["unimed-mini=nowhere", "imagenet=nowhere"])
def test_a_wrong_call_of_the_training_gets_one_line(benchmark, tmp_path, capsys):
    assert run_module(main, ["--benchmark", benchmark, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m unimedvl.evaluation.specialists.train: ")


@pytest.mark.slow
def test_training_finds_the_mask(records):
    """On drawn images, whose masks lie in one place, a short training beats an empty mask by far."""
    data = BenchmarkData(get_benchmark("unimed-mini"), records, tasks=["segmentation"])
    made = train(data.training(), steps=150, side=32)
    from unimedvl.evaluation.metrics.masks import mask_scores
    from unimedvl.unimed5m.task_images import shown_image

    found = [
        mask_scores(made.predict([sample])[0].image, shown_image(sample.output))["dice"]
        for _, sample in data.samples()
        if made.supports("segmentation", sample)
    ]
    assert sum(found) / len(found) > 0.6
