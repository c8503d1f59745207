"""A run's results for a checkpoint's card: tables, plots, generated pictures, `model-index` and `.eval_results`."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from .compare import load_run
from .samples import TASKS

FOLDER = "evaluation"
# Plots show scores and `made` generated pictures; sheets show the data set and are never copied.
PUBLISHED = ("plots", "made")
TYPES = {"answer": "visual-question-answering", "text": "image-to-text", "generation": "text-to-image"}


def fill_card_folder(out: str | Path, folder: str | Path) -> list[str]:
    """Copy what may be published of a finished run into the folder of a checkpoint.

    Returns:
        the files written, below the folder.

    Raises:
        ValueError: if either folder is not what it should be.
    """
    run, results = load_run(out)
    folder = Path(folder)
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md: give the folder of a checkpoint with its card.")
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    files = []
    for name in ("results.json", "results.md", "manifest.json"):
        files.append(_copy(run / name, target / name))
    for benchmark in results["benchmarks"]:
        for kind in PUBLISHED:
            for path in sorted((run / benchmark / kind).glob("*.png")):
                files.append(_copy(path, target / benchmark / kind / path.name))
    for benchmark, found in results["benchmarks"].items():
        path = folder / ".eval_results" / f"{benchmark}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_results(benchmark, found), sort_keys=False), encoding="utf-8")
        files.append(path)
    card = ModelCard.load(folder / "README.md")
    card.data["model-index"] = model_index(results)
    card.save(folder / "README.md")
    files.append(folder / "README.md")
    return [path.relative_to(folder).as_posix() for path in files]


def eval_results(benchmark: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of `.eval_results/BENCHMARK.yaml`: the primary score of each task."""
    today = datetime.now(UTC).date().isoformat()
    return [
        {
            "dataset": {"id": benchmark, "task_id": task},
            "value": metric["value"],
            "date": today,
            "notes": f"{TASKS[task].primary}, {', '.join(found['split'])} split, {entry['count']} samples, "
            f"95 % interval {metric['low']} to {metric['high']}; flags: {'; '.join(entry['flags']) or 'none'}",
        }
        for task, entry in found["tasks"].items()
        if (metric := entry["metrics"].get(TASKS[task].primary)) and metric["value"] is not None
    ]


def model_index(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The `model-index` of a card."""
    rows = [
        EvalResult(
            task_type=TYPES.get(TASKS[task].family, "image-to-image"),
            task_name=task.replace("_", " "),
            dataset_type=benchmark,
            dataset_name=benchmark,
            dataset_split=found["split"][0],
            metric_type=TASKS[task].primary,
            metric_value=metric["value"],
        )
        for benchmark, found in results["benchmarks"].items()
        for task, entry in found["tasks"].items()
        if (metric := entry["metrics"].get(TASKS[task].primary)) and metric["value"] is not None
    ]
    index: list[dict[str, Any]] = eval_results_to_model_index(results["model"], rows)
    return index


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
