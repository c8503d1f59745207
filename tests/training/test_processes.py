"""Several processes do what one does, each with the whole model or with its share of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_checkpoint import tiny_checkpoint
from tests.tiny_model import tiny_config
from tests.training.conftest import write_recipe
from tests.training.outcomes import assert_close, history, weights
from tests.training.processes import finish, peak_while_loading
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def one(place, tmp_path_factory):
    """One process with two micro-batches a step."""
    folder = tmp_path_factory.mktemp("one")
    finish(write_recipe(place, folder, "one", accumulation=2))
    return folder / "one"


def assert_same_course(left: Path, right: Path) -> None:
    assert_close(left, right)
    assert_close(left, right, folder="final-ema")
    for entry, other in zip(history(left), history(right), strict=True):
        assert entry == pytest.approx(other, rel=1e-4)


def test_two_processes_equal_one(one, recipe, tmp_path):
    finish(recipe("two"), processes=2)
    assert_same_course(one, tmp_path / "two")


def test_two_shares_equal_one_process(one, recipe, tmp_path):
    run = finish(recipe("shares", parallelism="fsdp2"), processes=2)
    assert_same_course(one, tmp_path / "shares")
    # Each process wrote its own share of weights, averages and moments.
    sizes = [path.stat().st_size for path in (tmp_path / "shares" / "checkpoint-4" / "shards").iterdir()]
    assert len(sizes) == 2 and max(sizes) < 0.75 * sum(sizes), run.said()


def test_answers_stay_to_the_bit_where_the_understanding_expert_is_frozen(place, recipe, tmp_path):
    still = dict.fromkeys(("lm_head.", "model.language_model.embed_tokens.", "model.connector."), 0.0)
    rates = {"learning_rates": still, "weight_decay": 0.1}
    finish(recipe("frozen", freeze=["vae", "vit", "und"], ce_weight=0.0, optimizer=rates), processes=2)
    before, after = weights(place / "model"), weights(tmp_path / "frozen" / "final")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("_moe_gen", "time_embedder.", "vae2llm.", "llm2vae.")
    assert changed and all(any(part in name for part in parts) for name in changed), changed
    # What comes next trains the finished model whole, also where it knows nothing of our recipes.
    names = ("ce_loss_weight", "mse_loss_weight")
    start, final, average = (
        json.loads((folder / "config.json").read_text())
        for folder in (place / "model", tmp_path / "frozen" / "final", tmp_path / "frozen" / "final-ema")
    )
    for config in (final, average):
        assert config["text_config"]["freeze_und"] is False
        assert [config[name] for name in names] == [start[name] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_under_torchrun(one, recipe, tmp_path, parallelism):
    path = recipe("launched", parallelism=parallelism)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "unimedvl.training.run", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_course(one, tmp_path / "launched")


@pytest.mark.slow
def test_bfloat16_shares_are_near_float32_ones(recipe, tmp_path):
    finish(recipe("full", parallelism="fsdp2", steps=2), processes=2)
    finish(recipe("half", parallelism="fsdp2", steps=2, bf16=True, gradient_checkpointing=True), processes=2)
    full, half = history(tmp_path / "full"), history(tmp_path / "half")
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02) and half[0]["loss"] != full[0]["loss"]
    assert half[0]["grad_norm"] == pytest.approx(full[0]["grad_norm"], rel=0.1)


@pytest.mark.slow
def test_no_process_holds_more_than_its_share_while_loading(tmp_path):
    """Peak memory of its own, beyond what it had before, of each of two processes that load a model of 250 MB."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 24_000}
    tiny_checkpoint(tmp_path / "model")
    config = tiny_config(text_config={**tiny_config().text_config.to_dict(), **sizes, "num_attention_heads": 8})
    UniMedVLForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    whole = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    largest = 4 * sizes["vocab_size"] * sizes["hidden_size"]
    peaks = peak_while_loading(tmp_path / "model", tmp_path, processes=2)
    print(f"whole {whole / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, peaks {peaks}")
    # Its share, the tensor on its way, and that tensor's parts.
    assert all(peak < whole / 2 + 2.5 * largest for peak in peaks) and whole > 8 * largest / 2
