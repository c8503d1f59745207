"""The command: results, resuming after SIGKILL, and one line for a user error."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from unimedvl.commands.main import main
from unimedvl.evaluation.benchmarks import BENCHMARKS

COMMAND = [sys.executable, "-m", "unimedvl", "eval", "--no-meteor", "--steps", "2", "--batch-size", "2"]


def run_child(command):
    """Run it to its good end; where it ends badly the failure says what it said."""
    found = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


def test_lists_the_benchmarks(capsys):
    assert main(["eval", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["benchmarks"]
    assert [row["name"] for row in rows] == [benchmark.name for benchmark in BENCHMARKS]


def test_scores_a_baseline_and_compares(records, tmp_path, capsys):
    arguments = ["--benchmark", f"unimed-mini={records}", "--tasks", "vqa,super_resolution", "--no-meteor"]
    for name in ("majority", "copy-input"):
        assert main(["eval", "--model", f"baseline:{name}", *arguments, "--out", str(tmp_path / name)]) == 0
    assert "not above majority" in capsys.readouterr().out
    assert {"results.json", "results.md", "manifest.json"} <= {path.name for path in (tmp_path / "majority").iterdir()}
    assert main(["eval", "compare", str(tmp_path / "majority"), str(tmp_path / "majority")]) == 0
    assert "| unimed-mini | vqa | accuracy |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "eval needs --benchmark NAME=PATH and --out"),
        (["--benchmark", "unimed-mini", "--out", "OUT"], "give the folder of its data"),
        (["--benchmark", "imagenet=RECORDS", "--out", "OUT"], "benchmark: expected one of"),
        (["--benchmark", "unimed-mini=nowhere", "--out", "OUT"], "there is no folder nowhere"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--limit", "0"], "--limit must be at least 1"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--tasks", "cooking"], "--tasks: expected some of"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--split", "dev"], "split: expected some of"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--feature-extractor", "x"], "feature extractor"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--image-text-encoder", "x"], "there is no folder x"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--clinical", "green=x"], "green needs the package"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--classifier", "x"], "FOLDER:LABEL"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--model", "./none"], "there is no folder ./none"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--model", "baseline:luck"], "the baselines are"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "OUT", "--model", "specialist:x"], "holds no specialist"),
        (["--benchmark", "unimed-mini=RECORDS", "--out", "RECORDS", "--model", "baseline:majority"], "is not empty"),
        (["compare", "nowhere", "nowhere"], "holds no results.json"),
        (["card", "nowhere", "nowhere"], "holds no results.json"),
        (["sheet", "nowhere", "OUT"], "holds no run"),
        (["readers", "nowhere"], "holds no reader study"),
    ],
)
def test_wrong_calls_get_one_line(arguments, words, records, tmp_path, capsys):
    places = {"RECORDS": str(records), "OUT": str(tmp_path / "out")}
    given = [word.replace("RECORDS", places["RECORDS"]).replace("OUT", places["OUT"]) for word in arguments]
    assert main(["eval", *given]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert words in message[-1] and message[-1].startswith("unimedvl: ")


@pytest.mark.slow
def test_killed_at_random_and_resumed_gives_the_same_bytes(records, tmp_path):
    """The shipped checkpoint, killed with SIGKILL after more and more of its batches."""
    benchmark = ["--benchmark", f"unimed-mini={records}", "--limit", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run_child([*COMMAND, *benchmark, "--out", str(tmp_path / "whole")])
    out, kills = tmp_path / "killed", 0
    said = tmp_path / "said.txt"
    for lines in (2, 9, 20, 33):
        with open(said, "a") as file:
            command = [*COMMAND, *benchmark, "--out", str(out)]
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        part = out / "unimed-mini" / "parts" / "00000.jsonl"
        while process.poll() is None:
            if part.is_file() and part.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.02)
    assert kills >= 3, said.read_text()[-4000:]
    run_child([*COMMAND, *benchmark, "--out", str(out)])
    for name in ("results.json", "results.md", "unimed-mini/predictions.jsonl", "unimed-mini/scores.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    timings = json.loads((out / "manifest.json").read_text())["timings"]["unimed-mini"]
    assert timings["kept"] >= 32


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(records, tmp_path):
    benchmark = ["--benchmark", f"unimed-mini={records}", "--limit", "4", "--tasks", "vqa,segmentation"]
    benchmark += ["--device", "cpu"]
    run_child([*COMMAND, *benchmark, "--out", str(tmp_path / "one")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *COMMAND[1:]]
    printed = run_child([*launch, *benchmark, "--out", str(tmp_path / "two")])
    assert printed.count("# Evaluation") == 1
    for name in ("results.json", "unimed-mini/predictions.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    ran = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert [manifest["processes"] for manifest in ran] == [1, 2]
    counts = [manifest["timings"]["unimed-mini"]["answered"] for manifest in ran]
    assert counts[0] == counts[1] > 0
