"""Which sampling settings suit a nano, task by task, on the held-out part of the training split.

    python -m examples.nano.sampling --model CHECKPOINT --work WORK --out FILE.json [--only TASK ...]

Every candidate of `CANDIDATES` samples the same images from the same noise; the best of each task goes into
`model.nano_presets` by hand. Tasks without held-out records (both patients of the translations may be needed for
training) are chosen on training records, and say so. Text to image is judged by the Frechet distance to the training
images, mean over the modalities, and by the share that the judge of `generated_images` recognizes. FILE is written
after every candidate, and what it holds is not done again.
"""

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy
from PIL import Image
from typer import Option

from unimedvl.evaluation.metrics.distributions import frechet_distance
from unimedvl.evaluation.metrics.images import change_score, psnr, ssim
from unimedvl.evaluation.metrics.masks import dice
from unimedvl.unimed5m.schema import Record
from unimedvl.unimed5m.task_images import lower_resolution, shown_image
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json, write_json

from .asking import Nano
from .captions import ARTICLES
from .evaluate import SEGMENTATIONS, masked, question_of, seen
from .frechet import lite0_features, square
from .generated_images import as_views, judged, load_judge
from .prepare import SUPER_RESOLUTION, is_image_request, work_records

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
        {"num_inference_steps": steps, "guidance_scale": scale, "timestep_shift": shift}
        for steps, shift, scale in itertools.product((16, 24), (1.0, 2.0), (1.0, 1.5, 2.5))
    ],
}


def chosen(records: Sequence[Record], most: int = MOST) -> list[Record]:
    """At most so many records, evenly spaced."""
    return list(records[:: max(1, -(-len(records) // most))])


def edited(nano: Nano, records: Sequence[Record], preset: str) -> list[tuple[Image.Image, Image.Image, Image.Image]]:
    """Input, result and truth of every record, in the nano's size."""
    inputs = [shown_image(record.input_img[0]) for record in records]
    made = nano.draw([question_of(record) for record in records], preset, inputs)
    return [
        (seen(record.input_img[0]), image, seen(record.output_img[0]))
        for record, image in zip(records, made, strict=True)
    ]


def masks(nano: Nano, records: Sequence[Record]) -> dict[str, float]:
    """Mean Dice of every kind of mask, and their mean."""
    found = {}
    for name, (source, target) in SEGMENTATIONS.items():
        of_kind = chosen(masked(records, source, target))
        if of_kind:
            images = edited(nano, of_kind, "segmentation")
            found[name] = float(numpy.mean([dice(made, truth) for _, made, truth in images]))
    return {**found, "score": float(numpy.mean(list(found.values())))}


def finer(nano: Nano, records: Sequence[Record]) -> dict[str, float]:
    """Mean gains over bicubic interpolation, in SSIM and dB; the score weighs them as their aims do."""
    truths = [
        seen(record.output_img[0]) for record in chosen([record for record in records if is_image_request(record)])
    ]
    coarse = [Image.fromarray(lower_resolution(numpy.asarray(truth), SUPER_RESOLUTION, "bicubic")) for truth in truths]
    made = nano.draw(["Perform super-resolution, factor 4."] * len(coarse), "super_resolution", coarse)
    gains = {}
    for name, measure in (("ssim", ssim), ("psnr", psnr)):
        pairs = [(measure(a, b), measure(c, b)) for a, b, c in zip(made, truths, coarse, strict=True)]
        # Equal images have no PSNR.
        gains[name] = float(numpy.mean([own - other for own, other in pairs if own is not None and other is not None]))
    return {**gains, "score": gains["ssim"] / 0.03 + gains["psnr"]}


def of_task(task: str, measure: Callable[..., float | None]) -> Callable[[Nano, Sequence[Record]], dict[str, float]]:
    """Mean of a measure of (input, result, truth) over a task's records."""

    def scored(nano: Nano, records: Sequence[Record]) -> dict[str, float]:
        images = edited(nano, chosen([record for record in records if record.sub_task_type == task]), task)
        values = [value for value in itertools.starmap(measure, images) if value is not None]
        return {"score": float(numpy.mean(values))}

    return scored


class Drawing:
    """Images from words against training images."""

    def __init__(self, work: Path):
        self.extractor = lite0_features()
        self.judge, train, _ = load_judge(work)
        self.kinds = {number: train.modalities[place] for place, number in enumerate(train.captions.tolist())}
        self.real: dict[str, list[Image.Image]] = {}
        for record in filter(is_image_request, work_records(work, "train")):
            self.real.setdefault(record.modality, []).append(square(shown_image(record.output_img[0])))
        self.features = {kind: self.extractor(images) for kind, images in self.real.items() if kind in ARTICLES}

    def __call__(self, nano: Nano, records: Sequence[Record]) -> dict[str, float]:
        distances, hits = {}, []
        for place, kind in enumerate(ARTICLES):
            if len(self.real.get(kind, ())) < 2:
                continue
            prompt = ARTICLES[kind][0].upper() + ARTICLES[kind][1:]
            made = nano.draw([prompt] * PER_MODALITY, "t2i", seed=place * PER_MODALITY)
            distances[kind] = frechet_distance(self.extractor([square(image) for image in made]), self.features[kind])
            hits += [self.kinds[verdict] == kind for verdict in judged(self.judge, as_views(made)).tolist()]
        mean = float(numpy.mean(list(distances.values())))
        return {**distances, "recognized": float(numpy.mean(hits)), "score": -mean}


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
    """Which records a task is scored on: held-out ones, else those that were trained on."""
    for split, name in (("validation", "held-out"), ("train", "trained on")):
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
