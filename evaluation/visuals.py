"""Plots of a run's scores, and sheets of its images.

OUT/NAME/plots/*.png    scores only: may be published
OUT/NAME/made/*.png     generated images only: may be published where none is a copy of a training image
OUT/NAME/sheets/*.png   images of the data set beside generated ones: stay where the data may be
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_calibration_error

from unimedvl.unimed5m.task_images import shown_image

from .benchmarks import BenchmarkData
from .compare import read_scores
from .contact_sheets import CELL, Row, draw_rows, fitted
from .metrics.answers import normalized
from .predictions import PredictionStore
from .samples import TASKS, Sample

ROWS = 6
LABELS = 12
BINS = 10
INK, MODEL, OTHER = "#333333", "#0072b2", "#b8b8b8"


def draw_all(results: dict[str, Any], benchmarks: Iterable[BenchmarkData], out: Path) -> list[Path]:
    """Every plot and sheet of a run; the files, in order."""
    files: list[Path] = []
    for data in benchmarks:
        folder = out / data.benchmark.name
        tasks = results["benchmarks"][data.benchmark.name]["tasks"]
        if not tasks:
            continue
        for name in ("plots", "made", "sheets"):
            (folder / name).mkdir(exist_ok=True)
        files.append(plot_primary(tasks, folder / "plots" / "scores.png"))
        for task, entry in tasks.items():
            if "distribution_by_modality" in entry and TASKS[task].family == "generation":
                files += plot_distribution(task, entry, folder / "plots" / f"{task}_by_modality.png")
        files += _with_samples(data, folder)
    return files


def plot_primary(tasks: dict[str, Any], path: Path) -> Path:
    """A panel for each task: its primary score with interval, and the baselines'."""
    shown = {
        task: entry
        for task, entry in tasks.items()
        if entry["metrics"].get(TASKS[task].primary, {}).get("value") is not None
    }
    # Too few samples for any score of a set: the sheets show them.
    tasks = shown or tasks
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = _figure(rows, columns, 3.0, 2.2)
    for axis, (task, entry) in zip(axes, tasks.items(), strict=False):
        primary = TASKS[task].primary
        bars = [("model", entry["metrics"].get(primary, {}))]
        bars += [(name, {"value": found.get(primary)}) for name, found in entry.get("baselines", {}).items()]
        bars = [(name, found) for name, found in bars if found.get("value") is not None]
        for place, (name, found) in enumerate(bars):
            axis.barh(place, found["value"], color=MODEL if name == "model" else OTHER)
            if found.get("low") is not None:
                axis.plot([found["low"], found["high"]], [place, place], color=INK, linewidth=1.5)
        axis.set_yticks(range(len(bars)), [name for name, _ in bars])
        axis.invert_yaxis()
        better = "" if TASKS[task].better > 0 else ", lower is better"
        axis.set_title(f"{task.replace('_', ' ')}: {primary}{better} (n = {entry['count']})", fontsize=8)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    return _save(figure, path)


def plot_distribution(task: str, entry: dict[str, Any], path: Path) -> list[Path]:
    """FID of each modality, against the image-text score where there is one."""
    found = entry["distribution_by_modality"]
    names = [name for name, row in found.items() if row.get("fid") is not None]
    if not names:
        return []
    figure, axes = _figure(1, 1, 4.5, 3.2)
    axis = axes[0]
    texts = {name: entry["by_modality"].get(name, {}).get("image_text") for name in names}
    if all(value is not None for value in texts.values()):
        axis.scatter([found[name]["fid"] for name in names], [texts[name] for name in names], color=MODEL)
        for name in names:
            axis.annotate(
                name, (found[name]["fid"], texts[name]), fontsize=8, xytext=(3, 3), textcoords="offset points"
            )
        axis.set_xlabel("FID (lower is better)")
        axis.set_ylabel("image-text cosine")
    else:
        axis.bar(
            [f"{name}\n{found[name]['count']}" for name in names], [found[name]["fid"] for name in names], color=MODEL
        )
        axis.set_ylabel("FID (lower is better)")
    axis.set_title(f"{task.replace('_', ' ')}: {entry['extractor']}", fontsize=8)
    return [_save(figure, path)]


def _with_samples(data: BenchmarkData, folder: Path) -> list[Path]:
    """What needs the samples again: confusion, reliability and sheets."""
    store = PredictionStore(folder)
    predictions, scores = store.read(), read_scores(folder / "scores.jsonl")
    answers: dict[str, list[tuple[str, str, float | None, float]]] = {}
    shown: dict[str, tuple[list[Any], list[Any]]] = {}
    for order, (_, sample) in enumerate(data.samples()):
        if sample.id not in predictions:
            continue
        row, score = predictions[sample.id], scores[sample.task, sample.id]["scores"]
        if TASKS[sample.task].family == "answer":
            entry = (sample.reference, row["text"], row.get("confidence"), float(score["accuracy"]))
            answers.setdefault(sample.task, []).append(entry)
        if row["image"]:
            first, worst = shown.setdefault(sample.task, ([], []))
            if len(first) < ROWS:
                first.append((order, sample, score))
            value = score.get(TASKS[sample.task].primary)
            if value is not None:
                heapq.heappush(worst, (-value * TASKS[sample.task].better, -order, sample, score))
                if len(worst) > ROWS:
                    heapq.heappop(worst)
    files = []
    for task, entries in answers.items():
        files += plot_confusion(task, entries, folder / "plots" / f"{task}_confusion.png")
        files += plot_reliability(task, entries, folder / "plots" / f"{task}_reliability.png")
    for task, (first, worst) in shown.items():
        rows = [(sample, score) for _, sample, score in first]
        files.append(sheet(rows, store, predictions, folder / "sheets" / f"{task}.png"))
        if worst:
            failures = [(sample, score) for _, _, sample, score in sorted(worst, key=lambda row: (-row[0], -row[1]))]
            files.append(sheet(failures, store, predictions, folder / "sheets" / f"{task}_worst.png"))
        if TASKS[task].family == "generation":
            files.append(
                grid([store.load(predictions[sample.id]).image for sample, _ in rows], folder / "made" / f"{task}.png")
            )
    return files


def plot_confusion(task: str, answers: list[tuple[str, str, float | None, float]], path: Path) -> list[Path]:
    """Which of the commonest right answers is named for which."""
    common = [label for label, _ in Counter(normalized(row[0]) for row in answers).most_common(LABELS)]
    if len(common) < 2:
        return []
    counts = numpy.zeros((len(common), len(common) + 1), dtype=int)
    for reference, text, _, _ in answers:
        if normalized(reference) not in common:
            continue
        said = f" {normalized(text)} "
        named = [label for label in common if f" {label} " in said]
        # The longest names what the shorter ones are part of.
        place = common.index(max(named, key=len)) if named else len(common)
        counts[common.index(normalized(reference)), place] += 1
    # Not scikit-learn's ConfusionMatrixDisplay: it has no column for answers outside the labels, and shades by the
    # numbers it writes, while here counts are written on shades of the row's fractions.
    figure, axes = _figure(1, 1, 1.8 + 0.45 * len(common), 1.4 + 0.35 * len(common))
    axis = axes[0]
    shares = counts / counts.sum(axis=1, keepdims=True)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in numpy.argwhere(counts):
        color = "white" if shares[row, column] > 0.5 else INK
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    names = [label[:24] for label in common]
    axis.set_xticks(range(len(common) + 1), [*names, "another answer"], rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(common)), names, fontsize=7)
    axis.set_xlabel("answered")
    axis.set_ylabel("right answer")
    axis.set_title(f"{task}: the {len(common)} commonest right answers", fontsize=8)
    return [_save(figure, path)]


def plot_reliability(task: str, answers: list[tuple[str, str, float | None, float]], path: Path) -> list[Path]:
    """Share of right answers against the model's own probability of its answer's tokens."""
    known = [(row[2], row[3]) for row in answers if row[2] is not None]
    if len(known) < BINS:
        return []
    confidence, right = (numpy.array(column) for column in zip(*known, strict=True))
    bins = numpy.minimum((confidence * BINS).astype(int), BINS - 1)
    figure, axes = _figure(1, 1, 3.6, 3.4)
    axis = axes[0]
    axis.plot([0, 1], [0, 1], color=OTHER, linestyle="--")
    filled = [number for number in range(BINS) if (bins == number).any()]
    # Not scikit-learn's CalibrationDisplay: it does not say how many answers a dot represents.
    axis.scatter(
        [confidence[bins == number].mean() for number in filled],
        [right[bins == number].mean() for number in filled],
        s=[10 + 200 * (bins == number).mean() for number in filled],
        color=MODEL,
    )
    error = float(binary_calibration_error(torch.tensor(confidence), torch.tensor(right).int(), n_bins=BINS))
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean token probability of the answer", ylabel="share right")
    axis.set_title(f"{task}: expected calibration error {error:.3f} (n = {len(known)})", fontsize=8)
    return [_save(figure, path)]


def sheet(rows: list[tuple[Sample, Any]], store: PredictionStore, predictions: dict[str, Any], path: Path) -> Path:
    """A row per sample: inputs, the true image, the generated one, with scores."""
    rows_of_sheet: list[Row] = []
    for sample, score in rows:
        made = store.load(predictions[sample.id]).image
        cells = [("input", shown_image(image)) for image in sample.inputs]
        cells += [("true", shown_image(sample.output))] if sample.output is not None else []
        cells += [("generated", made)] if made is not None else []
        values = ", ".join(f"{name} {value:.3g}" for name, value in score.items() if value is not None)
        title = f"{sample.dataset}: {sample.text}".replace("\n", " ")
        rows_of_sheet.append(((title, values), cells))
    draw_rows(rows_of_sheet).save(path)
    return path


def grid(images: list[Image.Image | None], path: Path) -> Path:
    """Images side by side."""
    shown = [image for image in images if image is not None]
    page = Image.new("RGB", (max(len(shown), 1) * CELL, CELL), "white")
    for column, image in enumerate(shown):
        page.paste(fitted(image), (column * CELL, 0))
    page.save(path)
    return path


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    # Without a display, and without pyplot's list of open figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Software": None})
    return path
