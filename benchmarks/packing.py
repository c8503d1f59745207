"""What packing keeps, wastes and costs, on drawn records in the mixtures of the three paper stages.

    python -m benchmarks.packing [--samples 100000] [--to benchmarks/results]

Writes TO/packing.json. Records have drawn sizes and texts, and are laid out by the recipes of unimedvl-14b as in
training, without their pixels; a text has as many tokens as words. Counts, shares and waste repeat exactly; samples
per second of processor time are of the machine, once with layouts and once for the planner alone. For comparison the
upstream packing rule runs on the same records: every group opens each pack, the rest is drawn by weight, and a sample
that fits neither pack nor buffer is lost.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unimedvl.training.data.dataset import ImageSize, Outline
from unimedvl.training.data.packing import PackPlanner, SampleKey
from unimedvl.training.data.sequences import Layout
from unimedvl.training.data_recipe import GroupRecipe
from unimedvl.training.recipe import TrainingRecipe, load_recipe
from unimedvl.unimed5m.schema import Turn
from unimedvl.utils.command_line import run_module

from .origin import origin

RESULTS = Path(__file__).with_name("results")
STAGES = ("stage-1", "stage-2", "stage-3")
# Records of each group: fewer than are drawn, so that several epochs are read.
RECORDS = {"text": 1_500, "text-to-image": 12_000, "understanding": 30_000, "interleaved": 6_000}
SIDES = (256, 512, 512, 640, 1024, 1024, 1536)
VIT_PATCH, LATENT_TOKEN = 14, 16
SHARE_SAMPLES = 10_000


def outline(group: str, index: int) -> Outline:
    """A record of a group, drawn from its number."""
    draw = random.Random(f"{group}/{index}")

    def words(low: int, high: int) -> str:
        return "x " * draw.randint(low, high)

    def image() -> ImageSize:
        return ImageSize("drawn", draw.choice(SIDES), draw.choice(SIDES))

    inputs: tuple[ImageSize, ...] = ()
    outputs: tuple[ImageSize, ...] = ()
    if group == "text":
        turns = [("human", words(20, 300)), ("gpt", words(30, 900))]
    elif group == "text-to-image":
        outputs, turns = (image(),), [("human", words(10, 250)), ("gpt", words(5, 60) + "<image>")]
    elif group == "understanding":
        inputs = tuple(image() for _ in range(draw.choice((1, 1, 1, 1, 2))))
        turns = [("human", "<image>" * len(inputs) + words(5, 60)), ("gpt", words(1, 250))]
    else:
        inputs, outputs = (image(),), (image(),)
        turns = [("human", "<image>" + words(8, 60)), ("gpt", words(5, 40) + "<image>")]
    message = tuple(Turn(role, value) for role, value in turns)
    return Outline(f"{group}-{index}", group, "CXR", inputs, outputs, message)


def layouts(recipe: TrainingRecipe) -> list[Layout]:
    """A layout for each group of a recipe; a text has as many tokens as words."""
    data = recipe.data
    return [
        Layout(
            group,
            data.condition_dropout,
            data.vit_source,
            lambda text: [0] * len(text.split()),
            VIT_PATCH,
            LATENT_TOKEN,
            recipe.seed,
        )
        for group in data.groups
    ]


def measure(recipe: TrainingRecipe, samples: int) -> dict[str, Any]:
    """The planner on a stage's mixture."""
    groups, laid_out = recipe.data.groups, layouts(recipe)
    lengths: dict[SampleKey, int] = {}

    def length(key: SampleKey) -> int:
        lengths[key] = laid_out[key.group](outline(groups[key.group].name, key.index), key.epoch).num_tokens
        return lengths[key]

    planner = plan(recipe, length)
    started, tokens, packs = time.process_time(), 0, 0
    seen: list[SampleKey] = []
    for pack in planner:
        seen += pack.keys
        tokens, packs = tokens + pack.num_tokens, packs + 1
        if len(seen) >= samples:
            break
    seconds = time.process_time() - started
    everything = Counter(seen)
    everything.update(key for pack in planner.flush() for key in pack.keys)
    skipped = sum(planner.skipped.values())

    alone, count = plan(recipe, lengths.__getitem__), 0
    started = time.process_time()
    for pack in alone:
        count += len(pack.keys)
        if count >= min(samples, SHARE_SAMPLES):
            break
    planning = time.process_time() - started
    return {
        "pack_tokens": recipe.data.pack_tokens,
        "samples": len(seen),
        "epochs_of_groups": [drawn // size for drawn, size in zip(planner.drawn, planner.sizes, strict=True)],
        "lost": sum(planner.drawn) - skipped - len(everything),
        "twice": sum(everything.values()) - len(everything),
        "too_long": skipped,
        "packs": packs,
        "padding": 1 - tokens / (packs * recipe.data.pack_tokens),
        "largest_share_error": share_error(groups, [key.group for key in seen[:SHARE_SAMPLES]]),
        "samples_per_second": round(len(seen) / seconds),
        "tokens_per_second": round(tokens / seconds),
        "samples_per_second_planner_alone": round(count / planning),
    }


def plan(recipe: TrainingRecipe, length: Callable[[SampleKey], int]) -> PackPlanner:
    """The planner of a recipe over the drawn records."""
    data = recipe.data
    assert data.sample_tokens is not None
    return PackPlanner(
        sizes=[RECORDS[group.name] for group in data.groups],
        weights=[group.weight for group in data.groups],
        length=length,
        pack_tokens=data.pack_tokens,
        sample_tokens=data.sample_tokens,
        open_packs=data.open_packs,
        seed=recipe.seed,
    )


def share_error(groups: list[GroupRecipe], drawn: list[int]) -> float:
    """Largest difference of a group's share from what the recipe asks for."""
    total = sum(group.weight for group in groups)
    counts = Counter(drawn)
    return max(abs(counts[number] / len(drawn) - group.weight / total) for number, group in enumerate(groups))


def upstream_packs(recipe: TrainingRecipe, lost: list[SampleKey]) -> Iterator[list[tuple[SampleKey, int]]]:
    """Packs by the upstream rule; what it loses is added to `lost`."""
    groups, laid_out = recipe.data.groups, layouts(recipe)
    longest, draw = recipe.data.pack_tokens, random.Random(recipe.seed)
    expected, prefer_buffer, room = int(0.9 * longest), 16_384, 50
    places = [0] * len(groups)
    weights = [group.weight for group in groups]
    buffer: list[tuple[SampleKey, int]] = []

    def following(group: int) -> tuple[SampleKey, int]:
        epoch, index = divmod(places[group], RECORDS[groups[group].name])
        places[group] += 1
        key = SampleKey(group, index, epoch)
        return key, laid_out[group](outline(groups[group].name, index), epoch).num_tokens

    while True:
        pack = [sample for sample in map(following, range(len(groups))) if sample[1] < longest]
        filled = sum(tokens for _, tokens in pack)
        while filled < expected:
            buffered = filled < prefer_buffer and bool(buffer)
            sample = buffer.pop(0) if buffered else following(draw.choices(range(len(groups)), weights)[0])
            if sample[1] > longest:
                continue
            if filled + sample[1] > longest:
                if buffered or len(buffer) >= room:
                    lost.append(sample[0])
                    break
                buffer.append(sample)
                continue
            pack.append(sample)
            filled += sample[1]
        yield pack


def measure_upstream(recipe: TrainingRecipe, samples: int) -> dict[str, Any]:
    """The upstream rule on the same mixture."""
    lost: list[SampleKey] = []
    seen: list[SampleKey] = []
    tokens, packs = 0, 0
    for pack in upstream_packs(recipe, lost):
        seen += [key for key, _ in pack]
        tokens, packs = tokens + sum(count for _, count in pack), packs + 1
        if len(seen) >= samples:
            break
    return {
        "samples": len(seen),
        "lost": len(lost),
        "padding": 1 - tokens / (packs * recipe.data.pack_tokens),
        "largest_share_error": share_error(recipe.data.groups, [key.group for key in seen[:SHARE_SAMPLES]]),
    }


def main(samples: int = 100_000, to: Path = RESULTS) -> None:
    report: dict[str, Any] = {"origin": origin("one core")}
    for stage in STAGES:
        recipe = load_recipe(f"unimedvl-14b/{stage}.yaml")
        assert isinstance(recipe, TrainingRecipe)
        report[stage] = measure(recipe, samples)
        report[stage]["upstream_rule"] = measure_upstream(recipe, min(samples, SHARE_SAMPLES))
        print(stage, json.dumps(report[stage]), flush=True)
    to.mkdir(parents=True, exist_ok=True)
    (to / "packing.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_module(main))
