"""Building: every task, nothing leaks, the same bytes in one or four processes and after kill -9, clear refusals."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow.parquet as parquet
import pytest

from tests.unimed5m.mini_folder import write_folder
from tests.unimed5m.test_schema import record
from unimedvl.commands.main import main
from unimedvl.unimed5m import mini
from unimedvl.unimed5m.build import build, check_splits, find_source
from unimedvl.unimed5m.mini import MiniSource
from unimedvl.unimed5m.pipeline import LocalExecutor, RayExecutor, shard_paths
from unimedvl.unimed5m.schema import from_table, to_table

pytestmark = pytest.mark.medium

TASKS = {
    "vqa",
    "diagnosis",
    "report",
    "caption",
    "text_to_image",
    "planned_text_to_image",
    "segmentation",
    "super_resolution",
    "cross_modal",
    "virtual_staining",
    "restoration",
    "dialogue",
    "counterfactual",
}


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file that a build's user reads."""
    paths = [path for part in ("data", "rejected") for path in sorted((folder / part).iterdir())]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="session")
def built(mini_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("built") / "one"
    build(MiniSource(), mini_folder, output, shards=3)
    return output


def test_all_tasks_are_built_and_every_record_is_valid(built, mini_records):
    found = [item for path in sorted((built / "data").iterdir()) for item in from_table(parquet.read_table(path))]
    for item in found:
        item.validate()
        assert item.synthetic is (item.sub_task_type == "counterfactual")
    assert {item.sub_task_type for item in found} == TASKS
    assert sorted(item.id for item in found) == sorted(item.id for item in mini_records)
    assert {item.id: item for item in found} == {item.id: item for item in mini_records}
    summary = json.loads((built / "build.json").read_text())
    assert summary["read"] == summary["kept"] == len(found) == sum(summary["tasks"].values())
    assert (built / ".gitignore").read_text() == "*\n"


def test_no_validation_row_or_group_is_in_train(built):
    sides = {}
    for path in (built / "data").iterdir():
        table = parquet.read_table(path, columns=["id", "group_id", "split", "extra"])
        for row in table.to_pylist():
            assert path.name.startswith(row["split"])
            for name in ("id", "group_id"):
                sides.setdefault(row[name], set()).add(row["split"])
            assert f"-{row['split']}-" in json.loads(row["extra"])["source_id"]
    assert all(len(found) == 1 for found in sides.values())


def test_each_text_to_image_answer_has_the_image_of_its_row(mini_records):
    described = [item for item in mini_records if item.sub_task_type == "text_to_image"]
    assert len({item.output_img[0].sha256 for item in described}) == len(described)


def test_processes_do_not_show_in_the_bytes(built, mini_folder, tmp_path):
    build(MiniSource(), mini_folder, tmp_path / "four", shards=3, executor=LocalExecutor(4))
    assert digests(tmp_path / "four") == digests(built)


def test_ray_does_not_show_in_the_bytes(built, mini_folder, tmp_path):
    pytest.importorskip("ray")
    build(MiniSource(), mini_folder, tmp_path / "ray", shards=3, executor=RayExecutor(2))
    assert digests(tmp_path / "ray") == digests(built)


def test_finished_work_is_kept_and_missing_work_is_done_again(built, mini_folder, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(built, output)
    kept, lost = sorted((output / "data").iterdir())[:2]
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    (output / "data" / "train-x.parquet.99.partial").write_bytes(b"half")
    build(MiniSource(), mini_folder, output, shards=3)
    assert digests(output) == digests(built)
    assert kept.stat().st_mtime_ns == stamp


def _kill_and_resume(folder: Path, output: Path, kills: int, seed: int, processes: int, shards: int) -> int:
    """Run the command, kill it `kills` times at random moments, and let it finish; returns how many kills hit."""
    command = [sys.executable, "-m", "unimedvl.commands.main", "data", "build", "--source", "unimed-mini", str(folder)]
    command += [str(output), "--shards", str(shards), "--processes", str(processes)]
    # Imports take most of the time of a small build: the clock of the kill starts when the work does.
    generator, hits = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        before = len(list(output.glob("receipts/*/*"))) if output.exists() else 0
        while process.poll() is None and not list(output.glob("data/*.partial")):
            if output.exists() and len(list(output.glob("receipts/*/*"))) > before:
                break
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.15))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            hits += 1
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return hits


def test_a_killed_build_is_resumed_to_the_same_bytes(built, mini_folder, tmp_path):
    assert _kill_and_resume(mini_folder, tmp_path / "killed", kills=2, seed=0, processes=1, shards=3) >= 1
    assert digests(tmp_path / "killed") == digests(built)


def test_a_build_killed_ten_times_is_resumed_to_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "mini", count=60)
    build(MiniSource(), folder, tmp_path / "whole", shards=12)
    assert _kill_and_resume(folder, tmp_path / "killed", kills=10, seed=1, processes=2, shards=12) >= 5
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_folder_with_another_build_or_with_anything_is_refused(built, mini_folder, tmp_path):
    with pytest.raises(ValueError, match=r"another build \(different: shards\)"):
        build(MiniSource(), mini_folder, built, shards=4)
    with pytest.raises(ValueError, match=r"another build \(different: the source's folder or options\)"):
        build(MiniSource(("A",)), mini_folder, built, shards=3)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        build(MiniSource(), mini_folder, tmp_path, shards=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("make", [None, "empty", "other"])
def test_a_wrong_folder_gets_one_line(tmp_path, capsys, make):
    folder = tmp_path / "source"
    if make is not None:
        folder.mkdir()
    if make == "other":
        (folder / "images").mkdir()
    assert main(["data", "build", "--source", "unimed-mini", str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "expected tier_A/SOURCE/train.parquet" in error and "found" in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--source", "nothing"], "nothing"),
        (["--source", "unimed-mini", "--tiers", "D"], "tier"),
        (["--source", "unimed-mini", "--shards", "0"], "shards"),
        (["--source", "unimed-mini", "--processes", "0"], "processes"),
    ],
)
def test_wrong_arguments_get_one_line(mini_folder, tmp_path, capsys, arguments, words):
    assert main(["data", "build", str(mini_folder), str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_tiers_can_be_left_out(mini_folder):
    tiers = {item.license_tier for item in find_source("unimed-mini", ("A", "B")).records(mini_folder)}
    assert tiers == {"A", "B"}


def test_shards_hold_every_record_once(mini_folder, mini_records):
    found = [item.id for index in range(5) for item in MiniSource().records(mini_folder, shard=(index, 5))]
    assert sorted(found) == sorted(item.id for item in mini_records)
    halves = [item.id for split in mini.SPLITS for item in MiniSource().records(mini_folder, split)]
    assert sorted(halves) == sorted(found)


@dataclasses.dataclass(frozen=True)
class Listed:
    """A source of given records."""

    given: tuple
    name: str = "listed"

    def fingerprint(self, root):
        return "listed"

    def records(self, root, split=None, shard=(0, 1), problem=None):
        if problem is not None and shard[0] == 0:
            problem("row-7", "row 7: cannot be read")
        yield from self.given[shard[0] :: shard[1]]


def test_what_is_not_valid_is_set_aside_with_its_reason(tmp_path):
    records = (record(), record(id="2", license=""), record(id="3"))
    summary = build(Listed(records), tmp_path, tmp_path / "out", shards=2)
    assert (summary["read"], summary["kept"], summary["rejected"]) == (4, 2, 2)
    lines = [line for path in sorted((tmp_path / "out/rejected").iterdir()) for line in path.open()]
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons == {"row-7": "row 7: cannot be read", "2": "record '2': license: expected a text, found ''."}
    with pytest.raises(ValueError, match="no valid record"):
        build(Listed(records[1:2]), tmp_path, tmp_path / "none", shards=1)


@pytest.mark.parametrize(
    "records, words",
    [
        (
            (record(), record(id="2", split="validation")),
            "group 'source/1' and 0 others are in both train and validation",
        ),
        ((record(), record()), "same id"),
    ],
)
def test_leaking_groups_and_repeated_ids_are_refused(tmp_path, records, words):
    with pytest.raises(ValueError, match=words):
        build(Listed(records), tmp_path, tmp_path / "out", shards=2)
    with pytest.raises(ValueError, match="unfinished"):
        shard_paths(tmp_path / "out")
    parquet.write_table(to_table(records), tmp_path / "all.parquet")
    with pytest.raises(ValueError, match=words):
        check_splits([tmp_path / "all.parquet"])


def test_a_damaged_image_is_reported_and_the_rest_is_built(mini_folder, tmp_path):
    folder = tmp_path / "mini"
    shutil.copytree(mini_folder, folder)
    path = folder / "tier_A" / "bccd" / "train.parquet"
    table = parquet.read_table(path)
    values = table.to_pylist()
    values[0]["image"]["bytes"] = b"damaged"
    parquet.write_table(type(table).from_pylist(values, schema=table.schema), path)
    summary = build(MiniSource(), folder, tmp_path / "out", shards=1)
    assert summary["rejected"] == 1
    reason = json.loads((tmp_path / "out/rejected/00000-of-00001.jsonl").read_text())["reason"]
    assert reason.startswith("tier_A/bccd/train.parquet: bccd-train-0: ") and "expected an image" in reason


def test_the_shards_load_as_a_data_set(built, mini_records, tmp_path):
    loaded = datasets.load_dataset(str(built), cache_dir=str(tmp_path), streaming=True)
    assert set(loaded) == {"train", "validation"}
    found = [row["id"] for split in loaded.values() for row in split]
    assert sorted(found) == sorted(item.id for item in mini_records)


def test_the_command_builds_and_describes(mini_folder, tmp_path, capsys):
    output = str(tmp_path / "out")
    assert main(["data", "build", "--source", "unimed-mini", str(mini_folder), output, "--shards", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["kept"] > 100
    assert main(["data", "stats", output]) == 0
    printed = capsys.readouterr().out
    assert all(task in printed for task in TASKS)
    assert main(["data", "stats", output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == summary["kept"]
    assert main(["data", "stats", str(tmp_path / "nothing")]) == 2


def test_the_real_folder_gives_every_task(real_folder):
    found = {"train": set(), "validation": set()}
    groups = {"train": set(), "validation": set()}
    held = {
        name
        for path in real_folder.glob("tier_*/*/validation.parquet")
        for name in parquet.read_table(path, columns=["id"])["id"].to_pylist()
    }
    for item in MiniSource().records(real_folder, shard=(0, 20)):
        item.validate()
        found[item.split].add(item.sub_task_type)
        groups[item.split].add(item.group_id)
        assert (json.loads(item.extra)["source_id"] in held) is (item.split == "validation")
    assert found["train"] | {"virtual_staining"} == TASKS
    assert not groups["train"] & groups["validation"]
