"""Two runs over the same samples: differences of every score, with intervals and paired tests."""

import json
from pathlib import Path
from typing import Any

from .report import number, table_rows
from .samples import TASKS
from .statistics import holm, paired_difference

SIGNIFICANT = 0.05


def load_run(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Folder and results of a run, by its folder or its `results.json`.

    Raises:
        ValueError: if there are none.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"{path} holds no results.json: give the --out folder of a finished run.")
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        results["benchmarks"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no result of `unimedvl eval`.") from error
    return file.parent, results


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Second minus first for the primary score of every task that both have, over the samples that both have.

    P-values come from flipping signs of whole groups, and are corrected for the number of tasks (Holm).

    Raises:
        ValueError: if the runs share no sample.
    """
    folders, runs = zip(*(load_run(path) for path in (first, second)), strict=True)
    rows: list[dict[str, Any]] = []
    for name in runs[0]["benchmarks"]:
        if name not in runs[1]["benchmarks"]:
            continue
        scores = [read_scores(folder / name / "scores.jsonl") for folder in folders]
        for task in TASKS:
            shared = sorted(key for key in scores[0] if key[0] == task and key in scores[1])
            if shared:
                rows += _task_rows(name, task, [[found[key] for key in shared] for found in scores], runs)
    if not rows:
        raise ValueError(f"{first} and {second} share no scored sample: run the same benchmark with both models.")
    tested = [row for row in rows if row["p"] is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = round(corrected, 6)
        row["significant"] = corrected < SIGNIFICANT
    return {"first": runs[0]["model"], "second": runs[1]["model"], "rows": rows}


def _task_rows(
    name: str, task: str, scores: list[list[dict[str, Any]]], runs: tuple[dict[str, Any], ...]
) -> list[dict[str, Any]]:
    primary = TASKS[task].primary
    values = [[row["scores"].get(primary) for row in found] for found in scores]
    found = paired_difference(values[0], values[1], [row["group"] for row in scores[0]])
    means = [
        run["benchmarks"][name]["tasks"].get(task, {}).get("metrics", {}).get(primary, {}).get("value") for run in runs
    ]
    if found["difference"] is None and None not in means:
        # A score of whole sets: there is nothing to pair.
        found |= {"difference": round(means[1] - means[0], 6), "count": len(values[0])}
    if found["difference"] is None:
        return []
    return [{"benchmark": name, "task": task, "score": primary, "first": means[0], "second": means[1]} | found]


def read_scores(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The scores of each sample by (task, id)."""
    if not path.is_file():
        raise ValueError(f"there is no {path}: comparing needs the whole --out folder, not only results.json.")
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(row["task"], row["id"]): row for row in rows}


def markdown(comparison: dict[str, Any]) -> str:
    """The comparison as a table."""
    lines = [f"first: {comparison['first']}", f"second: {comparison['second']}", ""]
    lines += table_rows(
        ["benchmark", "task", "score", "first", "second", "second - first (95 %)", "p (Holm)", "samples"],
        (
            [
                row["benchmark"],
                row["task"],
                row["score"],
                number(row["first"]),
                number(row["second"]),
                f"{number(row['difference'])} ({number(row['low'])} to {number(row['high'])})",
                number(row.get("p_corrected")) + (" *" if row.get("significant") else ""),
                str(row["count"]),
            ]
            for row in comparison["rows"]
        ),
    )
    return "\n".join(lines)
