"""Measure a nano on built records: every figure of its card, each with a 95 % interval.

    python -m examples.nano.evaluate --model CHECKPOINT --records BUILT --work WORK [--out FILE.json]
        [--split held-out]

BUILT holds the records of `unimedvl data build --source unimed-mini`, WORK what `prepare` has written. With
`--split held-out` the held-out part of WORK's records takes the place of the validation split: that is the one to
choose settings on. Everything goes through the public interface: the checkpoint folder, the processor, `generate`.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from typer import Option

from unimedvl.checkpoint.loading import load
from unimedvl.processing.image_processing_unimedvl import resize_image
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Picture, Record
from unimedvl.unimed5m.task_images import lower_resolution, pixels_of
from unimedvl.utils.command_line import run_module

from .generated_images import made_pictures
from .intervals import mean_interval, share
from .model import UNIT, image_transform
from .prepare import SUPER_RESOLUTION, is_picture_request, read_records, work_records

BATCH = 32
MODALITY_QUESTION = "What imaging modality is this?"
DIAGNOSES = {
    "NIH pneumonia / no finding": "nih-chestxray14-subset",
    "LC25000 lung, 3 classes": "lc25000-lung",
    "brain tumour, 4 classes": "brain-tumor-classification",
}
SEGMENTATIONS = {
    "polyp": "kvasir-seg",
    "fetal head": "hc18",
    "hippocampus": "msd-hippocampus",
    "nuclei": "monuseg",
}
Content = list[dict[str, Any]]


class Nano:
    """A loaded checkpoint that answers and draws in batches."""

    def __init__(self, folder: str, settings: dict[str, Any] | None = None):
        self.model, self.processor, _ = load(folder)
        self.settings = settings or {}

    def _inputs(self, contents: Sequence[Content], mode: str) -> dict[str, Any]:
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": content}] for content in contents],
            generation_mode=mode,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Greedy answers to one question about each image."""
        answers: list[str] = []
        for start in range(0, len(images), BATCH):
            pairs = zip(images[start : start + BATCH], questions[start : start + BATCH], strict=True)
            contents = [
                [{"type": "image", "image": image}, {"type": "text", "text": question}] for image, question in pairs
            ]
            inputs = self._inputs(contents, "text")
            ids = self.model.generate(**inputs, max_new_tokens=24, do_sample=False)
            answers += self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def draw(
        self, prompts: Sequence[str], preset: str, images: Sequence[Image.Image] | None = None, seed: int = 0
    ) -> list[Image.Image]:
        """One picture for each prompt, from an image where there are images; each has a seed of its own."""
        made: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            chosen = range(start, min(len(prompts), start + BATCH))
            contents: list[Content] = [
                ([{"type": "image", "image": images[index]}] if images else [])
                + [{"type": "text", "text": prompts[index]}]
                for index in chosen
            ]
            pixels = self.model.generate(
                **self._inputs(contents, "image"),
                generation_mode="image",
                preset=preset,
                generator=[torch.Generator().manual_seed(seed + index) for index in chosen],
                show_progress=False,
                **self.settings,
            )
            made += self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        return made

    def reconstruct(self, image: Image.Image) -> Image.Image:
        """What the autoencoder makes of a picture of the nano's size."""
        inputs = self.processor.image_processor([image], generation_mode="image", return_tensors="pt")
        latents = self.model.model.encode_latents(list(inputs["latent_pixel_values"]), sample_mode="mode")
        pixels = self.model.model.decode_latents(latents)
        return self.processor.post_process_multimodal_output(pixels, generation_mode="image")[0]


def rgb(picture: Picture) -> Image.Image:
    return Image.fromarray(pixels_of(picture)).convert("RGB")


def seen(picture: Picture) -> Image.Image:
    """The picture in the size in which the nano reads it."""
    return resize_image(rgb(picture), image_transform(UNIT))


def question_of(record: Record) -> str:
    return record.message[0].value.replace(IMAGE_PLACEHOLDER, "").strip()


def psnr(image: Image.Image, truth: Image.Image) -> float:
    """RGB peak signal-to-noise ratio in dB, 8-bit range."""
    error = numpy.asarray(image, dtype=float) - numpy.asarray(truth, dtype=float)
    return float(10 * numpy.log10(255.0**2 / max(float((error**2).mean()), 1e-9)))


def ssim(image: Image.Image, truth: Image.Image) -> float:
    """Structural similarity over RGB, 7 x 7 windows, 8-bit range."""
    return float(structural_similarity(numpy.asarray(image), numpy.asarray(truth), channel_axis=2, data_range=255))


def dice(image: Image.Image, truth: Image.Image) -> float:
    """Overlap of two masks, white above half; 1 where both are empty."""
    drawn, real = (numpy.asarray(mask.convert("L")) > 127 for mask in (image, truth))
    total = int(drawn.sum()) + int(real.sum())
    return 1.0 if total == 0 else 2.0 * float((drawn & real).sum()) / total


def average(values: Sequence[float]) -> dict[str, Any]:
    """A mean with its bootstrap interval over records."""
    return {"value": float(numpy.mean(values)), "interval": mean_interval(values), "total": len(values)}


def _of(records: Sequence[Record], task: str, source: str = "") -> list[Record]:
    return [record for record in records if record.sub_task_type == task and source in ("", record.dataset)]


def _pictured(records: Sequence[Record]) -> list[Record]:
    """One record for each picture with a stated modality."""
    return [record for record in records if is_picture_request(record)]


def score_modality(nano: Nano, records: Sequence[Record]) -> dict[str, Any]:
    chosen = _pictured(records)
    answers = nano.ask([rgb(record.output_img[0]) for record in chosen], [MODALITY_QUESTION] * len(chosen))
    names = [tasks.MODALITY_NAMES[record.modality].lower() for record in chosen]
    hits = [answer.lower().rstrip(".") == name for answer, name in zip(answers, names, strict=True)]
    wrong: dict[str, int] = {}
    for record, answer, hit in zip(chosen, answers, hits, strict=True):
        if not hit:
            key = f"{record.dataset} -> {answer}"
            wrong[key] = wrong.get(key, 0) + 1
    return share(hits) | {"wrong": wrong}


def score_diagnosis(nano: Nano, records: Sequence[Record], source: str) -> dict[str, Any]:
    chosen = _of(records, "diagnosis", source)
    answers = nano.ask([rgb(record.input_img[0]) for record in chosen], [question_of(record) for record in chosen])
    labels = [json.loads(record.extra)["label"].lower() for record in chosen]
    pairs: dict[str, int] = {}
    for label, answer in zip(labels, answers, strict=True):
        pairs[f"{label} -> {answer.lower()}"] = pairs.get(f"{label} -> {answer.lower()}", 0) + 1
    hits = [answer.lower().rstrip(".") == label for label, answer in zip(labels, answers, strict=True)]
    return share(hits) | {"answers": dict(sorted(pairs.items()))}


def score_closed(nano: Nano, records: Sequence[Record], seed: int = 0) -> dict[str, Any]:
    """VQA-RAD's yes-or-no questions, and the gain over the same questions about another picture."""
    chosen = [record for record in _of(records, "vqa", "vqa-rad") if record.message[-1].value.lower() in ("yes", "no")]
    images = [rgb(record.input_img[0]) for record in chosen]
    generator = numpy.random.default_rng(seed)
    others = []
    for record in chosen:
        strange = [index for index, other in enumerate(chosen) if other.group_id != record.group_id]
        others.append(images[strange[generator.integers(len(strange))]])
    questions = [question_of(record) for record in chosen]
    truth = [record.message[-1].value.lower() for record in chosen]
    right, blind = (
        [answer.lower().rstrip(".") == real for answer, real in zip(nano.ask(shown, questions), truth, strict=True)]
        for shown in (images, others)
    )
    gain = average([float(own) - float(other) for own, other in zip(right, blind, strict=True)])
    return share(right) | {"other image": share(blind), "gain": gain}


def score_autoencoder(nano: Nano, records: Sequence[Record]) -> dict[str, Any]:
    pictures = [seen(record.output_img[0]) for record in _pictured(records)]
    return average([psnr(nano.reconstruct(picture), picture) for picture in pictures])


def score_segmentation(nano: Nano, records: Sequence[Record], source: str) -> dict[str, Any]:
    chosen = _of(records, "segmentation", source)
    images = [rgb(record.input_img[0]) for record in chosen]
    made = nano.draw([question_of(record) for record in chosen], "segmentation", images)
    return average([dice(image, seen(record.output_img[0])) for image, record in zip(made, chosen, strict=True)])


def score_super_resolution(nano: Nano, records: Sequence[Record], most: int) -> dict[str, Any]:
    """From a quarter of the nano's own resolution, against bicubic interpolation and the autoencoder alone."""
    chosen = _pictured(records)
    chosen = chosen[:: max(1, len(chosen) // most)]
    truths = [seen(record.output_img[0]) for record in chosen]
    coarse = [Image.fromarray(lower_resolution(numpy.asarray(truth), SUPER_RESOLUTION, "bicubic")) for truth in truths]
    made = nano.draw(["Perform super-resolution, factor 4."] * len(coarse), "super_resolution", coarse)
    ceiling = [nano.reconstruct(truth) for truth in truths]
    scores: dict[str, Any] = {}
    for name, measure in (("ssim", ssim), ("psnr", psnr)):
        by = {
            kind: [measure(image, truth) for image, truth in zip(images, truths, strict=True)]
            for kind, images in (("nano", made), ("bicubic", coarse), ("autoencoder", ceiling))
        }
        gain = [own - other for own, other in zip(by["nano"], by["bicubic"], strict=True)]
        scores[name] = {kind: average(values) for kind, values in by.items()} | {"gain over bicubic": average(gain)}
    return scores


def evaluate(nano: Nano, records: Sequence[Record], work: Path, most: int = 160) -> dict[str, Any]:
    """All figures; groups of records that the split does not hold are left out."""
    results: dict[str, Any] = {}

    def note(name: str, value: dict[str, Any]) -> None:
        results[name] = value
        print(name, json.dumps(value), flush=True)

    note("modality, 6 classes", score_modality(nano, records))
    for name, source in DIAGNOSES.items():
        if _of(records, "diagnosis", source):
            note(name, score_diagnosis(nano, records, source))
    note("VQA-RAD closed", score_closed(nano, records))
    note("autoencoder, PSNR", score_autoencoder(nano, records))
    for name, source in SEGMENTATIONS.items():
        if _of(records, "segmentation", source):
            note(f"segmentation, Dice: {name}", score_segmentation(nano, records, source))
    note("4x super-resolution", score_super_resolution(nano, records, most))
    for name, value in made_pictures(nano, records, work).items():
        note(name, value)
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
    if next(work_records(work, "train"), None) is None:  # which the judge learns from, after all else
        raise ValueError(f"{work} holds no training records: prepare it again from more records.")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    asked = list(work_records(work, "validation") if split == "held-out" else read_records(records, "validation"))
    results = evaluate(Nano(model), asked, work)
    results["seconds"] = round(time.perf_counter() - started)
    if out is not None:
        out.write_text(json.dumps({"split": split, **results}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_module(main))
