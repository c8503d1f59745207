"""Counts of what the model does for an image, a token and a training step, held against those of the last commit.

    python -m benchmarks.counts [--small] [--update] [--to benchmarks/results]

Counts operations, megabytes allocated, GFLOP and synchronizations (see `benchmarks.operations`), ours and in the
reference's order, at the size of `benchmarks.reference_size`; passes and evaluations of whole images; FLOPs beside
their closed form. They repeat exactly: nothing is timed. A count that is worse than in TO/counts.json by more than its
tolerance is an error; --update writes the counts there instead. --small counts only the quick ones.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimedvl.checkpoint.compute import token_flops, update_flops
from unimedvl.utils.command_line import run_module

from .cases import COMPARED, GROWN, SMALL, flow_fields, gradients, the_model
from .operations import Counts, OperationCounter
from .origin import origin
from .reference_size import TEXT_TOKENS, VIT_GRID, image_prompt, training_pack
from .sampling import count as count_passes
from .steps import Case, run_steps

RESULTS = Path(__file__).with_name("results")
# How much more than before is no change for the worse, as a share. Other counts may not grow at all.
TOLERANCES = {"operations": 0.02, "megabytes_allocated": 0.02, "gigaflop": 0.005, "over_closed_form": 0.005}
CASES = COMPARED | GROWN


def count(case: Case) -> tuple[Counts, Counts]:
    """Counts of one step by the package and in the reference's order. A step that is no whole call follows another."""
    with OperationCounter() as counter:
        ours, other = run_steps(case, 1 if case.whole_calls else 2, counter.snapshot)
    return ours[-1], other[-1]


def closed_forms(config: Any) -> dict[str, int]:
    """FLOPs that the formulas give for cases, every guidance branch with a context of its own length."""
    text = TEXT_TOKENS + 2

    def edit(side: int) -> list[int]:
        images = (side // config.pixels_per_latent_token) ** 2 + 2 + VIT_GRID[0] * VIT_GRID[1] + 2
        return [images + text, images, text]

    def update(side: int, contexts: list[int]) -> int:
        return update_flops(config, (side // config.pixels_per_latent_token) ** 2, contexts)

    updates = {f"text to image, update, {side} pixels": update(side, [text, 0]) for side in (64, 128, 256, 512)}
    # The first token that is counted follows the prompt, the start of the answer and one token.
    tokens = {f"decode, context {context}": token_flops(config, context + 2) for context in (64, 512, 2048, 8192)}
    return updates | {"edit, update, 256 pixels": update(256, edit(256))} | tokens


def pack_over_samples(model: Any) -> float:
    """FLOPs of the counted pack as a multiple of those of its samples one by one."""

    def flops(pack: dict[str, Any]) -> int:
        model.train()
        try:
            with OperationCounter() as counter:
                gradients(model, model(**pack).loss)
        finally:
            model.eval()
        return counter.snapshot().flops

    config = model.config
    numbers = range(int(training_pack(config)["sample_ids"].max()) + 1)
    return flops(training_pack(config)) / sum(flops(training_pack(config, only=number)) for number in numbers)


def evaluations(model: Any) -> dict[str, dict[str, int]]:
    """Passes and evaluations of guidance branches of whole images, with the presets' numbers of updates."""
    cases: dict[str, tuple[bool, dict[str, Any]]] = {
        "text to image": (False, {}),
        "edit, guided in (0.4, 1]": (True, {"cfg_interval": (0.4, 1.0)}),
        "edit": (True, {}),
    }
    side, found = 32, {}
    for name, (edited, changes) in cases.items():
        fields = flow_fields(edited, 49, **changes)
        counted = count_passes(
            model, image_prompt(model.config, side, edited), {**fields, "height": side, "width": side}
        )
        found[name] = {"passes": counted["passes"], "branches": counted["branches"]}
    return found


def measure(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of cases, and their counts."""
    model = the_model()
    formulas = closed_forms(model.config)
    for name in names:
        ours, naive = count(CASES[name]())
        found = {"ours": ours.summary(), "naive": naive.summary()}
        if name in formulas:
            found["ours"]["over_closed_form"] = ours.flops / formulas[name]
        yield name, found


def worse(name: str, found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What grew beyond its tolerance, a line each."""
    lines = []
    for unit, value in found.items():
        limit = before[unit] * (1 + TOLERANCES.get(unit, 0.0))
        if value > limit:
            lines.append(f"{name}: {unit} {value:g}, at most {limit:g}")
    return lines


def better(found: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a count fell beyond its tolerance: the stored one then no longer guards it."""
    return any(value < before[unit] * (1 - TOLERANCES.get(unit, 0.0)) for unit, value in found.items())


def main(small: bool = False, update: bool = False, to: Path = RESULTS) -> None:
    path = to / "counts.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    if update and small:
        raise ValueError("--update counts everything: leave out --small.")
    if not update and not before:
        raise ValueError(f"there is no {path} to compare with: write it with --update.")
    model = the_model()
    report: dict[str, Any] = {"origin": origin("float32"), "cases": {}}
    lines: list[str] = []
    improved: list[str] = []
    for name, found in measure(list(SMALL if small else CASES)):
        report["cases"][name] = found
        print(name, json.dumps(found), flush=True)
        if not update:
            stored = before["cases"][name]["ours"]
            lines += worse(name, found["ours"], stored)
            improved += [name] if better(found["ours"], stored) else []
    if not small:
        report["evaluations"] = evaluations(model)
        report["pack_over_samples"] = {"over_closed_form": pack_over_samples(model)}
        print(json.dumps({name: report[name] for name in ("evaluations", "pack_over_samples")}), flush=True)
        if not update:
            for name, found in report["evaluations"].items():
                lines += worse(name, found, before["evaluations"][name])
            lines += worse("pack over its samples", report["pack_over_samples"], before["pack_over_samples"])
    if improved:
        print(f"better than {path}, store them with --update: {'; '.join(improved)}")
    if update:
        to.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    elif lines:
        raise ValueError(f"worse than {path}: {'; '.join(lines)}. --update makes these the new counts.")


if __name__ == "__main__":
    sys.exit(run_module(main))
