"""A step is the same however it is split up, and a run is the same however often it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import write_folder
from unimedvl.training.checkpoints import checkpoints
from unimedvl.training.recipe import load_recipe
from unimedvl.training.run import main, run

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"vqa": 9, "dialogue": 5, "text_to_image": 6, "segmentation": 7, "counterfactual": 4}
RANGES = {
    "vae": {"min_side": 16, "max_side": 48},
    "vit": {"min_side": 12, "max_side": 36},
    "understanding": {"min_side": 12, "max_side": 48},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "records", COUNTS)
    tiny_checkpoint(folder / "model")
    return folder


@pytest.fixture
def recipe(place, tmp_path):
    """Writes a recipe with changes and returns its path."""

    def write(name="recipe", **changes):
        group = {"name": "all", "path": str(place / "records"), **RANGES}
        values = {
            "model": str(place / "model"),
            "output_dir": str(tmp_path / name),
            "steps": 4,
            "bf16": False,
            "save_steps": 2,
            "log_steps": 1,
            "ema_decay": 0.9,
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "eps": 1e-8},
            "data": {"groups": [group], "pack_tokens": 200, "open_packs": 3},
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def stored(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of an unsharded checkpoint."""
    (path,) = (checkpoint / "shards").iterdir()
    return {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}


def history(folder: Path) -> list[dict]:
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    volatile = ("per_second", "runtime", "flos", "seconds_left")
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in volatile)}
        for entry in state["log_history"]
    ]


def assert_bits(left: Path, right: Path) -> None:
    """Equal weights, averages, losses and places in the data."""
    for name in ("final", "final-ema"):
        one, other = weights(left / name), weights(right / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert history(left) == history(right)
    progress = [json.loads((checkpoints(folder)[-1] / "progress.json").read_text()) for folder in (left, right)]
    assert progress[0] == progress[1]


def assert_close(left: Path, right: Path, tolerance=1e-5) -> None:
    one, other = weights(left / "final"), weights(right / "final")
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_eight_rows_at_once_equal_eight_times_one(recipe, tmp_path):
    run(recipe("rows", data={"rows_per_batch": 8}), [])
    run(recipe("times", accumulation=8), [])
    assert_close(tmp_path / "rows", tmp_path / "times")
    for one, other in zip(history(tmp_path / "rows"), history(tmp_path / "times"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def launch(path: Path, *overrides: str, processes: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "unimedvl.training.run", str(path), *overrides],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_equal_one(recipe, tmp_path):
    run(recipe("one", accumulation=2), [])
    process = launch(recipe("two"), processes=2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert_close(tmp_path / "one", tmp_path / "two")
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def whole_run(path: Path) -> None:
    """Run in a process of its own: the number of threads is part of the bits."""
    process = launch(path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def killed_runs(path: Path, folder: Path, kills: int, seed: int) -> None:
    """Kill the run at random moments after its first checkpoints, then let it finish."""
    draw = random.Random(seed)
    for number in range(kills):
        process = launch(path)
        before = len(list(folder.rglob("complete.json")))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.rglob("complete.json"))) > before or checkpoints(folder) and number % 2:
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    whole_run(path)


def test_a_killed_run_ends_in_the_same_bits(recipe, tmp_path):
    changes = {"steps": 24, "save_steps": 1}
    whole_run(recipe("whole", **changes))
    killed_runs(recipe("killed", **changes), tmp_path / "killed", kills=2, seed=0)
    assert_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_ten_kills_end_in_the_same_bits(recipe, tmp_path):
    changes = {"steps": 60, "save_steps": 1}
    whole_run(recipe("whole", **changes))
    killed_runs(recipe("killed", **changes), tmp_path / "killed", kills=10, seed=1)
    assert_bits(tmp_path / "whole", tmp_path / "killed")


def curriculum(recipe, tmp_path, name: str) -> Path:
    first, second = recipe(f"{name}-first", steps=3), recipe(f"{name}-second", steps=3, freeze=["vit", "vae"], seed=9)
    path = tmp_path / f"{name}.yaml"
    stages = [{"name": "first", "recipe": first.name}, {"name": "second", "recipe": second.name, "weights": "ema"}]
    model = load_recipe(first).model
    path.write_text(yaml.safe_dump({"model": model, "output_dir": str(tmp_path / name), "stages": stages}))
    return path


def test_stages_hand_their_averages_on_and_resume_across_the_boundary(recipe, tmp_path):
    whole_run(curriculum(recipe, tmp_path, "whole"))
    first, second = tmp_path / "whole" / "first", tmp_path / "whole" / "second"
    frozen = {name: value for name, value in weights(second / "final").items() if ".vit_model." in name}
    given = weights(first / "final-ema")
    assert frozen and all(torch.equal(value, given[name]) for name, value in frozen.items())
    # The second stage stops after the boundary, in a process of its own.
    path = curriculum(recipe, tmp_path, "parts")
    killed_runs(path, tmp_path / "parts", kills=1, seed=3)
    for stage in ("first", "second"):
        assert_bits(tmp_path / "whole" / stage, tmp_path / "parts" / stage)


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


def test_the_log_tells_losses_of_tasks_and_the_padding(recipe, tmp_path):
    run(recipe("log", data={"rows_per_batch": 4}), [])
    entry = history(tmp_path / "log")[0]
    assert {"ce", "mse", "ce/vqa", "mse/segmentation", "ce/modality/CXR", "padding", "grad_norm"} <= entry.keys()
    assert entry["loss"] == pytest.approx(0.25 * entry["ce"] + entry["mse"], rel=1e-4)
    assert 0 <= entry["padding"] < 0.5


def test_cached_latents_change_nothing(recipe, tmp_path):
    run(recipe("plain"), [])
    run(recipe("cached", data={"latent_cache": str(tmp_path / "cache")}), [])
    assert_close(tmp_path / "plain", tmp_path / "cached")
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_loss_that_is_no_number_names_its_records_and_keeps_the_checkpoint(recipe, place, tmp_path, capsys):
    path = recipe("broken")
    run(path, ["steps=2"])
    kept = checkpoints(tmp_path / "broken")
    # A rate this high drives the weights beyond what float32 holds.
    code = main([str(recipe("diverging", optimizer={"learning_rate": 1e30, "warmup_steps": 0}))])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "on the records" in line and "-train" in line
    assert checkpoints(tmp_path / "broken") == kept


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
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"freeze": ["llm", "vit", "vae", "und"], "data": {"pack_tokens": 20}}, "longer than sample_tokens"),
    ],
)
def test_what_a_user_can_mend_is_one_line(recipe, capsys, changes, message):
    assert main([str(recipe("wrong", **changes))]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unimedvl:")]
    assert len(lines) == 1 and message in lines[0]


def test_a_damaged_checkpoint_is_passed_over(recipe, tmp_path):
    whole = recipe("whole", save_steps=1)
    run(whole, [])
    run(recipe("damaged", save_steps=1, keep_checkpoints=9), ["steps=4"])
    folder = tmp_path / "damaged"
    for name in ("final", "final-ema"):
        os.rename(folder / name, tmp_path / f"old-{name}")
    last = checkpoints(folder)[-1]
    (torn,) = (last / "shards").iterdir()
    torn.write_bytes(torn.read_bytes()[:100])
    assert checkpoints(folder)[-1] != last
    run(tmp_path / "damaged.yaml", [])
    assert_bits(tmp_path / "whole", folder)


def test_changed_data_is_noticed(recipe, place, tmp_path, capsys):
    records = write_folder(tmp_path / "records", COUNTS)
    path = recipe("changed", data={"groups": [{"name": "all", "path": str(records), **RANGES}]})
    run(path, ["steps=2"])
    for name in ("final", "final-ema"):
        os.rename(tmp_path / "changed" / name, tmp_path / f"old-{name}")
    write_folder(tmp_path / "records", {**COUNTS, "vqa": 12})
    assert main([str(path)]) == 2
    assert "data changed since the checkpoint" in capsys.readouterr().err
