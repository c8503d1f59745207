"""The whole chain in one command: it stops between checkpoints, resumes, and ends in a folder that loads."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from examples.nano import carried, processes, train
from tests.examples.nano.conftest import sizes
from unimedvl.checkpoint.loading import load
from unimedvl.training.recipe import CurriculumRecipe, load_recipe
from unimedvl.utils.command_line import run_module

pytestmark = pytest.mark.medium


@pytest.fixture
def budget(tmp_path):
    """Two stages of two steps, and parts of two steps."""
    stage = {
        "model": "set by the chain",
        "output_dir": "set by the chain",
        "steps": 2,
        "bf16": False,
        "optimizer": {"warmup_steps": 1},
        "data": {
            "path": "set by the chain",
            "pack_tokens": 700,
            "groups": [
                {"name": name, "tasks": names, **sizes()}
                for name, names in (("read", ["conversation"]), ("make", ["text_to_image", "segmentation"]))
            ],
        },
    }
    folder = tmp_path / "recipes"
    folder.mkdir()
    stages = [{"name": name, "recipe": "stage.json"} for name in ("first", "second")]
    curriculum = {"model": "start", "output_dir": "out", "stages": stages}
    (folder / "stage.json").write_text(json.dumps(stage))
    (folder / "curriculum.json").write_text(json.dumps(curriculum))
    few = {"steps": 2, "teacher": False}
    return train.Budget(
        "cpu",
        side_by_side=True,
        autoencoder=few,
        vision={"steps": 2},
        stages={"second": ["steps=1"]},
        curriculum=str(folder / "curriculum.json"),
    )


@pytest.mark.slow
def test_a_stopped_chain_resumes_and_ends_in_a_folder_that_loads(budget, work, tmp_path):
    out, packed = tmp_path / "run", tmp_path / "packed"
    out.mkdir()
    carried.pack(work, packed, 30 << 20, processes=1)
    # No time at all: the first parts are stopped, and what they had started with them.
    with pytest.raises(train.TimeUp):
        train.run_chain(train.Chain(budget, out, deadline=time.monotonic()), None, packed)
    assert not (out / "work" / "autoencoder" / "training.json").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])]
    nano = train.run_chain(train.Chain(budget, out), None, packed)
    notes = json.loads((out / "parts.json").read_text())
    assert set(notes) == {"autoencoder", "vision", "start", "first", "second"}
    assert [notes[name]["steps"] for name in ("autoencoder", "vision", "first", "second")] == [2, 2, 2, 1]
    assert all(notes[name]["samples"] >= notes[name]["steps"] for name in ("first", "second"))
    assert all(row["seconds"] > 0 and row["peak_memory_mib"] > 50 for row in notes.values())
    # Seconds are those of the steps; processors have started and read the records besides.
    assert all(0.1 < row["processor_seconds"] < (row["seconds"] + 60) * os.cpu_count() for row in notes.values())
    for name in ("first", "second"):
        stored = load_file(out / "artifacts" / name / "model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    # Published is what the last stage ended in, computed in float32 unless another type is asked for.
    model = load(str(nano), device="cpu").model
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value.float()) for name, value in stored.items())
    # What is done is not done again.
    logs = {path: path.read_bytes() for path in (out / "logs").iterdir()}
    assert train.run_chain(train.Chain(budget, out), None) == nano
    assert logs == {path: path.read_bytes() for path in (out / "logs").iterdir()}


@pytest.mark.slow
def test_parts_of_an_earlier_run_are_not_trained_again(budget, work, tmp_path):
    packed, first, second, kept = (tmp_path / name for name in ("packed", "first", "second", "kept"))
    carried.pack(work, packed, 30 << 20, processes=1)
    first.mkdir()
    for part in carried.WEIGHTS:
        train.run_chain(train.Chain(budget, first), None, packed, only=part)
    carried.copy_weights(first / "work", kept)
    shutil.copy(first / "parts.json", kept)
    second.mkdir()
    train.run_chain(train.Chain(budget, second), None, packed, weights=kept)
    notes = [json.loads((folder / "parts.json").read_text()) for folder in (first, second)]
    assert all(notes[1][part] == notes[0][part] and notes[0][part]["steps"] == 2 for part in carried.WEIGHTS)
    assert not {path.stem for path in (second / "logs").iterdir()} & set(carried.WEIGHTS)
    stored = load_file(first / "work" / "vision" / "vision.safetensors")
    assert load_file(second / "work" / "vision" / "vision.safetensors").keys() == stored.keys()
    # A stage that was handed over is where the next one starts.
    carried.hand_over(second / "artifacts" / "first", [second / "parts.json"], kept / "first")
    shutil.copy(second / "parts.json", kept)
    third = tmp_path / "third"
    third.mkdir()
    assert train.run_chain(train.Chain(budget, third), None, packed, weights=kept) == third / "nano"
    assert {path.stem for path in (third / "logs").iterdir()} == {"start", "second"}
    assert json.loads((third / "parts.json").read_text())["first"] == notes[1]["first"]


def test_a_command_that_fails_is_named_with_its_log_and_stops_its_neighbor(budget, tmp_path):
    chain = train.Chain(budget, tmp_path)
    fails = train.Part("fails", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "a", tmp_path / "a")
    sleeps = train.Part(
        "sleeps", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "b", tmp_path / "b"
    )
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"fails ended with status 3: see .*fails\.log"):
        chain.run([fails, sleeps])
    assert time.monotonic() - begun < 40
    assert not [p for p in psutil.process_iter(["cmdline"]) if "time.sleep(60)" in " ".join(p.info["cmdline"] or [])]


def test_everything_that_a_command_has_started_ends_with_it():
    waits = "import time; time.sleep(61)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {waits!r}]); {waits}"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children
    processes.stop(process)
    assert process.poll() is not None and not any(psutil.pid_exists(child.pid) for child in children)


def test_budgets_are_read_and_name_stages_of_the_curriculum():
    curriculum = load_recipe(train.Budget("cpu").curriculum)
    assert isinstance(curriculum, CurriculumRecipe)
    names = {stage.name: stage.recipe for stage in curriculum.stages}
    for name in ("cpu", "gpu"):
        budget = train.read_budget(name)
        assert set(budget.stages) <= set(names)
        for stage, recipe in names.items():
            overrides = [*budget.every_stage, *budget.stages.get(stage, [])]
            assert train.load_steps(train.Path(budget.curriculum).parent / recipe, overrides) > 0
    with pytest.raises(ValueError, match="no budget 'tpu': choose from cpu, gpu"):
        train.read_budget("tpu")


def test_flags_and_values_become_options():
    assert train.arguments({"steps": 3, "teacher": False, "dry_run": True}) == [
        "--steps",
        "3",
        "--no-teacher",
        "--dry-run",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "cpu", "--out", "run"], "give the folder of built records with --records"),
        (["--budget", "gpu", "--out", "run", "--records", "r"], "--budget gpu needs a GPU"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    if "gpu" in arguments and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    monkeypatch.chdir(tmp_path)
    assert run_module(train.main, arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not os.listdir(tmp_path)
