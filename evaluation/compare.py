"""Two runs over the same samples: differences of every score, with intervals and paired tests."""

import json
from pathlib import Path
from typing import Any

from .metrics.intervals import rounded
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

    Returns:
        `first` and `second` (names of the models), `rows`, and `notes`: in words, what was scored differently or left
        out.

    Raises:
        ValueError: if the runs share nothing that can be compared.
    """
    folders, runs = zip(*(load_run(path) for path in (first, second)), strict=True)
    rows: list[dict[str, Any]] = []
    notes = _differences(runs)
    for name in runs[0]["benchmarks"]:
        if name not in runs[1]["benchmarks"]:
            continue
        scores = [read_scores(folder / name / "scores.jsonl") for folder in folders]
        for task in TASKS:
            keys = [{key for key in found if key[0] == task} for found in scores]
            shared = sorted(keys[0] & keys[1])
            if not shared:
                continue
            paired = _paired_row(name, task, [[found[key] for key in shared] for found in scores])
            whole = None if paired else _whole_row(name, task, len(shared), runs)
            if whole and keys[0] != keys[1]:
                notes.append(f"{whole['score']} of {name}, {task}, is left out: the runs scored different samples")
                whole = None
            rows += [row for row in (paired, whole) if row]
    if not rows:
        raise ValueError(
            f"{first} and {second} share no score: run the same samples with both models"
            + "".join(f" ({note})" for note in notes)
            + "."
        )
    tested = [row for row in rows if row["p"] is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = round(corrected, 6)
        row["significant"] = corrected < SIGNIFICANT
    return {"first": runs[0]["model"], "second": runs[1]["model"], "rows": rows, "notes": notes}


def _differences(runs: tuple[dict[str, Any], ...]) -> list[str]:
    """What was scored by other settings (rule, extractor, resizing, ...), in words."""
    settings = [dict(run["scoring"]) for run in runs]
    for name in runs[0]["benchmarks"]:
        if name in runs[1]["benchmarks"]:
            for found, run in zip(settings, runs, strict=True):
                found[f"rule of {name}"] = run["benchmarks"][name]["rule"]
    return [
        f"scored differently, {name}: {settings[0].get(name, 'none')} and {settings[1].get(name, 'none')}"
        for name in sorted({*settings[0], *settings[1]})
        if settings[0].get(name) != settings[1].get(name)
    ]


def _paired_row(name: str, task: str, scores: list[list[dict[str, Any]]]) -> dict[str, Any] | None:
    """A score of each sample, with means over the samples that both runs have it for."""
    primary = TASKS[task].primary
    values = [[row["scores"].get(primary) for row in found] for found in scores]
    found = paired_difference(values[0], values[1], [row["group"] for row in scores[0]])
    pairs = [pair for pair in zip(*values, strict=True) if None not in pair]
    if not pairs:
        return None
    means = [rounded(sum(column) / len(pairs)) for column in zip(*pairs, strict=True)]
    return {"benchmark": name, "task": task, "score": primary, "first": means[0], "second": means[1]} | found


def _whole_row(name: str, task: str, count: int, runs: tuple[dict[str, Any], ...]) -> dict[str, Any] | None:
    """A score of a whole set of samples: there is nothing to pair."""
    primary = TASKS[task].primary
    values = [run["benchmarks"][name]["tasks"][task]["metrics"].get(primary, {}).get("value") for run in runs]
    if None in values:
        return None
    found = {"difference": rounded(values[1] - values[0]), "low": None, "high": None, "p": None, "count": count}
    return {"benchmark": name, "task": task, "score": primary, "first": values[0], "second": values[1]} | found


def read_scores(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The scores of each sample by (task, id).

    Raises:
        ValueError: if there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}: comparing needs the whole --out folder, not only results.json.")
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
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
    return "\n".join(lines + [f"\n**{note}**" for note in comparison["notes"]])
