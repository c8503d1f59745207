"""A run's results for a checkpoint's card: tables, plots, generated images, `model-index` and `.eval_results`."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from .compare import load_run
from .samples import TASKS

FOLDER = "evaluation"
FILES = ("results.json", "results.md", "manifest.json")
TYPES = {"answer": "visual-question-answering", "text": "image-to-text", "generation": "text-to-image"}


def fill_card_folder(out: str | Path, folder: str | Path) -> list[str]:
    """Copy what may be published of a finished run into the folder of a checkpoint.

    Plots show scores, and `made` generated images: those go along where the search for copies of training images
    found none. Sheets show the data set and are never copied.

    Returns:
        the files written, below the folder.

    Raises:
        ValueError: if either folder is not what it should be.
    """
    run, results = load_run(out)
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        raise ValueError(f"{folder} holds neither config.json nor model_index.json: give the folder of a checkpoint.")
    target = folder / FOLDER
    if (target / "run.json").exists():
        raise ValueError(f"{target} holds a run itself: move it elsewhere, and give that folder.")
    date = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["date"]
    _remove_earlier(folder)
    files = [_copy(run / name, target / name) for name in FILES]
    for benchmark, found in results["benchmarks"].items():
        shown = {task for task, entry in found["tasks"].items() if _may_show(results["model"], entry)}
        for path in _images(run, benchmark):
            if path.parent.name == "plots" or path.stem in shown:
                files.append(_copy(path, target / path.relative_to(run)))
    for benchmark, found in results["benchmarks"].items():
        path = folder / ".eval_results" / f"{benchmark}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_results(benchmark, found, date), sort_keys=False), encoding="utf-8")
        files.append(path)
    if (folder / "README.md").is_file():  # `unimedvl card` writes one from these results, too
        card = ModelCard.load(folder / "README.md")
        # What the card held before comes back when it is loaded, and these two take its place in `model-index`.
        card.data.model_name, card.data.eval_results = results["model"], index_rows(results)
        card.save(folder / "README.md")
        files.append(folder / "README.md")
    return [path.relative_to(folder).as_posix() for path in files]


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier call put into a checkpoint's folder, and nothing else.

    Raises:
        ValueError: if the folder is of another making.
    """
    target = folder / FOLDER
    if not target.exists():
        return
    try:
        earlier = load_run(target)[1]
    except ValueError as error:
        raise ValueError(f"{target} is not of `unimedvl eval card`: move it away first.") from error
    images = [path for benchmark in earlier["benchmarks"] for path in _images(target, benchmark)]
    tables = [folder / ".eval_results" / f"{benchmark}.yaml" for benchmark in earlier["benchmarks"]]
    for path in [target / name for name in FILES] + images + tables:
        path.unlink(missing_ok=True)
    emptied = {folder for path in images for folder in (path.parent, path.parent.parent)}
    for folder in sorted(emptied, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _images(run: Path, benchmark: str) -> Iterator[Path]:
    """The plots and grids of generated images that `visuals` names after tasks."""
    plots = ["scores", *(f"{task}_{kind}" for task in TASKS for kind in ("by_modality", "confusion", "reliability"))]
    for kind, names in (("plots", plots), ("made", list(TASKS))):
        for name in names:
            path = run / benchmark / kind / f"{name}.png"
            if path.is_file():
                yield path


def _may_show(model: str, entry: dict[str, Any]) -> bool:
    """Whether images may be published as generated: none may be a training image."""
    memory = entry.get("memorization")
    if not memory or model.startswith("baseline:"):
        return False
    return not memory["memorized"] and not memory["copies"]


def eval_results(benchmark: str, found: dict[str, Any], date: str) -> list[dict[str, Any]]:
    """Entries of `.eval_results/BENCHMARK.yaml`: the primary score of each task, with the day of the evaluation."""
    return [
        {
            "dataset": {"id": benchmark, "task_id": task},
            "value": metric["value"],
            "date": date,
            "notes": f"{TASKS[task].primary}, {', '.join(found['split'])} split, {entry['count']} samples, "
            f"95 % interval {metric['low']} to {metric['high']}; flags: {'; '.join(entry['flags']) or 'none'}",
        }
        for task, entry in found["tasks"].items()
        if (metric := entry["metrics"].get(TASKS[task].primary)) and metric["value"] is not None
    ]


def index_rows(results: dict[str, Any]) -> list[EvalResult]:
    """The entries of a card's `model-index`."""
    return [
        EvalResult(
            task_type=TYPES.get(TASKS[task].family, "image-to-image"),
            task_name=task.replace("_", " "),
            dataset_type=benchmark,
            dataset_name=benchmark,
            dataset_split=found["split"][0],
            metric_type=TASKS[task].primary,
            # Tasks of one type stand together in the index.
            metric_name=f"{TASKS[task].primary}, {task.replace('_', ' ')}",
            metric_value=metric["value"],
        )
        for benchmark, found in results["benchmarks"].items()
        for task, entry in found["tasks"].items()
        if (metric := entry["metrics"].get(TASKS[task].primary)) and metric["value"] is not None
    ]


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
