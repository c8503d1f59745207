"""Measure a nano on built records: every figure of its card, each with a 95 % interval over patients.

    python -m examples.nano.evaluate --model CHECKPOINT --records BUILT --work WORK [--out FILE.json]
        [--split held-out]

FILE is written after every figure, and what it holds is not measured again.

BUILT holds the records of `unimedvl data build --source unimed-mini`, WORK what `prepare` has written. With
`--split held-out` the held-out part of WORK's records takes the place of the validation split: that is the one to
choose settings on. Everything goes through the public interface: the model wrapper and the metrics of the benchmarks
(`unimedvl.evaluation`), so that a figure here is the figure that `unimedvl eval` gives for the same images and texts.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
from PIL import Image
from typer import Option

from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.evaluation.metrics.answers import is_right, kind_of, score_answer
from unimedvl.evaluation.metrics.images import psnr, ssim
from unimedvl.evaluation.metrics.intervals import mean_interval
from unimedvl.evaluation.metrics.masks import dice
from unimedvl.evaluation.samples import sample_of
from unimedvl.evaluation.statistics import paired_difference
from unimedvl.processing.image_processing_unimedvl import resize_image
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, RecordImage
from unimedvl.unimed5m.task_images import lower_resolution, shown_image
from unimedvl.unimed5m.templates.words import MODALITY_NAMES
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json, write_json

from .asking import Nano
from .captions import GRADED, REFERABLE_QUESTION, number_of, referable
from .contrasts import contrast_records
from .generated_images import MADE, made_images
from .model import UNIT, image_transform
from .prepare import SUPER_RESOLUTION, facts_of, is_image_request, read_records, work_records

MOST_CONTRASTS = 600
MODALITY_QUESTION = "What imaging modality is this?"
DIAGNOSES = {
    "NIH pneumonia / no finding": "nih-chestxray14-subset",
    "LC25000 lung, 3 classes": "lc25000-lung",
    "brain tumor, 4 classes": "brain-tumor-classification",
}
# Source, and what is masked where a source has masks of several things.
SEGMENTATIONS = {
    "polyp": ("kvasir-seg", ""),
    "fetal head": ("hc18", ""),
    "hippocampus": ("msd-hippocampus", ""),
    "nuclei": ("monuseg", ""),
    "optic disc": ("idrid", "optic disc"),
}


def seen(image: RecordImage) -> Image.Image:
    """The image in the size in which the nano reads it."""
    return resize_image(shown_image(image), image_transform(UNIT))


def question_of(record: Record) -> str:
    """What a record's first turn says, without its image placeholders."""
    return record.message[0].value.replace(IMAGE_PLACEHOLDER, "").strip()


def right_answers(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    """For every record 1.0 where its answer is right, by the rule that the benchmarks have for it, else 0.0."""
    hits = []
    for record, answer in zip(records, answers, strict=True):
        sample = sample_of(record)
        assert sample is not None, "records of questions and diagnoses are samples of a benchmark"
        found = score_answer(answer, sample.reference, sample.kind, sample.options, sample.rule or "normalized")
        hits.append(found["accuracy"])
    return hits


def matches(answers: Sequence[str], truths: Sequence[str]) -> list[float]:
    """For every answer 1.0 where it is the truth, by the rule for answers of the truth's kind, else 0.0."""
    return [float(is_right(answer, truth, kind_of(truth))) for answer, truth in zip(answers, truths, strict=True)]


def patients(records: Sequence[Record]) -> list[str]:
    """Whom the intervals resample."""
    return [record.group_id for record in records]


def _of(records: Sequence[Record], task: str, source: str = "") -> list[Record]:
    return [record for record in records if record.sub_task_type == task and source in ("", record.dataset)]


def masked(records: Sequence[Record], source: str, target: str = "") -> list[Record]:
    """The segmentation records of a source, of one target where it is named."""
    found = _of(records, "segmentation", source)
    return [record for record in found if target in ("", json.loads(record.extra)["target"])]


def _shown(records: Sequence[Record]) -> list[Record]:
    """One record for each image with a stated modality."""
    return [record for record in records if is_image_request(record)]


def score_modality(nano: Nano, records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy of the modality named for each image, with its interval and counts of the wrong answers."""
    chosen = _shown(records)
    answers = nano.ask([shown_image(record.output_img[0]) for record in chosen], [MODALITY_QUESTION] * len(chosen))
    names = [MODALITY_NAMES[record.modality] for record in chosen]
    hits = matches(answers, names)
    wrong = Counter(
        f"{record.dataset} -> {answer}" for record, answer, hit in zip(chosen, answers, hits, strict=True) if not hit
    )
    return mean_interval(hits, patients(chosen)) | {"wrong": dict(wrong)}


def score_diagnosis(nano: Nano, records: Sequence[Record], source: str) -> dict[str, Any]:
    """Accuracy of the diagnosis named on a source's images, with its interval and counts of the answers."""
    chosen = _of(records, "diagnosis", source)
    answers = nano.ask(
        [shown_image(record.input_img[0]) for record in chosen], [question_of(record) for record in chosen]
    )
    labels = [json.loads(record.extra)["label"] for record in chosen]
    pairs = Counter(f"{label} -> {answer}".lower() for label, answer in zip(labels, answers, strict=True))
    return mean_interval(right_answers(chosen, answers), patients(chosen)) | {"answers": dict(sorted(pairs.items()))}


def score_referable(nano: Nano, records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy of whether to refer for diabetic retinopathy, with the counts of truth and answer."""
    chosen, truths = [], []
    for record in _of(records, "diagnosis", GRADED):
        refer = referable(json.loads(record.extra)["label"])
        if refer is not None:
            chosen.append(record)
            truths.append("yes" if refer else "no")
    answers = nano.ask([shown_image(record.input_img[0]) for record in chosen], [REFERABLE_QUESTION] * len(chosen))
    pairs = Counter(f"{truth} -> {answer}" for truth, answer in zip(truths, answers, strict=True))
    return mean_interval(matches(answers, truths), patients(chosen)) | {"answers": dict(sorted(pairs.items()))}


def score_contrasts(nano: Nano, records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy of yes-or-no questions and of choices about what images show, half of which say what they do not."""
    shown = [record.replace(input_img=record.output_img, output_img=()) for record in _shown(records)]
    asked = sorted(contrast_records(facts_of(shown), salt="evaluation"), key=lambda record: number_of(record.id))
    asked = asked[:MOST_CONTRASTS]
    answers = nano.ask([shown_image(record.input_img[0]) for record in asked], [question_of(r) for r in asked])
    truths = [record.message[-1].value for record in asked]
    hits = matches(answers, truths)
    closed = [truth in ("yes", "no") for truth in truths]
    parts = {
        name: mean_interval(
            [hit for hit, flag in zip(hits, closed, strict=True) if flag == wanted],
            [group for group, flag in zip(patients(asked), closed, strict=True) if flag == wanted],
        )
        for name, wanted in (("yes or no", True), ("which of these", False))
    }
    return mean_interval(hits, patients(asked)) | parts


def score_closed(nano: Nano, records: Sequence[Record], seed: int = 0) -> dict[str, Any]:
    """VQA-RAD's yes-or-no questions, and the gain over the same questions about another image."""
    chosen = [record for record in _of(records, "vqa", "vqa-rad") if record.message[-1].value.lower() in ("yes", "no")]
    images = [shown_image(record.input_img[0]) for record in chosen]
    generator = numpy.random.default_rng(seed)
    others = []
    for record in chosen:
        strange = [index for index, other in enumerate(chosen) if other.group_id != record.group_id]
        others.append(images[strange[generator.integers(len(strange))]])
    questions = [question_of(record) for record in chosen]
    right, blind = (right_answers(chosen, nano.ask(shown, questions)) for shown in (images, others))
    groups = patients(chosen)
    gain = paired_difference(blind, right, groups)
    return mean_interval(right, groups) | {"other image": mean_interval(blind, groups), "gain": gain}


def score_autoencoder(nano: Nano, records: Sequence[Record]) -> dict[str, Any]:
    """Mean PSNR in dB of the autoencoder's reconstructions, with its interval."""
    chosen = _shown(records)
    images = [seen(record.output_img[0]) for record in chosen]
    return mean_interval([psnr(nano.reconstruct(image), image) for image in images], patients(chosen))


def score_segmentation(nano: Nano, records: Sequence[Record], source: str, target: str = "") -> dict[str, Any]:
    """Mean Dice of the masks made of a source's images, of one target or all, with its interval."""
    chosen = masked(records, source, target)
    images = [shown_image(record.input_img[0]) for record in chosen]
    made = nano.draw([question_of(record) for record in chosen], "segmentation", images)
    overlaps = [dice(image, seen(record.output_img[0])) for image, record in zip(made, chosen, strict=True)]
    return mean_interval(overlaps, patients(chosen))


def score_super_resolution(nano: Nano, records: Sequence[Record], most: int) -> dict[str, Any]:
    """Score super-resolution by a factor of 4, against bicubic interpolation and the autoencoder alone."""
    chosen = _shown(records)
    chosen = chosen[:: max(1, len(chosen) // most)]
    truths = [seen(record.output_img[0]) for record in chosen]
    coarse = [Image.fromarray(lower_resolution(numpy.asarray(truth), SUPER_RESOLUTION, "bicubic")) for truth in truths]
    made = nano.draw(["Perform super-resolution, factor 4."] * len(coarse), "super_resolution", coarse)
    ceiling = [nano.reconstruct(truth) for truth in truths]
    groups = patients(chosen)
    scores: dict[str, Any] = {}
    for name, measure in (("ssim", ssim), ("psnr", psnr)):
        by = {
            kind: [measure(image, truth) for image, truth in zip(images, truths, strict=True)]
            for kind, images in (("nano", made), ("bicubic", coarse), ("autoencoder", ceiling))
        }
        scores[name] = {kind: mean_interval(values, groups) for kind, values in by.items()}
        scores[name]["gain over bicubic"] = paired_difference(by["bicubic"], by["nano"], groups)
    return scores


def evaluate(
    nano: Nano, records: Sequence[Record], work: Path, most: int = 160, out: Path | None = None, **asked: Any
) -> dict[str, Any]:
    """All figures; groups of records that the split does not hold are left out.

    Args:
        nano: the checkpoint.
        records: what it is asked.
        work: folder that `prepare` has filled.
        most: images of super-resolution.
        out: JSON file that gets every figure when it is there, and whose figures are not measured again.
        asked: what the figures belong to, kept in the file.

    Raises:
        ValueError: if `out` holds figures of something else.
    """
    results: dict[str, Any] = read_json(out) if out is not None and out.is_file() else dict(asked)
    if {name: results.get(name) for name in asked} != asked:
        raise ValueError(f"{out} holds figures of another checkpoint or split: choose another file, or remove it.")

    def note(score: Callable[[], dict[str, Any]], *names: str) -> None:
        if all(name in results for name in names):
            return
        found = score()
        for name, value in ({names[0]: found} if len(names) == 1 else found).items():
            results[name] = value
            print(name, json.dumps(value), flush=True)
        if out is not None:
            write_json(out, results)

    note(lambda: score_modality(nano, records), "modality")
    note(lambda: score_contrasts(nano, records), "contrasts")
    for name, source in DIAGNOSES.items():
        if _of(records, "diagnosis", source):
            note(partial(score_diagnosis, nano, records, source), name)
    if _of(records, "diagnosis", GRADED):
        note(lambda: score_referable(nano, records), "referable diabetic retinopathy")
    note(lambda: score_closed(nano, records), "VQA-RAD closed")
    note(lambda: score_autoencoder(nano, records), "autoencoder, PSNR")
    for name, (source, target) in SEGMENTATIONS.items():
        if masked(records, source, target):
            note(partial(score_segmentation, nano, records, source, target), f"segmentation, Dice: {name}")
    note(lambda: score_super_resolution(nano, records, most), "4x super-resolution")
    note(lambda: made_images(nano, records, work), *MADE)
    return results


def main(
    model: Annotated[str, Option(help="Checkpoint folder.")],
    work: Annotated[Path, Option(help="Work folder of `prepare`.")],
    records: Annotated[
        str | None, Option(help="Folder of built unimed-mini records, for the validation split.")
    ] = None,
    split: Annotated[Literal["validation", "held-out"], Option(help="Whose records are asked.")] = "validation",
    out: Annotated[Path | None, Option(help="Write the figures here (JSON).")] = None,
) -> None:
    started = time.perf_counter()
    if split == "validation" and not records:
        raise ValueError("give the folder of built records with --records.")
    if next(work_records(work, "train"), None) is None:  # which the judge is trained on, after all else
        raise ValueError(f"{work} holds no training records: prepare it again from more records.")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    if split == "held-out":
        asked = list(work_records(work, "validation"))
    else:
        assert records is not None
        asked = list(read_records(records, "validation"))
    evaluate(Nano(model), asked, work, out=out, split=split, model=open_checkpoint(model).revision)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(run_module(main))
