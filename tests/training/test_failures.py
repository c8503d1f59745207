"""Whatever goes wrong ends the run with one line that says what to do, and leaves the last checkpoint usable."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.conftest import RANGES
from tests.training.outcomes import assert_close
from tests.training.processes import Run, finish
from tests.training.record_folders import record, write_folder
from unimedvl.training.checkpoints import checkpoints
from unimedvl.training.run import main, run
from unimedvl.unimed5m.schema import RecordImage, to_table
from unimedvl.unimed5m.shards import write_table

pytestmark = pytest.mark.medium


def stopped_early(recipe, folder: Path, **changes) -> tuple[Path, Path]:
    """A run stopped after two of four steps, and its last checkpoint."""
    path = recipe(folder.name, **changes)
    finish(path, "steps=2")
    for name in ("final", "final-ema"):
        shutil.rmtree(folder / name)
    return path, folder / "checkpoint-2"


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(recipe, tmp_path):
    finish(recipe("whole"))
    path, last = stopped_early(recipe, tmp_path / "full")
    started = Run(path, file_bytes=50_000)
    assert started.wait() == [2]
    (line,) = started.errors()
    assert "checkpoint-4 cannot be written (" in line and "make room" in line
    assert checkpoints(tmp_path / "full") == [last]
    assert not list((tmp_path / "full").glob(".*partial*"))
    finish(path)
    # Its first entries count as shares of two steps, so histories differ; the trained weights do not.
    assert_close(tmp_path / "whole", tmp_path / "full", tolerance=0.0)


@pytest.mark.slow
def test_a_file_system_without_room_leaves_the_last_checkpoint(recipe, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs rights that this user has not")
    try:
        started = Run(recipe("tight", output_dir=str(place / "out"), save_steps=1, keep_checkpoints=50, steps=50))
        assert started.wait() == [2]
        (line,) = started.errors()
        assert "cannot be written (No space left on device" in line
        assert checkpoints(place / "out")
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("parallelism", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_others_with_one_line(recipe, tmp_path, parallelism):
    path = recipe("lost", parallelism=parallelism, steps=400, save_steps=1)
    started = Run(path, processes=2)
    while started.alive and not checkpoints(tmp_path / "lost"):
        time.sleep(0.02)
    started.kill(rank=1)
    codes = started.wait(120)
    assert codes[0] == 2, started.said()
    (line,) = started.errors()
    assert "another process of this run is gone" in line and "last checkpoint" in line
    last = checkpoints(tmp_path / "lost")[-1]
    step = int(last.name.partition("-")[2])
    finish(path, f"steps={step + 1}", processes=2)
    assert checkpoints(tmp_path / "lost")[-1].name == f"checkpoint-{step + 1}"


def damaged(folder: Path, how: str) -> Path:
    write_folder(folder, {"vqa": 4, "text_to_image": 4})
    shard = next((folder / "data").glob("train-vqa.parquet"))
    content = bytearray(shard.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    else:
        content[len(content) // 4 : len(content) // 2] = random.Random(0).randbytes(len(content) // 4)
    shard.write_bytes(content)
    return folder


@pytest.mark.parametrize("how", ["cut", "empty", "scrambled"])
def test_a_damaged_shard_of_records_is_named(recipe, tmp_path, capsys, how):
    records = damaged(tmp_path / "records", how)
    path = recipe("damaged", data={"groups": [{"name": "all", "path": str(records), **RANGES}]})
    assert main([str(path)]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m unimedvl.training.run:")
    ]
    assert str(records) in line and "build the records again" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_by_one_line(recipe, tmp_path, capsys, workers):
    whole = record("vqa", 0)
    (shown,) = whole.input_img
    cut = whole.replace(input_img=(RecordImage(shown.data[:60], "cut.png", shown.height, shown.width),))
    write_table(tmp_path / "records" / "data" / "train-00000-of-00001.parquet", to_table([cut, record("vqa", 1)]))
    groups = [{"name": "all", "path": str(tmp_path / "records"), **RANGES}]
    path = recipe("damaged", data={"groups": groups, "workers": workers})
    assert main([str(path)]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m unimedvl.training.run:")
    ]
    assert f"{whole.id}: cut.png cannot be read" in line and "Traceback" not in line


def test_a_checkpoint_of_another_model_is_refused_and_kept(recipe, tmp_path, capsys):
    path, last = stopped_early(recipe, tmp_path / "run")
    tiny_checkpoint(tmp_path / "other", num_hidden_layers=3)
    before = sorted((file, file.stat().st_mtime_ns) for file in last.rglob("*"))
    assert main([str(path), f"model={tmp_path / 'other'}"]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m unimedvl.training.run:")
    ]
    assert "checkpoint-2 is a checkpoint of another model or recipe" in line
    assert sorted((file, file.stat().st_mtime_ns) for file in last.rglob("*")) == before
    # Other parts that learn are another optimizer.
    assert main([str(path), "freeze=[vae, vit]"]) == 2
    assert "another model or recipe" in capsys.readouterr().err
    run(path, [])


def test_a_checkpoint_with_damaged_tensors_is_named(recipe, tmp_path, capsys):
    path, last = stopped_early(recipe, tmp_path / "run")
    (shard,) = (last / "shards").iterdir()
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    assert main([str(path)]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m unimedvl.training.run:")
    ]
    assert "checkpoint-2 is damaged" in line and "resume from the one before" in line


@pytest.mark.parametrize("change", ["model_type", "tensor"])
def test_a_folder_that_holds_no_such_model_is_refused(recipe, place, tmp_path, capsys, change):
    wrong = tmp_path / "wrong"
    shutil.copytree(place / "model", wrong)
    if change == "tensor":
        tiny_checkpoint(tmp_path / "other", num_hidden_layers=3)
        shutil.copy(tmp_path / "other" / "model.safetensors", wrong / "model.safetensors")
    else:
        (wrong / "config.json").write_text('{"model_type": "bert"}')
    assert main([str(recipe("wrong", model=str(wrong)))]) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m unimedvl.training.run:")
    ]
    assert len(lines) == 1 and str(wrong) in lines[0]
