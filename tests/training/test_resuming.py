"""A run that is killed, however often and at whatever moment, ends in the same bits as one that never was."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.conftest import RANGES
from tests.training.outcomes import assert_bits, assert_close, stored, weights
from tests.training.processes import Run, finish
from tests.training.record_folders import write_folder
from unimedvl.training.checkpoints import checkpoints
from unimedvl.training.recipe import load_recipe
from unimedvl.training.run import main, run

pytestmark = pytest.mark.medium


def steps_done(folder: Path) -> int:
    """Steps of all stages up to their last checkpoints."""
    stages: dict[str, int] = {}
    for parent, names, _ in os.walk(folder):
        numbers = [int(name.partition("-")[2]) for name in names if name.startswith("checkpoint-")]
        stages[parent] = max(numbers, default=0)
    return sum(stages.values())


def killed_runs(path: Path, folder: Path, moments: list[int], seed: int, processes: int = 1) -> int:
    """Kill the run a moment after each of the given steps, then let it finish; returns how many kills hit it."""
    draw, hits = random.Random(seed), 0
    for moment in moments:
        started = Run(path, processes=processes)
        while started.alive and steps_done(folder) < moment:
            time.sleep(0.02)
        # Somewhere in the next step, or while its checkpoint is written.
        time.sleep(draw.uniform(0, 0.2))
        hits += started.alive
        started.kill()
        started.wait()
    finish(path, processes=processes)
    return hits


def random_moments(seed: int, count: int, steps: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, steps), count))


LONG = {"save_steps": 1, "validation": {"every": 5, "batches": 1}}


def test_a_killed_run_ends_in_the_same_bits(recipe, tmp_path):
    changes = {"steps": 8, **LONG}
    finish(recipe("whole", **changes))
    assert killed_runs(recipe("killed", **changes), tmp_path / "killed", random_moments(0, 2, 7), seed=0) >= 1
    assert_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_ten_kills_end_in_the_same_bits(recipe, tmp_path):
    changes = {"steps": 60, **LONG}
    finish(recipe("whole", **changes))
    assert killed_runs(recipe("killed", **changes), tmp_path / "killed", random_moments(1, 10, 59), seed=1) == 10
    assert_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_kills_of_two_processes_end_in_the_same_bits(recipe, tmp_path, parallelism):
    changes = {"steps": 20, "parallelism": parallelism, **LONG}
    finish(recipe("whole", **changes), processes=2)
    moments = random_moments(2, 4, 19)
    assert killed_runs(recipe("killed", **changes), tmp_path / "killed", moments, seed=2, processes=2) == 4
    assert_bits(tmp_path / "whole", tmp_path / "killed")


def curriculum(recipe, tmp_path, name: str, steps: int, **second) -> Path:
    recipes = [
        recipe(f"{name}-first", steps=steps, save_steps=1),
        recipe(f"{name}-second", steps=steps, save_steps=1, freeze=["vit", "vae"], seed=9),
    ]
    path = tmp_path / f"{name}.yaml"
    stages = [{"name": "first", "recipe": recipes[0].name}, {"name": "second", "recipe": recipes[1].name, **second}]
    model = load_recipe(recipes[0]).model
    path.write_text(yaml.safe_dump({"model": model, "output_dir": str(tmp_path / name), "stages": stages}))
    return path


def assert_same_stages(tmp_path: Path) -> None:
    for stage in ("first", "second"):
        assert_bits(tmp_path / "whole" / stage, tmp_path / "killed" / stage)


def test_a_curriculum_killed_on_both_sides_of_its_boundary_ends_in_the_same_bits(recipe, tmp_path):
    finish(curriculum(recipe, tmp_path, "whole", steps=3))
    first, second = tmp_path / "whole" / "first", tmp_path / "whole" / "second"
    frozen = {name: value for name, value in weights(second / "final").items() if ".vit_model." in name}
    given = weights(first / "final-ema")
    assert frozen and all(torch.equal(value, given[name]) for name, value in frozen.items())
    path = curriculum(recipe, tmp_path, "killed", steps=3)
    assert killed_runs(path, tmp_path / "killed", [3, 4], seed=3) >= 1
    assert_same_stages(tmp_path)


@pytest.mark.slow
def test_a_curriculum_killed_ten_times_ends_in_the_same_bits(recipe, tmp_path):
    carried = {"weights": "model", "optimizer": "carried"}
    finish(curriculum(recipe, tmp_path, "whole", steps=20, **carried))
    path = curriculum(recipe, tmp_path, "killed", steps=20, **carried)
    assert killed_runs(path, tmp_path / "killed", random_moments(4, 9, 39) + [20], seed=4) >= 9
    assert_same_stages(tmp_path)


def test_a_stage_can_resume_with_the_averages_and_moments_of_the_one_before(recipe, tmp_path):
    path = curriculum(recipe, tmp_path, "carried", steps=3, weights="model", optimizer="carried")
    run(path, [])
    first, second = (tmp_path / "carried" / stage for stage in ("first", "second"))
    steps = [
        json.loads((checkpoints(stage)[-1] / "progress.json").read_text())["optimizer_steps"]
        for stage in (first, second)
    ]
    assert set(steps[0].values()) == {3.0} and set(steps[1].values()) == {6.0}
    # The vision transformer stands still in the second stage: its weights are the model's, its average is gone.
    given, final = weights(first / "final"), weights(second / "final")
    average = stored(checkpoints(second)[0], "average.")
    assert all(torch.equal(value, final[name]) for name, value in given.items() if ".vit_model." in name)
    assert average and not any(".vit_model." in name for name in average)


@pytest.mark.slow
def test_shares_are_resumed_by_two_processes_or_by_one(recipe, tmp_path):
    changes = {"parallelism": "fsdp2", "save_steps": 1}
    finish(recipe("whole", **changes), processes=2)
    finish(recipe("parts", **changes, steps=2), processes=2)
    for name in ("final", "final-ema"):
        os.rename(tmp_path / "parts" / name, tmp_path / f"old-{name}")
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    finish(recipe("parts", **changes), processes=2)
    # The first entries of the histories count as shares of two steps.
    assert_close(tmp_path / "whole", tmp_path / "parts", tolerance=0.0)
    finish(recipe("alone", **changes, accumulation=2))
    assert_close(tmp_path / "whole", tmp_path / "alone")


def test_a_damaged_checkpoint_is_passed_over(recipe, tmp_path):
    run(recipe("whole", save_steps=1), [])
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


def test_changed_data_is_noticed(recipe, tmp_path, capsys):
    records = write_folder(tmp_path / "records", {"vqa": 3, "text_to_image": 3})
    path = recipe("changed", data={"groups": [{"name": "all", "path": str(records), **RANGES}]})
    run(path, ["steps=2"])
    for name in ("final", "final-ema"):
        os.rename(tmp_path / "changed" / name, tmp_path / f"old-{name}")
    write_folder(tmp_path / "records", {"vqa": 5, "text_to_image": 3})
    assert main([str(path)]) == 2
    assert "data changed since the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, named",
    [
        ("seed=99", "seed"),
        ("data.pack_tokens=120", "pack_tokens"),
        ("data.groups.0.weight=2", "groups"),
        ("timestep_shift=2", "timestep_shift"),
        ("data.groups.0.timestep_shift=2", "timestep_shift"),
    ],
)
def test_other_samples_or_noise_are_not_resumed(recipe, tmp_path, capsys, change, named):
    path = recipe("settings")
    run(path, ["steps=2"])
    for name in ("final", "final-ema"):
        os.rename(tmp_path / "settings" / name, tmp_path / f"old-{name}")
    assert main([str(path), change]) == 2
    error = capsys.readouterr().err
    assert f"checkpoint-2 was made with another {named}" in error and "choose another output_dir" in error
    run(path, ["steps=3", "save_steps=1"])  # what the order does not depend on may change
