"""One run: a model, some benchmarks, a folder with predictions, results and a manifest.

OUT/manifest.json   what ran: settings, versions, commit, digest of the weights, seconds
OUT/results.json    scores with intervals, baselines, flags; the same bytes however the run was interrupted
OUT/results.md      the same as a table, beside the paper's rows
OUT/NAME/           predictions, generated images, scores of each sample, plots and sheets of a benchmark
"""

import dataclasses
import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from unimedvl.checkpoint.identity import commit, versions
from unimedvl.utils.claims import claim_folder
from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import write_text

from .baselines import NAMES, Baseline, TrainingSplit
from .benchmarks import BenchmarkData
from .distributed import join
from .metrics.intervals import rounded
from .paper_figures import paper_rows
from .predictions import Prediction, PredictionStore, Predictor, predict_all
from .report import markdown
from .samples import TASKS, Sample
from .scoring import Settings, TaskScores, score_all
from .statistics import paired_difference

# One answer for nearly everything, while the right answers differ.
ONE_ANSWER, VARIED = 0.9, 0.6
# Fewer say nothing about a difference.
LEAST_SAMPLES = 10


@dataclasses.dataclass
class Run:
    """The settings of a run.

    Attributes:
        model: name for people, and in the manifest.
        weights: digest of the checkpoint's folder, "" if unknown.
        batch_size: samples asked at once; part of what decides an answer's last bits.
        baselines: whether to compare with what needs no model.
        choices: everything else that decides the predictions, for the manifest.
        scoring: names of the scoring settings, for the results.
    """

    model: str
    out: Path
    weights: str = ""
    batch_size: int = 8
    baselines: bool = True
    choices: dict[str, Any] = dataclasses.field(default_factory=dict)
    scoring: dict[str, Any] = dataclasses.field(default_factory=dict)


def evaluate(
    run: Run, predictor: Predictor, benchmarks: list[BenchmarkData], settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Predict, score and write everything; resume a run that was stopped.

    Args:
        run: the settings, with the folder to write.
        predictor: the model, a baseline or a specialist.
        benchmarks: the benchmarks and their data, each once.
        settings: how to score.
        say: called with lines of progress.

    Returns:
        The content of `results.json`: `model`, `weights`, `scoring` and `benchmarks`; in processes other than the main
        one `benchmarks` is empty.

    Raises:
        ValueError: if the folder holds another run, a benchmark is given twice or its folder is not what it should
            be, or the model answers nothing of what is asked.
    """
    names = Counter(data.benchmark.name for data in benchmarks)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"benchmark {twice[0]} is given twice: name each once, other folders need another --out.")
    state = join()
    asked_of: dict[str, dict[str, Any]] = {
        data.benchmark.name: {
            "data": data.fingerprint(),
            "limit": data.limit,
            "tasks": list(data.tasks),
            "splits": list(data.benchmark.splits),
        }
        for data in benchmarks
    }
    identity: dict[str, Any] = {
        "model": run.model,
        "weights": run.weights,
        "batch_size": run.batch_size,
        "model_settings": predictor.settings,
        "benchmarks": asked_of,
    } | run.choices
    if state.is_main_process:
        claim_folder(run.out, identity, mark="run.json", kind="run")
        folders = {
            data.benchmark.name: {"folder": str(data.folder.resolve())} | asked_of[data.benchmark.name]
            for data in benchmarks
        }
        write_json(run.out / "folders.json", folders)
    state.wait_for_everyone()
    stores = {data.benchmark.name: PredictionStore(run.out / data.benchmark.name) for data in benchmarks}
    timings, found = {}, {}
    for data in benchmarks:
        name = data.benchmark.name
        say(f"{name}: {data.folder}")
        timings[name] = predict_all(predictor, data.samples(), stores[name], run.batch_size, say)
    if not any(counts["answered"] + counts["kept"] for counts in timings.values()):
        asked = ", ".join(dict.fromkeys(task for data in benchmarks for task in data.tasks))
        raise ValueError(f"{run.model} answers nothing here ({asked}): choose another benchmark or other --tasks.")
    for data in benchmarks if state.is_main_process else ():
        name, started = data.benchmark.name, time.monotonic()
        found[name] = score_benchmark(run, predictor, data, stores[name], settings, say)
        timings[name]["scoring_seconds"] = round(time.monotonic() - started, 3)
    results = {"model": run.model, "weights": run.weights, "scoring": run.scoring, "benchmarks": found}
    if state.is_main_process:
        write_json(run.out / "results.json", results)
        write_text(run.out / "results.md", markdown(results))
        write_json(run.out / "manifest.json", _manifest(identity, run, timings))
    state.wait_for_everyone()
    return results


def score_benchmark(
    run: Run,
    predictor: Predictor,
    data: BenchmarkData,
    store: PredictionStore,
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score the stored predictions of one benchmark.

    Args:
        run: says whether baselines are scored too.
        predictor: of the predictions; it knows which tasks it does not support.
        data: the benchmark's samples.
        store: the predictions; `scores.jsonl`, the scores of every sample, is written beside them.
        settings: how answers and images are scored.
        say: prints a line of progress.

    Returns:
        `split`, `note` and `rule` of the benchmark; `left_out_units`, reasons with their counts; `unsupported_tasks`;
        `tasks`, by name `metrics` with intervals, `baselines`, `flags` and, for generated images, `memorization`; and
        `paper`, the rows that the paper reports.
    """
    benchmark = data.benchmark
    settings = dataclasses.replace(settings, own_rule=benchmark.rule)
    scores = score_all(_stored(data, store), settings)
    # Only where the run has samples: walking a publisher's training split may take long.
    training = TrainingSplit(data.training()) if run.baselines else None
    tasks = {
        task: found.finish(settings, None if training is None else training.thumbnails)
        for task, found in scores.items()
    }
    if training is not None:
        whole = sum(count for task, count in data.training_counts.items() if TASKS[task].family == "generation")
        for entry in tasks.values():
            if "memorization" in entry:
                entry["memorization"] |= {"searched": training.searched, "training_images": whole}
        say(f"{benchmark.name}: baselines from {training.count} training samples")
        for name in NAMES:
            _add_baseline(name, training, data, settings, scores, tasks)
    for task, entry in tasks.items():
        entry["flags"] = flags_of(task, entry, scores[task])
    write_text(store.folder / "scores.jsonl", "".join(_score_lines(scores)))
    return {
        "split": list(benchmark.splits),
        "note": benchmark.note,
        "rule": settings.rule or benchmark.rule,
        "left_out_units": data.left_out,
        "unsupported_tasks": [task for task in data.tasks if not predictor.supports(task)],
        "tasks": {task: tasks[task] for task in TASKS if task in tasks},
        "paper": paper_rows(benchmark.paper),
    }


def _stored(data: BenchmarkData, store: PredictionStore) -> Iterator[tuple[Sample, Prediction]]:
    rows = store.read()
    for _, sample in data.samples():
        if sample.id in rows:
            yield sample, store.load(rows[sample.id])


def _add_baseline(
    name: str,
    training: TrainingSplit,
    data: BenchmarkData,
    settings: Settings,
    scores: dict[str, TaskScores],
    tasks: dict[str, dict[str, Any]],
) -> None:
    baseline = Baseline(name, training)
    asked = (
        sample for _, sample in data.samples() if sample.task in scores and baseline.supports(sample.task, sample)
    )
    found = score_all(((sample, baseline.predict([sample])[0]) for sample in asked), settings)
    for task, other in found.items():
        finished = other.finish(dataclasses.replace(settings, meteor=False), training.thumbnails, intervals=False)
        entry: dict[str, Any] = {
            name_: value["value"] for name_, value in finished["metrics"].items() if value["value"] is not None
        }
        if "memorization" in finished:
            entry["memorized"] = finished["memorization"]["memorized"]
        entry["flags"] = flags_of(task, finished, other)
        primary = TASKS[task].primary
        rows = {sample_id: row.get(primary) for sample_id, row in zip(other.ids, other.rows, strict=True)}
        mine = [row.get(primary) for row in scores[task].rows]
        entry["paired"] = paired_difference([rows.get(i) for i in scores[task].ids], mine, scores[task].groups)
        tasks[task].setdefault("baselines", {})[name] = entry


def flags_of(task: str, entry: dict[str, Any], scores: TaskScores) -> list[str]:
    """What a reader must not miss about a task's scores, in words."""
    flags = []
    for name, baseline in entry.get("baselines", {}).items():
        paired = baseline["paired"]
        if paired["count"] >= LEAST_SAMPLES and paired["low"] is not None and paired["low"] <= 0:
            flags.append(f"not above {name}")
    if TASKS[task].family == "answer" and scores.texts:
        said, wanted = (Counter(pair[side] for pair in scores.texts).most_common(1)[0] for side in (0, 1))
        count = len(scores.texts)
        if count >= LEAST_SAMPLES and said[1] >= ONE_ANSWER * count and wanted[1] <= VARIED * count:
            flags.append(f"answers {said[0][:40]!r} to {said[1]} of {count} questions")
    copied = entry["metrics"].get("input_copied", {}).get("value")
    if copied is not None and copied >= 0.5:
        flags.append(f"returns the input image ({copied:.0%})")
    memory = entry.get("memorization")
    if memory and memory["memorized"]:
        flags.append(f"memorization: {memory['copies']} of {memory['count']} images are training images")
    spread = entry["metrics"].get("diversity_vendi_ratio", {}).get("value")
    if spread is not None and spread < 0.5:
        flags.append(f"low diversity ({spread:.2f} of real images)")
    return flags


def _score_lines(scores: dict[str, TaskScores]) -> Iterator[str]:
    for task in sorted(scores):
        found = scores[task]
        for sample_id, group, row in zip(found.ids, found.groups, found.rows, strict=True):
            values = {name: rounded(value) for name, value in row.items()}
            line = {"id": sample_id, "task": task, "group": group, "scores": values}
            yield json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n"


def _manifest(identity: dict[str, Any], run: Run, timings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "settings": identity,
        "scoring": run.scoring,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": str(join().device),
        "processes": join().num_processes,
        "threads": torch.get_num_threads(),
        "timings": timings,
    }
