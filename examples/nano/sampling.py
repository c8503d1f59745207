"""Which sampling settings suit a nano, task by task, on the held-out part of the training split.

    python -m examples.nano.sampling --model CHECKPOINT --work WORK --out FILE.json [--only TASK ...]

Every candidate of `CANDIDATES` samples the same images from the same noise; the best of each task goes into
`model.nano_presets` by hand. Tasks without held-out records (both patients of the translations may be needed for
training) are chosen on training records, and say so. Text to image is judged by the Frechet distance to the training
images, mean over the modalities, and by the share that the judge of `generated_images` recognizes. FILE is written
after every candidate, and what it holds is not done again.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy
from typer import Option

from unimedvl.evaluation.metrics.images import change_score, psnr, ssim
from unimedvl.unimed5m.schema import Record
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json, write_json

from .asking import Nano
from .evaluate import SEGMENTATIONS, masked, question_of, score_segmentation, score_super_resolution, seen
from .frechet import distances, draw_modalities, features_of, lite0_features, real_images
from .generated_images import as_views, judged, load_judge
from .prepare import work_records

Settings = dict[str, Any]
MOST, PER_MODALITY = 64, 24
UNGUIDED: Settings = {"guidance_scale": 1.0, "image_guidance_scale": 1.0, "timestep_shift": 1.0}
CANDIDATES: dict[str, list[Settings]] = {
    "segmentation": [{"num_inference_steps": steps, **UNGUIDED} for steps in (1, 2, 3, 5, 8)],
    "super_resolution": [{"num_inference_steps": steps, **UNGUIDED} for steps in (1, 2, 4)],
    "cross_modal": [{"num_inference_steps": steps, **UNGUIDED} for steps in (1, 2, 4, 12)],
    "virtual_staining": [{"num_inference_steps": steps, **UNGUIDED} for steps in (1, 2, 4, 12)],
    "counterfactual": [{"num_inference_steps": steps, **UNGUIDED} for steps in (1, 2, 4, 12)],
    "t2i": [
        {"num_inference_steps": 16, "guidance_scale": scale, "timestep_shift": 1.0} for scale in (1.0, 1.5, 2.5, 4.0)
    ],
}


def chosen(records: Sequence[Record], most: int = MOST) -> list[Record]:
    """At most so many records, evenly spaced."""
    return list(records[:: max(1, -(-len(records) // most))])


def masks(nano: Nano, records: Sequence[Record]) -> dict[str, float]:
    """Mean Dice of every kind of mask, and their mean."""
    found = {}
    for name, (source, target) in SEGMENTATIONS.items():
        of_kind = chosen(masked(records, source, target))
        if of_kind:
            found[name] = score_segmentation(nano, of_kind, source, target)["value"]
    return {**found, "score": float(numpy.mean(list(found.values())))}


def finer(nano: Nano, records: Sequence[Record]) -> dict[str, float]:
    """Mean gains over bicubic interpolation, in SSIM and dB; the score weighs them as their aims do."""
    scores = score_super_resolution(nano, records, MOST)
    gains = {name: scores[name]["gain over bicubic"]["difference"] for name in ("ssim", "psnr")}
    return {**gains, "score": gains["ssim"] / 0.03 + gains["psnr"]}


def of_task(task: str, measure: Callable[..., float | None]) -> Callable[[Nano, Sequence[Record]], dict[str, float]]:
    """Mean of a measure of (input, result, truth) over a task's records."""

    def scored(nano: Nano, records: Sequence[Record]) -> dict[str, float]:
        asked = chosen([record for record in records if record.sub_task_type == task])
        made = nano.draw([question_of(r) for r in asked], task, [shown_image(r.input_img[0]) for r in asked])
        before, truths = (
            [seen(images[0]) for images in side]
            for side in zip(*((r.input_img, r.output_img) for r in asked), strict=True)
        )
        values = [value for value in map(measure, before, made, truths) if value is not None]
        return {"score": float(numpy.mean(values))}

    return scored


class Drawing:
    """Images from words against training images."""

    def __init__(self, work: Path):
        self.extractor = lite0_features()
        self.judge, train, _ = load_judge(work)
        self.kinds = {number: train.modalities[place] for place, number in enumerate(train.captions.tolist())}
        self.real = features_of(self.extractor, real_images(work_records(work, "train")))

    def __call__(self, nano: Nano, records: Sequence[Record]) -> dict[str, float]:
        made = draw_modalities(nano, list(self.real), PER_MODALITY, 0)
        rows = distances(features_of(self.extractor, made), self.real)
        found = {kind: row["distance"] for kind, row in rows.items()}
        hits = [
            self.kinds[verdict] == kind
            for kind, images in made.items()
            for verdict in judged(self.judge, as_views(images)).tolist()
        ]
        mean = float(numpy.mean(list(found.values())))
        return {**found, "recognized": float(numpy.mean(hits)), "score": -mean}


def measures(work: Path, tasks: Sequence[str]) -> dict[str, Callable[[Nano, Sequence[Record]], dict[str, float]]]:
    """What scores each task, the higher the better."""
    found: dict[str, Callable[[Nano, Sequence[Record]], dict[str, float]]] = {
        "segmentation": masks,
        "super_resolution": finer,
        "cross_modal": of_task("cross_modal", lambda before, made, truth: psnr(made, truth)),
        "virtual_staining": of_task("virtual_staining", lambda before, made, truth: ssim(made, truth)),
        "counterfactual": of_task("counterfactual", lambda before, made, truth: change_score(made, before, truth)),
    }
    if "t2i" in tasks:
        found["t2i"] = Drawing(work)
    return {task: found[task] for task in tasks}


def records_of(work: Path, task: str) -> tuple[str, list[Record]]:
    """Which records a task is scored on: held-out ones, else those that were trained on, as images from words are."""
    splits = (("validation", "held-out"), ("train", "trained on"))
    for split, name in splits[1:] if task == "t2i" else splits:
        records = list(work_records(work, split))
        if task in ("t2i", "super_resolution") or any(record.sub_task_type == task for record in records):
            return name, records
    raise ValueError(f"{work} holds no record of {task}: leave it out with --only.")


def main(
    model: Annotated[str, Option(help="Checkpoint folder.")],
    work: Annotated[Path, Option(help="Work folder of `prepare`.")],
    out: Annotated[Path, Option(help="Write the scores here (JSON).")],
    only: Annotated[list[str] | None, Option(help="Tasks; all by default.")] = None,
) -> None:
    """Score every candidate of every task, and print the best."""
    tasks = list(only or CANDIDATES)
    unknown = sorted(set(tasks) - set(CANDIDATES))
    if unknown:
        raise ValueError(f"no candidates for {', '.join(unknown)}: choose from {', '.join(CANDIDATES)}.")
    results = read_json(out) if out.is_file() else {}
    nano, scored_by = Nano(model), measures(work, tasks)
    presets = nano.model.generation_config.task_presets
    for task in tasks:
        split, records = records_of(work, task)
        rows = results.setdefault(task, {"records": split, "candidates": []})["candidates"]
        for settings in CANDIDATES[task]:
            if any(row["settings"] == settings for row in rows):
                continue
            presets[task].update(settings)
            rows.append({"settings": settings, **scored_by[task](nano, records)})
            print(task, json.dumps(rows[-1]), flush=True)
            write_json(out, results)
        print(task, "best:", json.dumps(max(rows, key=lambda row: row["score"])), flush=True)


if __name__ == "__main__":
    sys.exit(run_module(main))
