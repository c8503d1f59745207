"""The tables of docs/performance.md and docs/approximations.md, made from the files in benchmarks/results.

    python -m benchmarks.performance [--results benchmarks/results] [--documents docs]

Rewrites what lies between the comments `<!-- NAME -->` and `<!-- end of NAME -->` of the documents.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unimedvl.utils.command_line import run_module

from .cases import BESIDE_QWEN2, COMPARED

ROOT = Path(__file__).parents[1]
# What the original code does for the same work, counted by the audit of the tree at 1fe0fd3, and which of our cases
# the naive order repeats it in. The audit did not say what its pack held.
ORIGINAL: dict[str, dict[str, float]] = {
    "text to image, update, 256 pixels": {"operations": 1562, "megabytes_allocated": 278},
    "edit, update, 256 pixels": {"operations": 2419, "megabytes_allocated": 424},
    "decode, context 2048": {"operations": 400, "synchronizations": 26, "megabytes_allocated": 13.1},
    "training step, 6 samples of 2908 tokens": {
        "operations": 3446,
        "synchronizations": 27,
        "megabytes_allocated": 8100,
    },
}
# Ratios and counts that are aimed at.
AIMS: dict[str, float] = {
    "decode, context 64": 1.1,
    "decode, context 8192": 1.5,
    "decode, 16 prompts of 64": 10.0,
    "text to image, update, 256 pixels": 1.2,
    "text to image, whole, 256 pixels": 1.2,
    "edit, 4 images of a prompt, 128 pixels": 1.4,
    "autoencoder, encode, 256 pixels": 1.0,
    "autoencoder, decode, 256 pixels": 1.0,
    "training step, 3 samples of 1454 tokens": 1.3,
    "decode beside Qwen2, context 64": 0.95,
    "decode beside Qwen2, context 2048": 0.95,
}
LIMITS: dict[str, dict[str, float]] = {
    "text to image, update, 256 pixels": {"operations": 450, "megabytes_allocated": 134},
    "edit, update, 256 pixels": {"operations": 450, "megabytes_allocated": 228},
}
EVALUATIONS = {"text to image": 90, "edit, guided in (0.4, 1]": 131, "edit": 147}
CLOSED_FORM, PACK = 1.01, 1.02
START_AIMS = {"understanding only": 2.5, "ask": 4.0}
UNITS = {
    "operations": "operations",
    "megabytes_allocated": "MB allocated",
    "gigaflop": "GFLOP",
    "synchronizations": "synchronizations",
}


def number(value: float) -> str:
    """A figure as a table shows it: whole numbers whole, others with three digits that count."""
    if value >= 100 or isinstance(value, int):
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def counted(counts: dict[str, Any]) -> str:
    """Counts of one step, ours / in the naive order."""
    rows = []
    for name, sides in counts["cases"].items():
        pairs = [f"{number(sides['ours'][unit])} / {number(sides['naive'][unit])}" for unit in UNITS]
        ratio = sides["ours"].get("over_closed_form")
        rows.append([name, *pairs, "" if ratio is None else f"{ratio:.3f}"])
    return table(["one step", *UNITS.values(), "FLOP over closed form"], rows)


def original(counts: dict[str, Any]) -> str:
    """The naive order beside the original code."""
    rows = []
    for name, units in ORIGINAL.items():
        for unit, value in units.items():
            naive = counts["cases"][name]["naive"][unit]
            rows.append([name, UNITS[unit], number(value), number(naive), f"{naive / value - 1:+.1%}"])
    return table(["one step", "count", "original", "naive order", "difference"], rows)


def held(counts: dict[str, Any]) -> str:
    """Counts beside their limits."""
    cases = counts["cases"]
    found = [
        (f"{name}: {UNITS[unit]}", cases[name]["ours"][unit], limit)
        for name, units in LIMITS.items()
        for unit, limit in units.items()
    ]
    found += [
        (f"{name}: FLOP over closed form", sides["ours"]["over_closed_form"], CLOSED_FORM)
        for name, sides in cases.items()
        if "over_closed_form" in sides["ours"]
    ]
    found.append(("FLOP of a pack over its samples", counts["pack_over_samples"]["over_closed_form"], PACK))
    found += [
        (f"{name}: model evaluations (NFE)", counts["evaluations"][name]["branches"], limit)
        for name, limit in EVALUATIONS.items()
    ]
    rows = [
        [name, number(limit), number(value), "held" if value <= limit else "not held"] for name, value, limit in found
    ]
    return table(["count", "at most", "found", ""], rows)


def timed(ratios: dict[str, Any]) -> str:
    """Ratios of times, with what is aimed at."""
    rows = []
    for name in COMPARED | BESIDE_QWEN2:
        found, aim = ratios["cases"][name], AIMS.get(name)
        verdicts = ["inside its noise"] if found["noise"] else []
        if aim is not None:
            verdicts.insert(0, "reached" if found["median"] >= aim else "not reached")
            if aim != 1 and found["low"] <= aim <= found["high"]:
                verdicts.append("its interval holds the aim")
        span = f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
        rows.append([name, span, str(found["pairs"]), "" if aim is None else f"{aim:.2f}", "; ".join(verdicts)])
    return table(["one step", "time over ours (95 % interval)", "pairs", "aim", ""], rows)


def started(start: dict[str, Any]) -> str:
    """Modules and CPU time of processes up to their first answer."""
    names = {
        "transformers": "transformers' Qwen2 of equal size, one token",
        "understanding only": "nano with `visual_gen=False`, one token",
        "ask": "`unimedvl ask` with an image",
    }
    rows = []
    for key, name in names.items():
        found = start["start"][key]
        ratio = found["processor time to torch"]
        span = f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        aim = START_AIMS.get(key)
        verdict = "" if aim is None else "reached" if ratio["median"] <= aim else "not reached"
        rows.append([name, f"{found['modules']:,}", span, "" if aim is None else f"{aim:.1f}", verdict])
    rounds = f"CPU time over `import torch`, {start['start']['rounds']} rounds (range)"
    return table(["process", "modules", rounds, "at most", ""], rows)


def loaded(start: dict[str, Any]) -> str:
    """Peaks of memory while weights are loaded and read."""
    rows = []
    for name, found in start["load"].items():
        if isinstance(found, dict):
            whole = found.get("resident peak to whole model's")
            whole_text = "" if whole is None else f"{whole:.3f}"
            rows.append(
                [name, f"{found['weights'] / 1e9:.2f}", f"{found['resident peak to weights']:.3f}", whole_text]
            )
    return table(["loaded", "weights, GB", "peak over its weights", "peak over the whole model's"], rows)


def approximated(approximations: dict[str, Any]) -> str:
    """Quality against speed of every approximation, a table for each setting."""
    parts = []
    for setting, found in approximations["settings"].items():
        rows = []
        for name, case in found.items():
            if name == "exact":
                continue
            low, high = case["cpu_ratio_interval"]
            rows.append(
                [
                    name,
                    f"{case['nfe_ratio']:.2f}x",
                    f"{case['cpu_ratio']:.2f}x ({low:.2f} to {high:.2f})",
                    f"{case['psnr']:.1f} / {case['psnr_least']:.1f}",
                    f"{case['relative_error']:.3f}",
                ]
            )
        head = ["approximation", "NFE saved", "CPU time saved (95 % interval)"]
        title = f"### {setting[0].upper()}{setting[1:]} ({approximations['images'][setting]} images)"
        parts.append(f"{title}\n\n{table([*head, 'PSNR mean / least, dB', 'relative error'], rows)}")
    return "\n\n".join(parts)


# The documents, and how each of their tables is made from the results by name.
Maker = Callable[[dict[str, Any]], str]
DOCUMENTS: dict[str, dict[str, Maker]] = {
    "performance.md": {
        "counts": lambda results: counted(results["counts"]),
        "limits": lambda results: held(results["counts"]),
        "original": lambda results: original(results["counts"]),
        "ratios": lambda results: timed(results["ratios"]),
        "start": lambda results: started(results["start"]),
        "load": lambda results: loaded(results["start"]),
    },
    "approximations.md": {"approximations": lambda results: approximated(results["approximations"])},
}
RESULTS = ("counts", "ratios", "start", "approximations")


def filled(text: str, makers: dict[str, Maker], results: dict[str, Any]) -> str:
    """A document with its tables made anew.

    Raises:
        ValueError: if a table has no place in the document.
    """
    for name, make in makers.items():
        opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise ValueError(f"the document needs a place for a table between {opening} and {closing}.")
        text = f"{before}{opening}\n\n{make(results)}\n\n{closing}{after}"
    return text


def stored(folder: Path) -> dict[str, Any]:
    """All results by name."""
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in RESULTS}


def main(results: Path = ROOT / "benchmarks" / "results", documents: Path = ROOT / "docs") -> None:
    found = stored(results)
    for name, makers in DOCUMENTS.items():
        document = documents / name
        document.write_text(filled(document.read_text(), makers, found))


if __name__ == "__main__":
    sys.exit(run_module(main))
