"""From one command to the next: every command that takes a model takes an adapter folder, or says what to do."""

import json
import os
import subprocess
import sys

import pytest

from tests.adapters import write_adapter
from tests.training.record_folders import write_folder
from tests.unimedvl.commands import bad_files
from tests.unimedvl.commands.test_bad_input import refused
from tests.unimedvl.commands.test_commands import SMALL, run
from unimedvl.checkpoint.provenance import read_provenance

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    return write_adapter(checkpoint, tmp_path_factory.mktemp("adapter") / "lora", experts="both")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_folder(folder, {"vqa": 3})
    return write_folder(folder, {"vqa": 2, "text_to_image": 2}, "test")


def test_f14_case_42_ask_merge_ask(checkpoint, adapter, tmp_path, capsys):
    flags = ["--image", bad_files.good_png(tmp_path), "--max-new-tokens", 8, "--json"]
    base, together = (json.loads(run(capsys, "ask", "What?", *flags, "--model", m)[0]) for m in (checkpoint, adapter))
    assert together["answer"] != base["answer"] and together["model"] == "lora on tiny"
    merge = json.loads(run(capsys, "merge", adapter, tmp_path / "merged", "--json")[0])
    assert merge["output"] == str(tmp_path / "merged") and merge["base"] == "tiny"
    alone = json.loads(run(capsys, "ask", "What?", *flags, "--model", tmp_path / "merged")[0])
    assert alone["answer"] == together["answer"]
    assert run(capsys, "merge", adapter, tmp_path / "again", "--base", checkpoint)[0].startswith(
        str(tmp_path / "again")
    )


def test_f14_generate_names_adapter_and_base_in_the_image(checkpoint, adapter, tmp_path, capsys):
    pixels = {}
    for name, model in (("base", checkpoint), ("both", adapter)):
        run(capsys, "generate", "a scan", "--out", tmp_path / f"{name}.png", "--seed", 1, *SMALL, "--model", model)
        pixels[name] = (tmp_path / f"{name}.png").read_bytes()
    assert pixels["base"] != pixels["both"]
    assert read_provenance(tmp_path / "both.png")["model"] == "lora on tiny"


def test_f14_info_shows_adapter_and_base(checkpoint, adapter, capsys):
    record = json.loads(run(capsys, "info", "--model", adapter, "--json")[0])
    base = json.loads(run(capsys, "info", "--model", checkpoint, "--json")[0])
    assert record["parameters"] == base["parameters"]
    assert (record["adapter"]["method"], record["adapter"]["rank"]) == ("LORA", 4)
    assert 0 < record["adapter"]["parameters"] < base["parameters"]
    assert "adapter: LORA of rank 4" in run(capsys, "info", "--model", adapter)[0]


def test_f14_eval_takes_an_adapter_and_distinguishes_its_results_from_the_bases(
    checkpoint, adapter, records, tmp_path, capsys
):
    found = {}
    for name, model in (("base", checkpoint), ("both", adapter)):
        flags = ["--benchmark", f"records={records}", "--tasks", "vqa", "--out", tmp_path / name, "--no-baselines"]
        run(capsys, "eval", "--model", model, *flags, "--no-meteor", "--max-new-tokens", 4)
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert found["both"]["model"] == "lora on tiny"
    assert found["both"]["weights"] not in ("", found["base"]["weights"])
    texts = [(tmp_path / name / "records" / "predictions.jsonl").read_text() for name in found]
    assert texts[0] != texts[1]


COMMANDS = [
    ["ask", "What?", "--model", "M"],
    ["generate", "a scan", "--out", "new.png", "--model", "M"],
    ["info", "--model", "M"],
    ["merge", "M", "OUT"],
    ["eval", "--benchmark", "records=RECORDS", "--out", "OUT", "--model", "M"],
    ["serve", "--model", "M"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_f14_a_wrong_base_is_one_line_in_every_command(command, adapter, records, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"M": adapter, "OUT": tmp_path / "out", "records=RECORDS": f"records={records}"}
    words = [places.get(word, word) for word in command]
    line = refused([*words, "--base", "./nowhere"], capfd)
    assert "./nowhere" in line and "--base" in line
    assert "'lora'" in line
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_f14_a_base_without_an_adapter_is_one_line(command, checkpoint, records, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"M": checkpoint, "OUT": tmp_path / "out", "records=RECORDS": f"records={records}"}
    line = refused([places.get(word, word) for word in (*command, "--base", str(checkpoint))], capfd)
    assert "adapter" in line


def test_f14_an_empty_split_is_called_by_its_name_before_the_model_is_loaded(records, tmp_path, capfd):
    flags = ["--out", tmp_path / "out", "--model", "./no-such-model", "--benchmark", f"records={records}"]
    line = refused(["eval", *flags, "--split", "validation"], capfd)
    assert "holds no record of the split validation; it holds 2 test/text_to_image, 2 test/vqa, 3 train/vqa" in line
    line = refused(["eval", *flags, "--tasks", "report,segmentation"], capfd)
    assert "holds no report or segmentation record of the split test" in line


UNDECODABLE = [
    ["ask", "caf\udce9?"],
    ["ask", "What?", "--image", "scan-\udce9.png"],
    ["ask", "What?", "--model", "\udcff"],
    ["generate", "a \ud800 scan", "--out", "new.png"],
    ["generate", "a scan", "--out", "\udce9.png"],
    ["train", "\udce9.yaml"],
    ["train", "tuning/sft.yaml", "output_dir=\udce9"],
    ["convert", "\udce9", "out"],
    ["data", "build", "--source", "vqa", "\udce9", "out"],
    ["data", "check", "records", "\udce9"],
    ["eval", "--benchmark", "records=\udce9", "--out", "out"],
    ["eval", "compare", "a", "\udce9"],
    ["info", "--model", "\udce9"],
    ["merge", "\udce9", "out"],
    ["push", "\udce9", "owner/name"],
    ["\udce9"],
]


@pytest.mark.parametrize("words", UNDECODABLE, ids=lambda words: " ".join(words).encode("ascii", "replace").decode())
def test_f14_case_40_an_argument_that_is_no_text_is_one_line(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert "is not text in the encoding" in refused(words, capfd)
    assert not list(tmp_path.iterdir())


def test_f14_case_40_in_a_real_process():
    command = [os.fsencode(sys.executable), b"-m", b"unimedvl", b"ask", b"caf\xe9?"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("unimedvl: the argument 'caf\\xe9?' is not text")
