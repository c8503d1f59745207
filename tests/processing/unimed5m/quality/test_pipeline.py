"""Shards of every executor and of interrupted runs are the same, byte for byte."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from unimedvl.processing.unimed5m.pipeline import (
    Job,
    LocalExecutor,
    RayExecutor,
    parquet_identity,
    run_job,
    shard_paths,
)

from .toy_records import all_bytes, faulty_records, record, write_shards

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    entries = [*faulty_records(), *(record(number) for number in range(200, 500))]
    return write_shards(folder / "records", entries, shards=9)


def start(records: Path, output: Path, kind: str) -> subprocess.Popen:
    """A worker in a process group of its own that has said that it starts."""
    environment = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.processing.unimed5m.quality.{WORKER.stem}", str(records), str(output), kind],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
        cwd=WORKER.parents[4],
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "started\n", process.stderr.read()
    return process


def finish(process: subprocess.Popen) -> None:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "finished" in output, errors


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What one process writes, and the seconds that it takes."""
    output = tmp_path_factory.mktemp("uninterrupted")
    process = start(records, output, "1")
    began = time.monotonic()
    finish(process)
    return all_bytes(output), time.monotonic() - began


@pytest.mark.parametrize("kind", ["4", "ray"])
def test_executors_write_the_same_bytes(kind, records, uninterrupted, tmp_path):
    if kind == "ray":
        pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    finish(start(records, tmp_path, kind))
    assert all_bytes(tmp_path) == uninterrupted[0]


def kill_and_resume(records: Path, output: Path, times: int, uninterrupted: tuple[dict[str, bytes], float]) -> int:
    """Kill a run `times` times at random moments, finish it, compare; returns how many kills hit unfinished work."""
    expected, seconds = uninterrupted
    moments = random.Random(times)
    interrupted = 0
    for number in range(times):
        process = start(records, output, "1" if number % 2 else "2")
        time.sleep(moments.uniform(0.02, 0.6) * seconds)
        interrupted += process.poll() is None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    finish(start(records, output, "2"))
    assert all_bytes(output) == expected
    return interrupted


def test_killed_and_resumed_writes_the_same_bytes(records, uninterrupted, tmp_path):
    assert kill_and_resume(records, tmp_path, 2, uninterrupted) >= 1


@pytest.mark.slow
def test_killed_ten_times_and_resumed_writes_the_same_bytes(records, uninterrupted, tmp_path):
    # Each run gets further than the one before: all but the last few kills must hit unfinished work.
    assert kill_and_resume(records, tmp_path, 10, uninterrupted) >= 5


@pytest.mark.slow
def test_workers_end_with_a_killed_driver(records, tmp_path):
    process = start(records, tmp_path, "2")
    driver, workers = psutil.Process(process.pid), []
    while not workers and process.poll() is None:
        workers = [child for child in driver.children(recursive=True) if child.is_running()]
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert workers and not alive, f"{len(gone)} of {len(workers)} ended"


def count_rows(task):
    target = Path(task.output) / "counts" / f"{task.name}.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(str(pq.read_metadata(task.source).num_rows))
    return {"files": [f"counts/{task.name}.txt"], "rows": pq.read_metadata(task.source).num_rows}


def test_a_finished_shard_is_done_again_only_when_needed(tmp_path):
    folder = write_shards(tmp_path / "records", [record(number) for number in range(9)])
    job = Job("count", count_rows)
    assert [receipt["rows"] for receipt in run_job(job, shard_paths(folder), tmp_path / "out")] == [3, 3, 3]
    marks = [tmp_path / "out" / "counts" / f"shard-{number:05d}.txt" for number in range(3)]
    for mark in marks:
        mark.write_text("seen")
    run_job(job, shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["seen"] * 3
    marks[1].unlink()
    run_job(job, shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["seen", "3", "seen"]
    run_job(Job("count", count_rows, {"changed": True}), shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["3"] * 3


def test_shards_that_are_gone_leave_nothing_behind(tmp_path):
    folder = write_shards(tmp_path / "records", [record(number) for number in range(9)])
    run_job(Job("count", count_rows), shard_paths(folder), tmp_path / "out")
    shard_paths(folder)[2].unlink()
    run_job(Job("count", count_rows), shard_paths(folder), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "counts").iterdir()) == [
        "shard-00000.txt",
        "shard-00001.txt",
    ]


def test_identity_follows_content_and_refuses_torn_files(tmp_path):
    one = write_shards(tmp_path / "one", [record(1)], shards=1)
    same = write_shards(tmp_path / "same", [record(1)], shards=1)
    other = write_shards(tmp_path / "other", [record(2)], shards=1)
    identities = [parquet_identity(shard_paths(folder)[0]) for folder in (one, same, other)]
    assert identities[0] == identities[1] != identities[2]
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(shard_paths(one)[0].read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a complete Parquet file"):
        parquet_identity(torn)


@pytest.mark.parametrize("make", [LocalExecutor, RayExecutor])
def test_executors_refuse_no_workers(make):
    with pytest.raises(ValueError, match="1 or more"):
        make(0)


def test_shards_with_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same file name"):
        run_job(Job("count", count_rows), [tmp_path / "a" / "x.parquet", tmp_path / "b" / "x.parquet"], tmp_path)
