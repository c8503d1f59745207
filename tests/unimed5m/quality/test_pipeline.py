"""Shards of every executor and of interrupted runs are the same, byte for byte."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray_cluster import ray_cluster
from unimedvl.unimed5m.pipeline import (
    Job,
    LocalExecutor,
    RayExecutor,
    batches,
    parquet_identity,
    run_job,
    shard_paths,
    write_table,
)
from unimedvl.unimed5m.publish import publish
from unimedvl.unimed5m.quality.control import quality_control
from unimedvl.unimed5m.schema import to_table
from unimedvl.utils.claims import only_writer

from .toy_records import all_bytes, drawn, record, write_shards

pytestmark = pytest.mark.medium

WORKER = Path(__file__).with_name("worker.py")
KILLS = 10


def start(output: Path, kind: str, variables: Mapping[str, str] = os.environ) -> subprocess.Popen:
    """A worker in a process group of its own that has said that it starts."""
    environment = {**variables, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.unimed5m.quality.{WORKER.stem}", str(output), kind],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
        cwd=WORKER.parents[3],
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "started\n", process.stderr.read()
    return process


def finish(process: subprocess.Popen) -> None:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and "finished" in output, errors


def shards_done(output: Path) -> int:
    receipts = [json.loads(path.read_text()) for path in output.glob("*/receipts/*/*.json")]
    return sum(receipt["fingerprint"] is not None for receipt in receipts)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    """What one process writes."""
    output = tmp_path_factory.mktemp("uninterrupted")
    finish(start(output, "1"))
    return all_bytes(output)


@pytest.mark.parametrize("kind", ["4", "ray"])
def test_executors_write_the_same_bytes(kind, uninterrupted, tmp_path):
    if kind == "ray":
        pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    finish(start(tmp_path, kind))
    assert all_bytes(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_cluster_that_is_there_writes_the_same_bytes(uninterrupted, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    with ray_cluster() as (environment, _):
        finish(start(tmp_path, "ray", environment))
    assert all_bytes(tmp_path) == uninterrupted


def test_killed_ten_times_and_resumed_writes_the_same_bytes(uninterrupted, tmp_path):
    """Each kill comes some shards after the one before, at a moment that has nothing to do with a shard's end."""
    moments = random.Random(0)
    steps = sum("/receipts/" in name for name in uninterrupted) // KILLS
    for number in range(KILLS):
        goal = shards_done(tmp_path) + moments.randrange(steps)
        process = start(tmp_path, "2" if number % 2 else "1")
        while shards_done(tmp_path) < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert not (tmp_path / "published" / "statistics.json").exists()
    assert shards_done(tmp_path) > KILLS
    finish(start(tmp_path, "2"))
    assert all_bytes(tmp_path) == uninterrupted


@pytest.mark.slow
def test_killed_ray_runs_are_resumed_to_the_same_bytes(uninterrupted, tmp_path):
    """Ray's own processes go down a moment after their driver: the next run may meet their last writes."""
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    moments = random.Random(1)
    for _ in range(KILLS):
        goal = shards_done(tmp_path) + moments.randrange(1, 4)
        process = start(tmp_path, "ray")
        while shards_done(tmp_path) < goal and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert not (tmp_path / "published" / "statistics.json").exists()
    finish(start(tmp_path, "ray"))
    assert all_bytes(tmp_path) == uninterrupted


@pytest.mark.parametrize("moment", ["first child", "first shard"])
def test_workers_end_with_a_killed_driver(moment, tmp_path):
    process = start(tmp_path, "2")
    driver, children = psutil.Process(process.pid), []
    while process.poll() is None and not (children and (moment == "first child" or shards_done(tmp_path))):
        children = driver.children(recursive=True)
    process.kill()
    # The pipes close when the last process that holds them is gone: workers, and what else the pool has started.
    process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert children and not alive, f"{len(gone)} of {len(children)} ended"


def dies_at_rename(place: int, work) -> bool:
    """Whether `work`, in a process that is killed just before its `place`-th rename, got that far."""
    child = os.fork()
    if not child:
        rename, left = os.replace, place

        def replace(*paths):
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            rename(*paths)

        os.replace = replace
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def test_a_change_of_mind_after_a_kill_leaves_nothing_of_it(tmp_path):
    """Publishing with more images is killed at every single rename, then taken back: none of them may stay."""
    entries = [record(number, redistributable="non-commercial") for number in range(4)]
    write_shards(tmp_path / "records", [*entries, record(4)], shards=2)
    publish(tmp_path / "records", tmp_path / "before")
    expected = all_bytes(tmp_path / "before")
    for place in range(1000):
        output = tmp_path / f"out-{place}"
        shutil.copytree(tmp_path / "before", output)
        died = dies_at_rename(place, lambda to=output: publish(tmp_path / "records", to, embed=("yes", "non")))
        publish(tmp_path / "records", output)
        assert all_bytes(output) == expected, place
        if not died:
            break
    assert not died and place > 10


def test_a_folder_is_not_read_before_it_is_whole(tmp_path):
    write_shards(tmp_path / "records", [record(number) for number in range(6)], shards=2)
    refused = whole = 0
    died = True
    while died:
        output = tmp_path / f"out-{refused + whole}"
        died = dies_at_rename(refused + whole, lambda to=output: quality_control(tmp_path / "records", to))
        try:
            paths = shard_paths(output)
        except ValueError as error:
            assert "unfinished" in str(error) or "found none" in str(error)
            refused += 1
        else:
            assert sum(pq.read_metadata(path).num_rows for path in paths) == 6
            whole += 1
        quality_control(tmp_path / "records", output)
        assert sum(pq.read_metadata(path).num_rows for path in shard_paths(output)) == 6
    assert refused > 10 and whole >= 1


def test_results_are_never_written_over_what_is_read(tmp_path):
    folder = write_shards(tmp_path / "records" / "data", [record(number) for number in range(3)]).parent
    before = all_bytes(folder)
    for work in (quality_control, publish):
        with pytest.raises(ValueError, match="choose another folder"):
            work(folder, folder)
    assert all_bytes(folder) == before


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
        mark.write_text("x")
    run_job(job, shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["x"] * 3
    marks[1].unlink()
    run_job(job, shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["x", "3", "x"]
    marks[2].write_text("")
    run_job(job, shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["x", "3", "3"]
    write_shards(tmp_path / "records", [record(number) for number in range(12)])
    run_job(job, shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["4"] * 3
    marks[0].write_text("x")
    run_job(Job("count", count_rows, {"changed": True}), shard_paths(folder), tmp_path / "out")
    assert [mark.read_text() for mark in marks] == ["4"] * 3


def test_shards_that_are_gone_leave_nothing_behind(tmp_path):
    folder = write_shards(tmp_path / "records", [record(number) for number in range(9)])
    run_job(Job("count", count_rows), shard_paths(folder), tmp_path / "out")
    shard_paths(folder)[2].unlink()
    run_job(Job("count", count_rows), shard_paths(folder), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "counts").iterdir()) == [
        "shard-00000.txt",
        "shard-00001.txt",
    ]


def test_only_our_own_half_written_files_are_removed(tmp_path):
    folder = write_shards(tmp_path / "records", [record(1)], shards=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.parquet.123.partial").write_text("ours")
    (tmp_path / "out" / "film.partial").write_text("a download")
    run_job(Job("count", count_rows), shard_paths(folder), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["counts", "film.partial", "receipts"]


def test_identity_follows_content_and_refuses_torn_files(tmp_path):
    one = write_shards(tmp_path / "one", [record(1)], shards=1)
    same = write_shards(tmp_path / "same", [record(1)], shards=1)
    other = write_shards(tmp_path / "other", [record(2)], shards=1)
    identities = [parquet_identity(shard_paths(folder)[0]) for folder in (one, same, other)]
    assert identities[0] == identities[1] != identities[2]
    for size in (5, 100, len(shard_paths(one)[0].read_bytes()) - 20):
        torn = tmp_path / "torn.parquet"
        torn.write_bytes(shard_paths(one)[0].read_bytes()[:size])
        with pytest.raises(ValueError, match="not a complete Parquet file"):
            parquet_identity(torn)


def write_plainly(path, table):
    pq.write_table(table, path, write_statistics=False)


@pytest.mark.parametrize("write", [write_table, write_plainly])
def test_identity_sees_values_that_take_the_same_room(write, tmp_path):
    """Scores of one run and of another differ in nothing that a file's sizes show."""
    for name, score in (("one", 0.25), ("other", 0.75)):
        write(tmp_path / f"{name}.parquet", pa.table({"id": ["a", "b"], "s": [score, 0.5]}))
    one, other = (tmp_path / "one.parquet", tmp_path / "other.parquet")
    assert one.stat().st_size == other.stat().st_size
    assert parquet_identity(one) != parquet_identity(other)


def test_a_large_row_group_is_read_in_small_batches(tmp_path):
    table = to_table([record(number, drawn(number % 5)) for number in range(250)])
    pq.write_table(table, tmp_path / "one_group.parquet")
    parts = list(batches(tmp_path / "one_group.parquet"))
    assert [part.num_rows for part in parts] == [100, 100, 50]
    assert pa.concat_tables(parts).equals(table) and b"huggingface" in parts[0].schema.metadata
    part = next(batches(tmp_path / "one_group.parquet", ["id", "input_img"]))
    assert part.column_names == ["id", "input_img"]


@pytest.mark.parametrize("make", [LocalExecutor, RayExecutor])
def test_executors_refuse_no_workers(make):
    with pytest.raises(ValueError, match="1 or more"):
        make(0)


def test_shards_with_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same file name"):
        run_job(Job("count", count_rows), [tmp_path / "1/a/x.parquet", tmp_path / "2/a/x.parquet"], tmp_path)


def test_a_second_run_into_one_folder_is_refused_and_the_first_unharmed(tmp_path):
    lock = tmp_path / "out" / "receipts" / ".lock"
    with only_writer(tmp_path / "out", lock):
        with pytest.raises(ValueError, match="another run is writing"), only_writer(tmp_path / "out", lock):
            pass
    with only_writer(tmp_path / "out", lock):
        pass
