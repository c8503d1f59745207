"""What happens to the figures of a part that breaks, hangs or dies, and what a wrong model makes of the exit code.

Each child imports its libraries anew, which takes minutes together; `test_rehearsal` runs the whole script once.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.__main__ import PARTS, Part, main, plan, start_record, supervise
from benchmarks.gpu.record import ROOT, failures, table

pytestmark = pytest.mark.medium

GOLDEN = ROOT / "tests" / "golden" / "fixtures"
# An accidental kill of a part that only had to import its libraries on a busy machine is not what is tested.
PATIENT, SHORT = 300, 60


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A run of three parts: one with a broken step, one that is stopped at its limit, one whose process dies."""
    folder = tmp_path_factory.mktemp("gpu")
    seconds = {"breaking": PATIENT, "hanging": SHORT, "dying": PATIENT}
    parts = [Part(name, f"tests.benchmarks.gpu.{name}", limit) for name, limit in seconds.items()]
    start_record(parts, folder, "cpu", "tiny")
    return supervise(parts, folder / "gpu.json", "cpu", "tiny", GOLDEN)


def figures(document, part):
    return {figure["name"].partition(".")[2]: figure for figure in document["parts"][part]["figures"]}


@pytest.mark.slow
def test_an_error_in_a_step_loses_nothing_of_the_others(document):
    found = figures(document, "breaking")
    assert document["parts"]["breaking"]["status"] == "done"
    assert [found[name]["status"] for name in ("first", "before", "breaks", "last")] == [
        "measured",
        "measured",
        "error",
        "measured",
    ]
    assert found["breaks"]["reason"] == "OSError: the step broke"
    assert "and said why" in found["breaks"]["traceback"]


@pytest.mark.slow
def test_a_value_that_is_no_number_is_no_figure(document):
    last = figures(document, "breaking")["last"]
    assert last["value"] is None and "nan" in last["reason"]


@pytest.mark.slow
def test_a_part_stopped_at_its_limit_keeps_its_figures(document):
    entry, found = document["parts"]["hanging"], figures(document, "hanging")
    assert entry["status"] == "stopped" and "limit of 60 s" in entry["reason"]
    assert found["first"]["value"] == 1.0
    assert {name: found[name]["status"] for name in ("hangs", "last")} == {"hangs": "not_run", "last": "not_run"}


@pytest.mark.slow
def test_a_part_whose_process_dies_keeps_its_figures_and_says_how_it_ended(document):
    entry, found = document["parts"]["dying"], figures(document, "dying")
    assert "exit code 7" in entry["reason"]
    assert found["first"]["value"] == 1.0 and found["dies"]["status"] == "not_run"


@pytest.mark.slow
def test_only_comparisons_fail_a_run(document):
    assert failures(document) == []
    shown = table(document)
    for part in document["parts"].values():
        for figure in part["figures"]:
            assert figure["name"] in shown


@pytest.mark.slow
def test_a_broken_weight_fails_the_run(tmp_path):
    """One weight of a copy of the golden checkpoint is changed: the records, and nothing else, must notice."""
    golden = tmp_path / "golden"
    shutil.copytree(GOLDEN, golden)
    weights = load_file(golden / "ckpt" / "ema.safetensors")
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.05 * torch.ones_like(weights[name])
    save_file(weights, golden / "ckpt" / "ema.safetensors", metadata={"format": "pt"})
    arguments = ["--size", "tiny", "--device", "cpu", "--parts", "correctness", "--golden", str(golden)]
    code = main([*arguments, "--out", str(tmp_path / "out"), "--limit", f"correctness={PATIENT}"])
    assert code == 1
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    (failure,) = failures(document)
    assert failure.startswith("correctness correctness.golden.float32.failed")


def test_the_plan_takes_less_than_four_minutes(capsys):
    assert main(["--plan"]) == 0
    shown = capsys.readouterr().out
    assert all(part.name in shown for part in PARTS)
    assert sum(part.seconds for part in PARTS) < 240
    assert PARTS[0].name == "correctness"
    assert "25 s at most" in plan({"train": 25.0})


def test_parts_without_figures_come_first_after_an_earlier_record(tmp_path, capsys):
    start_record(list(PARTS), tmp_path, "cpu", "tiny")
    path = tmp_path / "gpu.json"
    record = json.loads(path.read_text())
    measured = {"name": "x", "value": 1.0, "unit": "ms", "status": "measured"}
    missing = {"name": "y", "value": None, "unit": "", "status": "not_run", "reason": "no time"}
    broken = missing | {"status": "error"}
    for part, status, figures in (
        ("correctness", "done", [measured]),
        ("denoise", "done", [measured, broken]),
        ("decode", "stopped", [measured, missing]),
        ("train", "done", [measured, missing]),
        ("memory", "stopped", [missing]),
    ):
        record["parts"][part] |= {"status": status, "figures": figures}
    path.write_text(json.dumps(record))
    assert main(["--plan", "--after", str(path)]) == 0
    order = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert order == ["memory", "denoise", "decode", "correctness", "train"]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "other"}'])
def test_what_is_no_earlier_record_is_refused(tmp_path, capsys, text):
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as raised:
        main(["--plan", "--after", str(path)])
    assert raised.value.code == 2 and "record" in capsys.readouterr().err


def test_unknown_limits_are_refused(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--limit", "traing=3"])
    assert raised.value.code == 2 and "PART=SECONDS" in capsys.readouterr().err
