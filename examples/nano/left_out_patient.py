"""Translation between MRI sequences of a patient that the model has not seen: two runs, each without one of two.

    python -m examples.nano.left_out_patient --work WORK --out OUT

WORK is what `examples.nano.prepare` and `examples.nano.vision` have made. A common run trains super-resolution from
other sources; then each patient's run trains translation from the other patient (`recipes/left-out-patient`).
Compared with the best map from gray level to gray level, fitted on the same slices that the run was trained on. A
stopped run resumes where it was. The autoencoder was trained on single slices of both patients, the ViT on their
captions and on masks of other sources; no pair of the left-out patient was seen by any part.
"""

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy
from PIL import Image
from typer import Option

from benchmarks.origin import origin
from unimedvl.evaluation.metrics.images import image_quality
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS
from unimedvl.training.run import run
from unimedvl.unimed5m.schema import Record, to_table
from unimedvl.unimed5m.shards import write_table
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import write_json

from .asking import Nano
from .evaluate import question_of, seen
from .model import RECIPES, SIDE, nano_presets
from .prepare import keep_start, shard_of, work_records

# Neither patient has both kinds of T1 beside T2: any of them counts.
TRANSLATIONS = (("T2", "FLAIR"), ("T1", "T2"))


def of_kind(records: Iterable[Record], source: str, target: str) -> list[Record]:
    """The records that translate one sequence, with or without contrast, into another."""
    stated = ((record, json.loads(record.extra)) for record in records)
    return [record for record, extra in stated if extra["origin"].startswith(source) and extra["target"] == target]


def gray(image: Image.Image) -> numpy.ndarray:
    """The image as 8-bit gray levels (H, W)."""
    return numpy.asarray(image.convert("L"))


def gray_level_map(records: Sequence[Record]) -> numpy.ndarray:
    """The best map from gray level to gray level on some translations.

    Returns:
        For each of 256 gray levels the mean gray level at the same places of the results, float64 (256,); levels that
        do not occur are interpolated.
    """
    total, count = numpy.zeros(256), numpy.zeros(256)
    for record in records:
        source, result = (gray(seen(images[0])).ravel() for images in (record.input_img, record.output_img))
        total += numpy.bincount(source, weights=result, minlength=256)
        count += numpy.bincount(source, minlength=256)
    levels = numpy.flatnonzero(count)
    return numpy.interp(numpy.arange(256), levels, total[levels] / count[levels])


def score(model: Path, training: Sequence[Record], left_out: Sequence[Record]) -> dict[str, dict]:
    """Mean PSNR of the model and of the gray-level map for each translation, over the left-out patient's slices.

    Without intervals: the slices are of one patient, and one patient does not say how others differ.
    """
    nano, results = Nano(str(model), nano_presets(TASK_PRESETS)["cross_modal"]), {}
    for source, target in TRANSLATIONS:
        chosen, table = of_kind(left_out, source, target), gray_level_map(of_kind(training, source, target))
        truths = [seen(record.output_img[0]) for record in chosen]
        made = nano.draw(
            [question_of(r) for r in chosen], "cross_modal", [shown_image(r.input_img[0]) for r in chosen]
        )
        mapped = [
            Image.fromarray(table[gray(seen(record.input_img[0]))].round().astype(numpy.uint8)).convert("RGB")
            for record in chosen
        ]
        own, other = (image_quality(images, truths)["psnr"] for images in (made, mapped))
        results[f"{source} -> {target}"] = {
            "slices": len(truths),
            "nano": own,
            "gray-level map": other,
            "gain": own - other,
        }
    return results


def main(
    work: Annotated[Path, Option(help="Work folder of `examples.nano.prepare`.")],
    out: Annotated[Path, Option(help="Folder of the runs and the results.")],
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work, out = work.resolve(), out.resolve()
    keep_start(work, out)
    found = [record for record in work_records(work, "train") if record.sub_task_type == "cross_modal"]
    if len({record.group_id for record in found}) < 2:
        raise ValueError(f"{work} holds translations of fewer than two patients: build records of `cross_modal`.")
    common = run(
        RECIPES / "left-out-patient" / "common.yaml",
        [f"model={work / 'start'}", f"output_dir={out / 'common'}", f"data.path={work / 'records'}"],
    )
    results, made = {}, origin()
    for patient in sorted({record.group_id for record in found}):
        training = [record for record in found if record.group_id != patient]
        name = patient.rpartition(":")[2]
        folder = out / f"without-{name}"
        (folder / "records" / "data").mkdir(parents=True, exist_ok=True)
        write_table(shard_of(folder / "records", "train"), to_table(training))
        overrides = [f"model={common}", f"output_dir={folder / 'run'}", f"data.path={folder / 'records'}"]
        model = run(RECIPES / "left-out-patient" / "patient.yaml", overrides)
        results[name] = score(model, training, [record for record in found if record.group_id == patient])
        print(name, json.dumps(results[name]), flush=True)
    write_json(out / "results.json", {"origin": made, "side": SIDE, "left out": results})


if __name__ == "__main__":
    sys.exit(run_module(main))
