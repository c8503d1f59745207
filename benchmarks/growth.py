"""How work and time grow with the context, the image, the batch, the images of a prompt and the pack: one figure.

    python -m benchmarks.growth [--to benchmarks/results]

Draws TO/growth.png from TO/counts.json and TO/ratios.json: GFLOP and megabytes allocated of a step, ours and in the
reference's order, and the ratio of their times.
"""

import json
import sys
from pathlib import Path
from typing import Any

from unimedvl.utils.command_line import run_module

RESULTS = Path(__file__).with_name("results")
# What grows, on which axis, and the cases in which it has which value.
CURVES: dict[str, tuple[str, dict[int, str]]] = {
    "Decoded token": ("context", {size: f"decode, context {size}" for size in (64, 512, 2048, 8192)}),
    "Guided update, text to image": (
        "side in pixels",
        {side: f"text to image, update, {side} pixels" for side in (64, 128, 256, 512)},
    ),
    "Decoded token of every prompt": (
        "prompts",
        {1: "decode, context 64", 4: "decode, 4 prompts of 64", 16: "decode, 16 prompts of 64"},
    ),
    "Edited images of a prompt": (
        "images",
        {
            1: "edit, 1 image of a prompt, 128 pixels",
            2: "edit, 2 images of a prompt, 128 pixels",
            4: "edit, 4 images of a prompt, 128 pixels",
        },
    ),
    "Training step": (
        "tokens in the pack",
        {
            485: "training step, 1 sample of 485 tokens",
            1454: "training step, 3 samples of 1454 tokens",
            2908: "training step, 6 samples of 2908 tokens",
        },
    ),
}
ROWS = {"gigaflop": "GFLOP", "megabytes_allocated": "MB allocated"}
COLORS = {"ours": "#1b6ca8", "naive": "#c8553d"}
LABELS = {"ours": "this package", "naive": "reference's order"}


def draw(counts: dict[str, Any], ratios: dict[str, Any], path: Path) -> None:
    """Draw the figure.

    Args:
        counts, ratios: `cases` of the two files.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(3, len(CURVES), figsize=(14, 7.5), layout="constrained", sharex="col")
    for column, (title, (axis, names)) in enumerate(CURVES.items()):
        values = list(names)
        for row, (unit, label) in enumerate(ROWS.items()):
            axes = grid[row][column]
            for side, color in COLORS.items():
                figures = [counts[name][side][unit] for name in names.values()]
                style = {"marker": "o", "markersize": 4, "linestyle": "-" if side == "ours" else "--"}
                axes.plot(values, figures, color=color, label=LABELS[side], **style)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_ylabel(label if column == 0 else "")
        grid[0][column].set_title(title, fontsize=10)
        bottom = grid[2][column]
        medians = [ratios[name]["median"] for name in names.values()]
        errors = [
            [ratios[name]["median"] - ratios[name]["low"] for name in names.values()],
            [ratios[name]["high"] - ratios[name]["median"] for name in names.values()],
        ]
        bottom.errorbar(values, medians, errors, color=COLORS["ours"], marker="o", markersize=4, capsize=3)
        bottom.axhline(1.0, color="#999999", linestyle=":")
        bottom.set(ylim=(0, None), xlabel=axis, ylabel="time, reference's order / ours" if column == 0 else None)
        bottom.set_xscale("log", base=2)
        bottom.set_xticks(values, [f"{value:,}" for value in values])
        bottom.minorticks_off()
        for axes in grid[:, column]:
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def main(to: Path = RESULTS) -> None:
    found = {}
    for name in ("counts", "ratios"):
        path = to / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"there is no {path}: write it with python -m benchmarks.{name}.")
        found[name] = json.loads(path.read_text())["cases"]
    needed = [name for _, names in CURVES.values() for name in names.values()]
    if missing := [name for name in needed if any(name not in cases for cases in found.values())]:
        raise ValueError(f"{to} lacks the case {missing[0]!r}: run python -m benchmarks.counts and benchmarks.ratios.")
    draw(found["counts"], found["ratios"], to / "growth.png")


if __name__ == "__main__":
    sys.exit(run_module(main))
