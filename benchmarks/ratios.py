"""Time of the reference's order of execution, and of transformers' Qwen2, over ours: paired, on one processor core.

    python -m benchmarks.ratios [--pairs 15] [--only 'NAME; NAME'] [--to benchmarks/results]

Both sides of a case work step by step in turn in one process with one thread, and their results are compared; a pair
is one step of each, timed by the processor time of the process. Writes TO/ratios.json after each case: the median of
the pairs' ratios, above 1 where ours is faster, and its 95 % interval by bootstrap. An interval that holds 1 is inside
its noise. A run that was cut resumes: cases measured with the same code are kept. Points that only show growth take
fewer pairs.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from scipy.stats import bootstrap
from typer import Option

from unimedvl.utils.command_line import run_module

from .cases import BESIDE_QWEN2, COMPARED, GROWN
from .origin import origin
from .steps import Case, run_steps

RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[1]
GROWTH_PAIRS = 5
# A token after a short text takes milliseconds, and as much noise as a step of seconds: more pairs, at no cost.
SHORT = dict.fromkeys(("decode, context 64", "decode beside Qwen2, context 64", "decode, context 512"), 10)


def code() -> str:
    """A digest of the files that decide what is measured."""
    modules = ("cases", "naive", "naive_training", "reference_size", "steps")
    own = [ROOT / "benchmarks" / f"{name}.py" for name in modules]
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "modeling_unimedvl").glob("*.py")), *own]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def interval(ratios: list[float]) -> dict[str, Any]:
    """Median of paired ratios, the ends of its 95 % bootstrap interval, and whether that holds 1."""
    generator = numpy.random.default_rng(0)
    found = bootstrap((ratios,), numpy.median, method="percentile", rng=generator).confidence_interval
    rounded = {"median": numpy.median(ratios), "low": found.low, "high": found.high}
    # Asked before rounding, which moves an end onto 1.
    noise = bool(found.low <= 1 <= found.high)
    return {name: round(float(value), 3) for name, value in rounded.items()} | {"noise": noise}


def ratio(case: Case, pairs: int) -> dict[str, Any]:
    """The other side's time over ours, in pairs of steps; the first pair only warms up."""
    ours, other = run_steps(case, pairs + 1, time.process_time)
    ratios = [theirs / mine for mine, theirs in zip(ours[1:], other[1:], strict=True)]
    return interval(ratios) | {"pairs": len(ratios), "ratios": [round(value, 3) for value in ratios]}


def planned(pairs: int) -> dict[str, tuple[Callable[[], Case], int]]:
    """Every case and the number of its pairs."""
    cases = {name: (make, pairs) for name, make in (COMPARED | BESIDE_QWEN2).items()}
    cases |= {name: (make, min(pairs, GROWTH_PAIRS)) for name, make in GROWN.items()}
    return {name: (make, count * SHORT.get(name, 1)) for name, (make, count) in cases.items()}


def main(
    pairs: int = 15,
    only: Annotated[str | None, Option(metavar="NAME;NAME", help="Cases that run, of all by default.")] = None,
    to: Path = RESULTS,
) -> None:
    torch.set_num_threads(1)
    cases = planned(pairs)
    names = [name.strip() for name in only.split(";")] if only else list(cases)
    if unknown := [name for name in names if name not in cases]:
        raise ValueError(f"there is no case {unknown[0]!r}: choose from {'; '.join(cases)}.")
    path = to / "ratios.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    report: dict[str, Any] = {
        "origin": origin("one thread, float32") | {"code": code()},
        "cases": stored["cases"] if stored.get("origin", {}).get("code") == code() else {},
    }
    to.mkdir(parents=True, exist_ok=True)
    for name in names:
        make, count = cases[name]
        if report["cases"].get(name, {}).get("pairs", 0) < count:
            report["cases"][name] = ratio(make(), count)
            path.write_text(json.dumps(report, indent=1) + "\n")
        found = {key: value for key, value in report["cases"][name].items() if key != "ratios"}
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(run_module(main))
