"""What is handed out: generated images as PNG and DICOM with their provenance, reports as text, masks over images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from scipy import ndimage

from unimedvl.checkpoint.dicom_capture import save_dicom_capture
from unimedvl.checkpoint.provenance import NOTICE, provenance_record
from unimedvl.evaluation.metrics.masks import dice, read_mask
from unimedvl.processing.medical_formats_unimedvl import open_image
from unimedvl.processing.view_unimedvl import View

from .engine import Drawn, Engine
from .sessions import VIEW_SIDE, Segmentation, Session
from .sources import Source

# Colors that people with color vision deficiencies distinguish, after Okabe and Ito.
MADE_COLOR, TRUTH_COLOR = (230, 159, 0), (86, 180, 233)


@dataclass(frozen=True)
class Kept:
    """The files of one generated image."""

    png: Path
    dicom: Path


def keep(
    session: Session, engine: Engine, drawn: Drawn, *, task: str, prompt: str, seed: int, digests: Sequence[str]
) -> list[Kept]:
    """Write every image as PNG and as DICOM secondary capture, both with the same record.

    Args:
        session: whose folder receives them.
        engine: whose checkpoint made them.
        drawn: the images and their settings.
        task: a word for the files' names.
        prompt: of which the record holds a hash.
        seed: of the noise.
        digests: SHA-256 of what they were made from.
    """
    fields = record_fields(engine, prompt=prompt, seed=seed, digests=digests)
    kept = []
    for index, image in enumerate(drawn.images):
        number = f"-{index + 1}" if len(drawn.images) > 1 else ""
        settings = {**drawn.settings, "think": False, "index": index}
        name = f"synthetic-{task}-seed{seed}{number}.png"
        png = session.write_generated(image, name, settings=settings, **fields)
        dicom = png.with_suffix(".dcm")
        save_dicom_capture(image, dicom, settings=settings, **fields)
        kept.append(Kept(png, dicom))
    if kept:
        session.made[task] = kept[0].png
    return kept


def record_fields(engine: Engine, *, prompt: str, seed: int, digests: Sequence[str]) -> dict[str, Any]:
    """What records of provenance say besides the settings."""
    return {
        "model": engine.checkpoint.name,
        "revision": engine.checkpoint.revision,
        "seed": seed,
        "prompt": prompt,
        "input_hashes": list(digests),
    }


def keep_text(session: Session, engine: Engine, text: str, *, prompt: str, digests: Sequence[str]) -> Path:
    """Write a report as a text file that says what made it, above and below."""
    record = provenance_record(settings={}, **record_fields(engine, prompt=prompt, seed=0, digests=digests))
    path = session.place("synthetic-report.txt")
    path.write_text(
        f"AI-generated. {NOTICE}\n\n{text}\n\n{json.dumps(record, ensure_ascii=False, sort_keys=True)}\n",
        encoding="utf-8",
    )
    return path


def before_after(session: Session, before: Image.Image, after: Path) -> tuple[str, str]:
    """Two files of the same size for the slider: the image as the result's size has it, and the result."""
    with Image.open(after) as result:
        size = result.size
    resized = before.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return str(session.passing("before", session.write(resized, "before.png"))), str(after)


def overlay(segmentation: Segmentation, opacity: float) -> Image.Image:
    """The image with the mask over it, and the outline of the true mask where there is one.

    Args:
        segmentation: image and masks of any sizes.
        opacity: of the mask, 0 to 1.

    Returns:
        RGB, of the image's size but at most `VIEW_SIDE` pixels.
    """
    shown = segmentation.image.convert("RGB")
    shown.thumbnail((VIEW_SIDE, VIEW_SIDE))
    size = (shown.height, shown.width)
    pixels = numpy.asarray(shown, dtype=numpy.float32).copy()
    mask = read_mask(segmentation.mask, size)
    pixels[mask] = (1 - opacity) * pixels[mask] + opacity * numpy.array(MADE_COLOR, dtype=numpy.float32)
    if segmentation.truth is not None:
        truth = read_mask(segmentation.truth, size)
        inside = ndimage.binary_erosion(truth, iterations=max(1, max(size) // 256))
        pixels[truth & ~inside] = TRUTH_COLOR
    return Image.fromarray(pixels.round().astype(numpy.uint8))


def verdict(segmentation: Segmentation) -> str:
    """How much of the image the mask covers, and its overlap with the true one."""
    covered = float(read_mask(segmentation.mask).mean())
    text = f"The mask covers {covered:.1%} of the image."
    if segmentation.truth is None:
        return text + " Upload a true mask to compare with."
    return f"{text} **Dice {dice(segmentation.mask, segmentation.truth):.3f}** with the uploaded mask."


def open_truth(path: Path, source: Source) -> Image.Image:
    """An uploaded mask as black and white.

    Args:
        path: an image, or a volume of the same shape as the source's, of which the shown slice counts.
        source: what was segmented.

    Returns:
        "L", 0 or 255. Where there are only two levels the larger is the structure, else what is nearer to white.

    Raises:
        ValueError: one sentence, for what can not be shown.
    """
    view = source.view
    is_volume = source.kind in ("NIfTI", "DICOM series") and path.name.lower().endswith((".nii", ".nii.gz"))
    where = View(plane=view.plane, slice_index=view.slice_index, frame=view.frame) if is_volume else View()
    levels = numpy.asarray(open_image(path, where).convert("L"))
    found = numpy.unique(levels)
    mask = levels == found[-1] if len(found) == 2 else read_mask(levels)
    return Image.fromarray(mask.astype(numpy.uint8) * 255)
