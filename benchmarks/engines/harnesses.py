"""Answers of the shipped checkpoint inside evaluation harnesses, held to those of `unimedvl eval`, sample by sample.

    python -m benchmarks.engines.harnesses lmms-eval PYTHON
    python -m benchmarks.engines.harnesses lighteval PYTHON

PYTHON is the interpreter of the harness's own environment. The nano says yes or no to nearly all of these questions,
so the same is asked of a copy with noise in its weights, whose long babble changes with every pixel and every token.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch
from safetensors.torch import load_file, save_file

from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.harnesses.hub_sets import HUB_SETS

from .environments import CHECKPOINT, ROOT, Ran, entry_points, run, write_card
from .question_sets import write_sets

HARNESSES = ROOT / "evaluation" / "harnesses"
BATCH_SIZE = 4
# {question as it was asked: (answer, accuracy)} of each set.
Answers = dict[str, dict[str, tuple[str, float]]]


def write_noisy(folder: Path) -> Path:
    """A copy of the shipped checkpoint with noise, as large as the weights, in its matrices."""
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("evaluation", "__pycache__", "*.png"))
    generator = torch.Generator().manual_seed(0)
    state = load_file(folder / "model.safetensors")
    for name, value in state.items():
        if value.ndim > 1 and "pos_embed" not in name:
            state[name] = value + value.std() * torch.randn(value.shape, generator=generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def own_answers(checkpoint: Path, root: Path) -> Answers:
    """The answers and accuracies of `unimedvl eval` on the publishers' folders."""
    out = root / "own" / checkpoint.name
    folders = {name: root / "published" / name for name in HUB_SETS}
    asked = [f"--benchmark={HUB_SETS[name].benchmark}={folder}" for name, folder in folders.items()]
    asked += ["--model", str(checkpoint), "--trust-remote-code"]
    options = ["--no-baselines", "--no-meteor", "--device", "cpu", "--batch-size", str(BATCH_SIZE)]
    run(sys.executable, ["-m", "unimedvl", "eval", *asked, "--out", str(out), *options], root / "own" / "work")
    found: Answers = {}
    for name, folder in folders.items():
        benchmark = HUB_SETS[name].benchmark
        texts = {row["id"]: row["text"] for row in _lines(out / benchmark / "predictions.jsonl")}
        scores = {row["id"]: row["scores"]["accuracy"] for row in _lines(out / benchmark / "scores.jsonl")}
        samples = [sample for _, sample in BenchmarkData(get_benchmark(benchmark), folder).samples()]
        found[name] = {sample.text: (texts[sample.id], scores[sample.id]) for sample in samples}
    return found


def lmms_eval_answers(python: str, checkpoint: Path, root: Path, processes: int = 1) -> tuple[Answers, Ran]:
    """The same by lmms-eval's own command on the copies in the Hub's columns, in one process or several."""
    out = root / "lmms-eval" / str(processes) / checkpoint.name
    options = ["--model", "unimedvl", "--model_args", f"pretrained={checkpoint},trust_remote_code=True"]
    options += ["--include_path", str(HARNESSES / "lmms_eval_tasks"), "--tasks", ",".join(HUB_SETS)]
    options += ["--batch_size", str(BATCH_SIZE), "--device", "cpu", "--log_samples", "--output_path", str(out)]
    path = (ROOT, entry_points(root / "entry_points"))
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    started = launcher if processes > 1 else []
    done = run(python, [*started, "-m", "lmms_eval", *options], root / "hub", path=path)
    found: Answers = {}
    for name in HUB_SETS:
        logged = _only(out, f"*_samples_{name}.jsonl", done)
        found[name] = {row["input"]: ("".join(row["filtered_resps"]), row["accuracy"]) for row in _lines(logged)}
    return found, done


def lighteval_answers(python: str, checkpoint: Path, root: Path) -> tuple[Answers, Ran]:
    """The same by lighteval's own command."""
    out = root / "lighteval" / checkpoint.name
    files = [str(HARNESSES / "lighteval_model.py"), ",".join(HUB_SETS)]
    options = ["--custom-tasks", str(HARNESSES / "lighteval_tasks.py"), "--save-details", "--output-dir", str(out)]
    variables = {"UNIMEDVL_BATCH_SIZE": str(BATCH_SIZE), "UNIMEDVL_TRUST_REMOTE_CODE": "1"}
    arguments = ["-m", "lighteval", "custom", str(checkpoint), *files, *options]
    done = run(python, arguments, root / "hub", variables=variables)
    found: Answers = {}
    for name in HUB_SETS:
        logged = _only(out, f"details_{name}|0_*.parquet", done)
        rows = parquet.read_table(logged, columns=["doc", "model_response", "metric"]).to_pylist()
        found[name] = {
            row["doc"]["query"]: (row["model_response"]["text"][0], row["metric"]["accuracy"]) for row in rows
        }
    return found, done


ANSWERS: dict[str, Callable[[str, Path, Path], tuple[Answers, Ran]]] = {
    "lmms-eval": lmms_eval_answers,
    "lighteval": lighteval_answers,
}


def compared(own: Answers, others: Answers) -> dict[str, Any]:
    """Counts of samples, of equal answers and of equal scores over all sets, and of different answers in them."""
    pairs = [(own[name][text], others[name].get(text)) for name in own for text in own[name]]
    assert all(set(own[name]) == set(others[name]) for name in own), "the harness asked other questions"
    return {
        "samples": len(pairs),
        "equal answers": sum(other is not None and mine[0] == other[0] for mine, other in pairs),
        "equal accuracy": sum(other is not None and mine[1] == other[1] for mine, other in pairs),
        "right answers": sum(int(mine[1]) for mine, _ in pairs),
        "distinct answers": len({mine[0] for mine, _ in pairs}),
    }


def _only(folder: Path, pattern: str, ran: Ran) -> Path:
    """The file that a command should have written: lmms-eval ends with 0 after an error too."""
    found = list(folder.rglob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"{ran.shown} wrote {len(found)} files {pattern}:\n{ran.output[-4000:]}")
    return found[0]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("harness", choices=sorted(ANSWERS))
    parser.add_argument("python", help="interpreter of the harness's environment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        write_sets(root)
        answers = ANSWERS[arguments.harness]
        runs = {"nano": (CHECKPOINT, answers), "nano with noise": (write_noisy(root / "noisy"), answers)}
        if answers is lmms_eval_answers:
            runs["nano, two processes"] = (CHECKPOINT, partial(lmms_eval_answers, processes=2))
        figure, commands = {}, []
        for name, (checkpoint, answer) in runs.items():
            others, done = answer(arguments.python, checkpoint, root)
            figure[name] = compared(own_answers(checkpoint, root), others)
            commands.append(done.shown)
    same = all(each["samples"] == each["equal answers"] == each["equal accuracy"] for each in figure.values())
    command = f"python -m benchmarks.engines.harnesses {arguments.harness} PYTHON"
    print(write_card(arguments.harness, arguments.python, command, commands[0], figure, same), figure)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
