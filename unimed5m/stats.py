"""What a folder of records holds: tables of the balance, plots, and a page of random records to look at."""

import hashlib
import heapq
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pyarrow.parquet as parquet

from unimedvl.utils.claims import keep_out_of_git
from unimedvl.utils.json_files import write_json

from .pages import data_address, render_page
from .pipeline import shard_paths
from .schema import IMAGE_PLACEHOLDER, SPLITS, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "id",
    "split",
    "main_task_type",
    "sub_task_type",
    "modality",
    "dataset",
    "license_tier",
    "redistributable",
    "synthetic",
    "group_id",
    "message",
    "input_img.list.element.height",
    "input_img.list.element.width",
    "output_img.list.element.height",
    "output_img.list.element.width",
)
PAGE_NAME = "samples.html"
# Validated colors of the plots, light to dark by split; gray text and thin grid lines carry the rest.
SPLIT_COLORS = {"train": "#2b6cb0", "validation": "#dd8452", "test": "#55a868"}
# From permissive to unclear; sources whose cards state no tier are gray.
TIER_COLORS = {"A": "#2b6cb0", "B": "#e0a030", "C": "#7b4173", "": "#8c8c8c"}


def describe(
    folder: str | Path, to: str | Path | None = None, *, samples: int = 10, seed: int = 0
) -> tuple[dict[str, Any], str]:
    """Count a folder's records, draw the plots and write the page.

    Args:
        folder: a folder with record shards.
        to: where `stats.json`, the plots and the page go; `FOLDER/stats` by default.
        samples: random records of each task on the page.
        seed: which ones.

    Returns:
        The numbers, and the same as text.

    Raises:
        ValueError: if the folder has no shards, or where `to` holds other files.
    """
    paths = shard_paths(folder)
    target = Path(folder) / "stats" if to is None else Path(to)
    keep_out_of_git(target)
    numbers, chosen = count(paths, samples, seed)
    write_json(target / "stats.json", numbers)
    plots = draw(numbers, target)
    page = target / PAGE_NAME
    page.write_text(_page(paths, chosen, numbers["records"], samples, seed), encoding="utf-8")
    files = [*plots, page]
    return numbers | {"files": [str(file) for file in files]}, "\n".join([*tables(numbers), *map(str, files)])


def count(paths: Sequence[Path], samples: int = 0, seed: int = 0) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The numbers of the shards, and the ids of random records of each task.

    Memory holds counters, the chosen ids and 8 bytes per record.
    """
    counters: dict[str, Counter[str]] = defaultdict(Counter)
    characters: dict[str, Counter[int]] = defaultdict(Counter)
    sides: Counter[int] = Counter()
    chosen: dict[str, list[tuple[int, str]]] = defaultdict(list)
    groups: dict[str, array[int]] = {split: array("Q") for split in SPLITS}
    records = 0
    for row in _rows(paths):
        records += 1
        task = row["sub_task_type"]
        for name in ("split", "main_task_type", "sub_task_type", "modality", "dataset", "license_tier"):
            counters[name][row[name]] += 1
        counters["redistributable"][row["redistributable"]] += 1
        counters["synthetic"][str(row["synthetic"]).lower()] += 1
        counters["task and split"][f"{task}/{row['split']}"] += 1
        counters["task and modality"][f"{task}/{row['modality']}"] += 1
        counters["source and tier"][f"{row['dataset']}/{row['license_tier']}"] += 1
        text = "\n".join(turn["value"].replace(IMAGE_PLACEHOLDER, "").strip() for turn in row["message"])
        characters[task][len(text)] += 1
        for image in (*row["input_img"], *row["output_img"]):
            sides[min(image["height"], image["width"])] += 1
        groups[row["split"]].append(_digest(row["group_id"]))
        key = -_digest(f"{seed}/{row['id']}")
        heapq.heappush(chosen[task], (key, row["id"]))
        if len(chosen[task]) > samples:
            heapq.heappop(chosen[task])
    unique = {split: numpy.unique(numpy.array(found, dtype=numpy.uint64)) for split, found in groups.items() if found}
    shared = sum(len(numpy.intersect1d(unique[first], unique[second])) for first, second in combinations(unique, 2))
    numbers = {
        "records": records,
        **{name: dict(counter.most_common()) for name, counter in counters.items()},
        "characters": {task: _quantiles(lengths) for task, lengths in sorted(characters.items())},
        "shorter side": _quantiles(sides),
        "groups": {split: len(found) for split, found in unique.items()},
        "groups in two splits": shared,
        "evenness": {name: evenness(counters[name]) for name in ("sub_task_type", "modality", "dataset")},
    }
    ids = {task: [name for _, name in sorted(found, reverse=True)] for task, found in sorted(chosen.items())}
    return numbers, ids


def evenness(counter: Mapping[str, int]) -> float:
    """Entropy over its maximum: 1 for equal shares, 0 for a single kind."""
    total = sum(counter.values())
    if len(counter) < 2:
        return 0.0
    entropy = -sum(number / total * math.log(number / total) for number in counter.values())
    return round(entropy / math.log(len(counter)), 4)


def tables(numbers: Mapping[str, Any]) -> list[str]:
    """The numbers as lines of text."""
    lines = [f"{numbers['records']} records, groups in two splits: {numbers['groups in two splits']}", ""]
    splits = [split for split in SPLITS if split in numbers["split"]]
    lines.append(f"{'task':24s}" + "".join(f"{split:>12s}" for split in splits))
    for task in sorted(numbers["sub_task_type"]):
        row = (numbers["task and split"].get(f"{task}/{split}", 0) for split in splits)
        lines.append(f"{task:24s}" + "".join(f"{number:12d}" for number in row))
    modalities = list(numbers["modality"])
    lines += ["", f"{'task':24s}" + "".join(f"{modality:>8s}" for modality in modalities)]
    for task in sorted(numbers["sub_task_type"]):
        row = (numbers["task and modality"].get(f"{task}/{modality}", 0) for modality in modalities)
        lines.append(f"{task:24s}" + "".join(f"{number:8d}" for number in row))
    lines += ["", f"{'source (tier)':44s}{'records':>8s}"]
    for name, number in numbers["source and tier"].items():
        source, _, tier = name.rpartition("/")
        lines.append(f"{source + (f' ({tier})' if tier else ''):44s}{number:8d}")
    lines += ["", f"{'characters of text':24s}{'5 %':>8s}{'half':>8s}{'95 %':>8s}"]
    for task, quantiles in numbers["characters"].items():
        lines.append(f"{task:24s}" + "".join(f"{quantiles[name]:8d}" for name in ("5 %", "50 %", "95 %")))
    even = ", ".join(f"{name} {value:.2f}" for name, value in numbers["evenness"].items())
    return [*lines, "", f"evenness (entropy over its maximum): {even}", ""]


def draw(numbers: Mapping[str, Any], target: Path) -> list[Path]:
    """Plots of task, modality and source balance, as PNG files; returns their paths."""
    from matplotlib.figure import Figure

    tasks = sorted(numbers["sub_task_type"], key=lambda task: numbers["sub_task_type"][task])
    splits = [split for split in SPLITS if split in numbers["split"]]
    parts = {split: [numbers["task and split"].get(f"{task}/{split}", 0) for task in tasks] for split in splits}
    figure = _bars(tasks, parts, SPLIT_COLORS, "Records per task and split")
    files = [_save(figure, target / "tasks.png")]

    modalities = list(numbers["modality"])
    cells = [[numbers["task and modality"].get(f"{task}/{name}", 0) for name in modalities] for task in tasks]
    figure = Figure(figsize=(0.8 * len(modalities) + 3, 0.4 * len(tasks) + 1.6), layout="constrained")
    axes = figure.subplots()
    logs = [[math.log10(number) if number else math.nan for number in row] for row in cells]
    largest = max(max(row) for row in cells)
    # Light enough for black figures at the top end too: the figures are the data, the color only guides the eye.
    axes.imshow(logs, cmap="Blues", aspect="auto", origin="lower", vmin=-0.5, vmax=2 * math.log10(max(largest, 2)))
    for row_index, row in enumerate(cells):
        for column, number in enumerate(row):
            if number:
                axes.text(column, row_index, f"{number:,}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(modalities)), [f"{name}\n{numbers['modality'][name]:,}" for name in modalities])
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_title("Records per task and modality (below: all tasks; shade: logarithm)", loc="left", fontsize=11)
    files.append(_save(figure, target / "modalities.png"))

    sources = list(numbers["dataset"])[::-1]
    tiers = sorted({name.rpartition("/")[2] for name in numbers["source and tier"]}, key=lambda tier: (not tier, tier))
    parts = {tier: [numbers["source and tier"].get(f"{name}/{tier}", 0) for name in sources] for tier in tiers}
    named = {f"tier {tier}" if tier else "no tier stated": values for tier, values in parts.items()}
    colors = dict(zip(named, (TIER_COLORS.get(tier, TIER_COLORS[""]) for tier in tiers), strict=True))
    files.append(_save(_bars(sources, named, colors, "Records per source and license tier"), target / "sources.png"))
    return files


def _bars(names: Sequence[str], parts: Mapping[str, Sequence[int]], colors: Mapping[str, str], title: str) -> "Figure":
    """Horizontal stacked bars, each with its numbers: bars of a few records are too thin to be seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.32 * len(names) + 1.5), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(names)
    for part, widths in parts.items():
        axes.barh(names, widths, left=left, color=colors[part], label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for index, total in enumerate(left):
        shares = [f"{widths[index]:,}" for widths in parts.values() if widths[index]]
        axes.annotate(" " + " + ".join(shares), (total, index), va="center", fontsize=8, color="#444")
    axes.set_title(title, loc="left")
    axes.set_xlabel("records")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1.18 * max(left))
    axes.margins(y=0.02)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc="outside lower right", ncols=min(len(parts), 5))
    return figure


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=2048, columns=list(COLUMNS)):
            yield from batch.to_pylist()


def _page(paths: Sequence[Path], chosen: Mapping[str, Sequence[str]], total: int, samples: int, seed: int) -> str:
    wanted = {name for names in chosen.values() for name in names}
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        file = parquet.ParquetFile(path)
        for group in range(file.num_row_groups):
            # Ids first: most row groups hold none of the records, and their images need not be read.
            if wanted.isdisjoint(file.read_row_group(group, columns=["id"])["id"].to_pylist()):
                continue
            for row in file.read_row_group(group).to_pylist():
                if row["id"] in wanted:
                    found[row["id"]] = shown(Record.from_row(row))
    tasks = [(task, [found[name] for name in names]) for task, names in chosen.items()]
    return render_page("samples", tasks=tasks, total=total, count=samples, seed=seed)


def shown(record: Record) -> dict[str, Any]:
    """A record for the page: its turns cut at the placeholders, images as data addresses."""
    waiting = {"system": [], "human": list(record.input_img), "gpt": list(record.output_img)}
    turns: list[dict[str, Any]] = []
    for turn in record.message:
        parts: list[dict[str, str]] = []
        for index, text in enumerate(turn.value.split(IMAGE_PLACEHOLDER)):
            if index and waiting[turn.role]:
                parts.append({"image": _address(waiting[turn.role].pop(0))})
            parts.append({"text": text.strip("\n") + ("\n" if text.strip("\n") else "")})
        turns.append({"role": turn.role, "parts": parts})
    # Without placeholders input images come first and output images last.
    asked = next(turn for turn in turns if turn["role"] == "human")
    asked["parts"] = [{"image": _address(image)} for image in waiting["human"]] + asked["parts"]
    turns[-1]["parts"] = turns[-1]["parts"] + [{"image": _address(image)} for image in waiting["gpt"]]
    names = ("id", "modality", "dataset", "split", "license", "group_id", "synthetic")
    return {name: getattr(record, name) for name in names} | {"turns": turns}


def _address(image: Any) -> str:
    return "" if image.data is None else data_address(image.data)


def _quantiles(counter: Counter[int]) -> dict[str, int]:
    """5 %, 50 % and 95 % of the values, and the ends; empty for no values."""
    total, reached, found = sum(counter.values()), 0, {}
    marks = [("least", 0.0), ("5 %", 0.05), ("50 %", 0.5), ("95 %", 0.95), ("most", 1.0)]
    for value in sorted(counter):
        reached += counter[value]
        while marks and reached >= marks[0][1] * total:
            found[marks.pop(0)[0]] = value
    return found


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
