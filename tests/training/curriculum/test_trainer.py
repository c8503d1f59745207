"""A step is the same however it is split up; frozen parts, averages, logs and caches do what they say."""

from pathlib import Path

import pytest
import torch

from tests.training.outcomes import assert_close, history, stored, weights
from unimedvl.training.checkpoints import checkpoints
from unimedvl.training.recipe import load_recipe
from unimedvl.training.run import main, run

pytestmark = pytest.mark.medium


def test_eight_rows_at_once_equal_eight_times_one(recipe, tmp_path):
    run(recipe("rows", data={"rows_per_batch": 8}), [])
    run(recipe("times", accumulation=8), [])
    assert_close(tmp_path / "rows", tmp_path / "times")
    for one, other in zip(history(tmp_path / "rows"), history(tmp_path / "times"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    "part, prefix", [("vit", "model.vit_model."), ("llm", "model.language_model."), ("vae", "model.vae.")]
)
def test_frozen_parts_keep_their_bits(recipe, place, tmp_path, part, prefix):
    run(recipe("frozen", freeze=[part, "vae"]), [])
    before, after = weights(place / "model"), weights(tmp_path / "frozen" / "final")
    for name, value in before.items():
        if name.startswith(prefix):
            assert torch.equal(value, after[name]), name
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_averages_follow_their_formula(recipe, tmp_path):
    run(recipe("average", save_steps=1, keep_checkpoints=9), [])
    folders = checkpoints(tmp_path / "average")
    average = weights(Path(load_recipe(tmp_path / "average.yaml").model))
    for folder in folders:
        current, saved = stored(folder, "weights."), stored(folder, "average.")
        for name, value in saved.items():
            average[name] = 0.9 * average[name] + 0.1 * current[name]
            torch.testing.assert_close(value, average[name], rtol=0, atol=1e-6)
    final = weights(tmp_path / "average" / "final-ema")
    assert all(torch.equal(final[name], value) for name, value in saved.items())


def test_a_run_keeps_as_many_checkpoints_as_its_recipe_says(recipe, tmp_path):
    run(recipe("kept", save_steps=1, keep_checkpoints=2), [])
    assert [folder.name for folder in checkpoints(tmp_path / "kept")] == ["checkpoint-3", "checkpoint-4"]
    assert sorted(path.name for path in (tmp_path / "kept").glob("*checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_cached_latents_change_nothing(recipe, tmp_path):
    run(recipe("plain"), [])
    run(recipe("cached", data={"latent_cache": str(tmp_path / "cache")}), [])
    assert_close(tmp_path / "plain", tmp_path / "cached")
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_finished_run_is_left_alone(recipe, tmp_path):
    path = recipe("done")
    run(path, [])
    stamp = (tmp_path / "done" / "final" / "model.safetensors").stat().st_mtime_ns
    run(path, [])
    assert (tmp_path / "done" / "final" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "/nowhere/at/all"}, "nowhere"),
        ({"output_dir": "/proc/out"}, "cannot be written"),
        ({"stepz": 3}, "Did you mean: 'steps'"),
        ({"freeze": ["llm", "vit", "vae", "und"], "data": {"pack_tokens": 20}}, "longer than sample_tokens"),
    ],
)
def test_user_errors_are_one_line(recipe, capsys, changes, message):
    assert main([str(recipe("wrong", **changes))]) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m unimedvl.training.run:")
    ]
    assert len(lines) == 1 and message in lines[0]


def test_recomputed_activations_change_nothing(recipe, tmp_path):
    run(recipe("kept", steps=2), [])
    run(recipe("recomputed", steps=2, gradient_checkpointing=True), [])
    assert_close(tmp_path / "kept", tmp_path / "recomputed")


def test_bfloat16_is_near_float32_and_keeps_float32_weights(recipe, tmp_path):
    for name, bf16 in (("full", False), ("half", True)):
        run(recipe(name, steps=2, bf16=bf16), [])
    full, half = history(tmp_path / "full"), history(tmp_path / "half")
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02) and half[0]["loss"] != full[0]["loss"]
    assert {value.dtype for value in weights(tmp_path / "half" / "final").values()} == {torch.float32}
