"""The paper's two claims at the nano's scale: do understanding and generation help each other, and do stages help?

    python -m examples.nano.ablation --work WORK --out OUT [--seeds 1,2,3] [--share 1]

Arms (`recipes/ablation`): understanding only, generation only, both in one stage, both in three stages. Every arm
draws as many samples of each of its groups as every other arm, within a micro-batch of a stage; the number of
steps follows, so that an arm of both sides makes as many as the two of one side together. Arms of a seed start from
the same weights: those of `WORK/start` (autoencoder, and ViT pre-trained on captions and masks) with a language model
of the seed. They see images of 32 pixels and are scored on the held-out part of the training split, which no arm
is trained on. A stopped run resumes where it was; finished parts are kept.

What decides a claim was chosen before any run: the held-out loss of its side. The other scores are shown
beside it.
"""

import dataclasses
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy
import torch
import yaml
from typer import Option

from benchmarks.origin import origin
from unimedvl.checkpoint.loading import load, load_processor, read_config
from unimedvl.evaluation.metrics.intervals import student_interval
from unimedvl.evaluation.metrics.masks import dice
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.processing.image_processing_unimedvl import resize_image
from unimedvl.training.curriculum.validation import Validation
from unimedvl.training.data.dataset import PackedRecords, RecordGroup, text_encoder
from unimedvl.training.data_recipe import ConditionDropout, DataRecipe
from unimedvl.training.recipe import CurriculumRecipe, TrainingRecipe, load_recipe
from unimedvl.training.run import run
from unimedvl.unimed5m.schema import Record
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.command_line import comma_separated, run_module
from unimedvl.utils.json_files import write_json

from .asking import Nano
from .evaluate import DIAGNOSES, question_of, score_diagnosis, score_modality
from .model import EDITING, RECIPES, UNIT, image_transform, initialize_attention
from .prepare import keep_start, work_records

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

SIDE = 32  # longer side in pixels of every image
ARMS = ("understanding", "generation", "joint", "three-stages")
MASKS = ("hc18", "msd-hippocampus")
SCORED_BATCHES = 40  # of the held-out losses
# Name, whether more is better, and which arms have it.
SCORES = {
    "held-out loss, understanding": (False, "understanding"),
    "modality named": (True, "understanding"),
    "diagnosis named": (True, "understanding"),
    "loss of descriptions": (False, "understanding"),
    "loss of diagnoses": (False, "understanding"),
    "held-out loss, generation": (False, "generation"),
    "segmentation, Dice": (True, "generation"),
    "loss of text to image": (False, "generation"),
    "loss of segmentation": (False, "generation"),
}
# Claim, the arm it speaks for, the arm it is compared with, and the side it is about.
CLAIMS = (
    ("Learning to generate helps understanding", "joint", "understanding", "understanding"),
    ("Learning to understand helps generation", "joint", "generation", "generation"),
    ("Three stages beat one on understanding", "three-stages", "joint", "understanding"),
    ("Three stages beat one on generation", "three-stages", "joint", "generation"),
)

logger = logging.getLogger(__name__)


def make_start(work: Path, out: Path, seed: int) -> Path:
    """`WORK/start` with a new language model and a processor for images of `SIDE` pixels."""
    folder = out / f"start-{seed}"
    if not (folder / "ready").is_file():
        loaded = load(work / "start", dtype="float32", device="cpu")
        torch.manual_seed(seed)
        config = loaded.model.config
        assert isinstance(config, UniMedVLConfig)
        model = UniMedVLForConditionalGeneration(config)
        initialize_attention(model.model.language_model)
        for part in ("vae", "vit_model"):
            getattr(model.model, part).load_state_dict(getattr(loaded.model.model, part).state_dict())
        model.generation_config = loaded.model.generation_config
        model.save_pretrained(folder)
        for name in ("understanding", "vit", "vae"):
            setattr(loaded.processor.image_processor, f"{name}_transform", image_transform(UNIT, SIDE))
        loaded.processor.save_pretrained(folder)
        (folder / "ready").touch()
    return folder


def packed(start: Path, recipe: TrainingRecipe, data: DataRecipe, groups: Sequence[RecordGroup]) -> PackedRecords:
    """The stream of samples of a recipe."""
    return PackedRecords(
        groups,
        data,
        text_encoder(load_processor(start).tokenizer),
        read_config(start),
        recipe.seed,
        timestep_shift=recipe.timestep_shift,
    )


def plan(start: Path, recipe: TrainingRecipe) -> tuple[int, dict[str, int]]:
    """Steps until all samples that the groups' weights ask for are drawn, and how many of each group are."""
    wanted = sum(group.weight for group in recipe.data.groups)
    drawn: Counter[str] = Counter()
    stream = packed(start, recipe, recipe.data, [RecordGroup(group) for group in recipe.data.groups])
    for steps, packs in enumerate(stream.plan(), start=1):
        drawn.update(recipe.data.groups[key.group].name for pack in packs for key in pack.keys)
        if drawn.total() >= wanted:
            return steps, dict(drawn)
    raise AssertionError("the stream has no end")


def write_recipes(arm: str, seed: int, share: float, start: Path, work: Path, folder: Path) -> dict[str, int]:
    """The arm's recipes with everything filled in; returns the samples of each group."""
    folder.mkdir(parents=True, exist_ok=True)
    source = RECIPES / "ablation" / f"{arm}.yaml"
    overrides = [f"data.path={work / 'records'}", f"model={start}", f"seed={seed}"]
    recipe = load_recipe(source)
    stages = [stage.recipe for stage in recipe.stages] if isinstance(recipe, CurriculumRecipe) else [source.name]
    samples: Counter[str] = Counter()
    for name in stages:
        stage = load_recipe(source.with_name(name), overrides)
        assert isinstance(stage, TrainingRecipe)
        for group in stage.data.groups:
            group.weight *= share
        stage.steps, drawn = plan(start, stage)
        samples.update(drawn)
        (folder / name).write_text(yaml.safe_dump(dataclasses.asdict(stage), sort_keys=False))
    if isinstance(recipe, CurriculumRecipe):
        recipe.model = str(start)
        (folder / source.name).write_text(yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False))
    return dict(samples)


def held_out_losses(start: Path, model: Path, work: Path) -> dict[str, float]:
    """Losses by task on the held-out part: no dropout, no augmentation, the same noise for every arm."""
    recipe = load_recipe(RECIPES / "ablation" / "joint.yaml", [f"data.path={work / 'records'}", f"model={model}"])
    assert isinstance(recipe, TrainingRecipe)
    groups = [
        dataclasses.replace(group, weight=1.0, split="validation", augmentation=type(group.augmentation)())
        for group in recipe.data.groups
    ]
    data = dataclasses.replace(recipe.data, groups=groups, condition_dropout=ConditionDropout(0.0, 0.0, 0.0))
    stream = packed(start, recipe, data, [RecordGroup(group) for group in groups])
    loaded = load(model, dtype="float32", device="cpu")
    return Validation(recipe, stream, SCORED_BATCHES, None)(loaded.model, torch.device("cpu"))


def score(arm: str, start: Path, model: Path, work: Path) -> dict[str, float]:
    """All scores that the arm can have."""
    losses = held_out_losses(start, model, work)
    nano, records = Nano(str(model), EDITING), list(work_records(work, "validation"))
    scores: dict[str, float] = {}
    if arm != "generation":
        diagnoses = [score_diagnosis(nano, records, source) for source in DIAGNOSES.values()]
        total = sum(part["count"] for part in diagnoses)
        scores["modality named"] = score_modality(nano, records)["value"]
        scores["diagnosis named"] = sum(part["value"] * part["count"] for part in diagnoses) / total
        scores["loss of descriptions"] = losses["validation/ce/caption"]
        scores["loss of diagnoses"] = losses["validation/ce/diagnosis"]
        scores["held-out loss, understanding"] = losses["validation/ce"]
    if arm != "understanding":
        scores["segmentation, Dice"] = score_masks(nano, records)
        scores["loss of text to image"] = losses["validation/mse/text_to_image"]
        scores["loss of segmentation"] = losses["validation/mse/segmentation"]
        scores["held-out loss, generation"] = losses["validation/mse"]
    return scores


def score_masks(nano: Nano, records: Sequence[Record]) -> float:
    """Mean Dice of fetal heads and hippocampi."""
    chosen = [r for r in records if r.sub_task_type == "segmentation" and r.dataset in MASKS]
    made = nano.draw([question_of(r) for r in chosen], "segmentation", [shown_image(r.input_img[0]) for r in chosen])
    truths = [resize_image(shown_image(r.output_img[0]), image_transform(UNIT, SIDE)) for r in chosen]
    return float(numpy.mean([dice(image, truth) for image, truth in zip(made, truths, strict=True)]))


def run_arm(arm: str, seed: int, share: float, start: Path, work: Path, out: Path) -> dict[str, Any]:
    """Train and score one arm with one seed, or read what was scored before."""
    folder = out / f"{arm}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        kept = json.loads(result.read_text())
        if kept["share"] != share:
            raise ValueError(f"{result} was made with --share {kept['share']}: choose another --out.")
        return kept
    samples = write_recipes(arm, seed, share, start, work, folder / "recipes")
    started = time.perf_counter()
    model = run(folder / "recipes" / f"{arm}.yaml", [f"output_dir={folder / 'run'}"])
    trained = time.perf_counter() - started
    values = {
        "arm": arm,
        "seed": seed,
        "share": share,
        "samples": samples,
        "scores": score(arm, start, model, work),
        # A run that was stopped reports its last part only.
        "training_seconds": round(trained),
    }
    write_json(result, values)
    logger.info("%s, seed %d: %s", arm, seed, json.dumps(values["scores"]))
    return values


def compare(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences between arms, paired by seed, in favor of the claim; 95 % t intervals over the seeds."""
    by = {(result["arm"], result["seed"]): result["scores"] for result in results}
    seeds = sorted({result["seed"] for result in results})
    rows = []
    for claim, arm, other, side in CLAIMS:
        for name, (more, kind) in SCORES.items():
            if kind != side:
                continue
            sign = 1 if more else -1
            gain = student_interval([sign * (by[arm, seed][name] - by[other, seed][name]) for seed in seeds])
            low, high = gain["low"], gain["high"]
            verdict = "shown" if low > 0 else "opposite" if high < 0 else "not shown"
            rows.append(
                {
                    "claim": claim,
                    "score": name,
                    "arm": arm,
                    "compared with": other,
                    "reference": float(numpy.mean([by[other, seed][name] for seed in seeds])),
                    "gain": gain["value"],
                    "interval": [low, high],
                    "verdict": verdict,
                }
            )
    return rows


def table(results: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| score | " + " | ".join(ARMS) + " |"
    yield "|---|" + "---|" * len(ARMS)
    for name in SCORES:
        cells = []
        for arm in ARMS:
            values = [
                result["scores"][name] for result in results if result["arm"] == arm and name in result["scores"]
            ]
            cells.append(f"{numpy.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "")
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| claim | by (the first decides the claim) | gain (95 % over seeds) | verdict |"
    yield "|---|---|---|---|"
    for row in rows:
        low, high = row["interval"]
        gain = f"{row['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
        yield f"| {row['claim']} | {row['score']} | {gain} | {row['verdict']} |"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Gains of every claim and score in units of the compared arm's score, with their intervals."""
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        low, high = (100 * bound / (row["reference"] or 1.0) for bound in row["interval"])
        color = {"shown": "tab:green", "opposite": "tab:red", "not shown": "tab:gray"}[row["verdict"]]
        axes.plot([low, high], [place, place], color=color, linewidth=3)
        axes.plot(100 * row["gain"] / (row["reference"] or 1.0), place, "o", color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['claim']}: {row['score']}" for row in reversed(rows)], fontsize=8)
    axes.set_xlabel("gain in % of the compared score\n(95 % interval over seeds; right is better)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(
    work: Annotated[Path, Option(help="Work folder of `examples.nano.prepare`.")],
    out: Annotated[Path, Option(help="Folder of the runs, the results and the plot.")],
    seeds: Annotated[str, Option(metavar="A,B", help="Two or more.")] = "1,2,3",
    share: Annotated[float, Option(help="Of the samples that the recipes ask for.")] = 1.0,
) -> None:
    numbers = [int(seed) for seed in comma_separated(seeds)]
    if len(numbers) < 2:
        raise ValueError("an interval needs two seeds or more: give --seeds A,B.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work, out, made = work.resolve(), out.resolve(), origin()
    keep_start(work, out)
    results = []
    for seed in numbers:
        start = make_start(work, out, seed)
        results += [run_arm(arm, seed, share, start, work, out) for arm in ARMS]
    rows = compare(results)
    write_json(out / "results.json", {"origin": made, "side": SIDE, "runs": results, "comparisons": rows})
    plot(rows, out / "ablation.png")
    print("\n".join(table(results, rows)))


if __name__ == "__main__":
    sys.exit(run_module(main))
