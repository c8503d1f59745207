"""The words of the nano's requests and answers: how an image is asked for, its finding, its grade of retinopathy.

Every word is a fact of the source, or is measured on the pixels (`look_of`).
"""

import hashlib
import json
from typing import Any

import numpy

from unimedvl.unimed5m.mini import VIEWS
from unimedvl.unimed5m.schema import Record

ARTICLES = {"CXR": "a chest X-ray", "CT": "a CT image", "MRI": "an MRI image", "US": "an ultrasound image"}
ARTICLES |= {"HIS": "a microscopy image", "ENDO": "an endoscopy image", "OCT": "an OCT image"}
ARTICLES |= {"CFP": "a fundus photograph"}
# Labels that describe an acquisition or count cells; a request for an image does not name them.
UNNAMED_LABELS = ("bccd", "tcga-lung-ct")
SEQUENCES = "tcia-brain-tumor-progression"
# Labels that may hold together, so that none excludes another.
ACCOMPANYING = ("covid-chestxray",)

# International Clinical Diabetic Retinopathy scale, in the words of the source; from the third on a patient is
# referred to an eye doctor.
GRADES = ("no apparent retinopathy", "mild NPDR", "moderate NPDR", "severe NPDR", "proliferative DR")
FIRST_REFERABLE = 2
GRADED = "idrid"
REFERABLE_QUESTION = "Is this referable diabetic retinopathy?"

# Upper bounds of mean and standard deviation of the levels (0 to 255), and what is below them.
LIGHT = ((70, "dark"), (140, "of medium brightness"), (256, "bright"))
CONTRAST = ((40, "low contrast"), (65, "medium contrast"), (256, "high contrast"))
# Least difference of the channels' means, in levels, above which an image has a color.
COLORED = 12
TONES = ("red", "orange", "yellow", "green", "teal", "light blue", "blue", "violet", "pink")


def number_of(text: str) -> int:
    """A number of 48 bits, the same for a text everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def grade_of(label: str) -> int | None:
    """The grade 0 to 4 of diabetic retinopathy that a label of `GRADED` states, if it states one."""
    words = label.partition(";")[0].partition(" and macular")[0].strip()
    return GRADES.index(words) if words in GRADES else None


def referable(label: str) -> bool | None:
    """Whether the label states moderate retinopathy or more; None where it states no grade."""
    grade = grade_of(label)
    return None if grade is None else grade >= FIRST_REFERABLE


def label_of(dataset: str, extra: dict[str, Any]) -> str:
    """The first label that the source states, "" where there is none or it is of the acquisition."""
    label = "" if dataset in UNNAMED_LABELS else extra.get("label", "")
    return label.partition(";")[0].partition(" and macular")[0].strip()


def finding_of(record: Record) -> str:
    """The label that excludes the others of its source, or ""."""
    if record.dataset in (*ACCOMPANYING, SEQUENCES):
        return ""
    return label_of(record.dataset, json.loads(record.extra))


def plain_prompt(record: Record, extra: dict[str, Any]) -> str:
    """A request as people type it: the modality, or the modality with what is seen."""
    phrase = ARTICLES[record.modality]
    label = label_of(record.dataset, extra)
    subject = label or extra.get("anatomy", "")
    if record.dataset == SEQUENCES:
        phrase, subject = f"a {label} brain MRI", ""
    kind = number_of(f"prompt/{record.id}") % 4
    if kind == 0 or not subject:
        text = phrase
    else:
        text = f"{phrase} {('showing', 'of', 'with')[kind - 1]} {subject}"
    return text[0].upper() + text[1:] if number_of(record.id) % 2 else text


def look_of(pixels: numpy.ndarray) -> str:
    """Brightness, contrast and tone, as measured.

    Args:
        pixels: uint8 (H, W) or (H, W, 3).
    """
    levels = pixels if pixels.ndim == 3 else numpy.repeat(pixels[..., None], 3, axis=-1)
    gray = levels.mean(axis=-1)
    words = [
        next(word for bound, word in bounds if value < bound)
        for bounds, value in ((LIGHT, gray.mean()), (CONTRAST, gray.std()))
    ]
    return ", ".join([*words, tone_of(levels.reshape(-1, 3).mean(axis=0))])


def tone_of(mean: numpy.ndarray) -> str:
    """The name of a mean color (3,): gray, or one of `TONES` by hue."""
    low, high = mean.min(), mean.max()
    if high - low < COLORED:
        return "gray"
    red, green, blue = mean
    hue = {
        0: (green - blue) / (high - low),
        1: 2 + (blue - red) / (high - low),
        2: 4 + (red - green) / (high - low),
    }[int(mean.argmax())]
    return TONES[int((hue % 6) / 6 * len(TONES) + 0.5) % len(TONES)]


def detailed_prompt(record: Record, extra: dict[str, Any], pixels: numpy.ndarray) -> str:
    """A request that names all that is known: kind, part, plane, labels, and how the image looks."""
    kind = extra.get("submodality", "") or ARTICLES[record.modality].partition(" ")[2]
    anatomy, plane = extra.get("anatomy", ""), VIEWS.get(extra.get("plane", "").lower(), "")
    parts = [f"{ARTICLES[record.modality]}: {kind}"]
    if anatomy and anatomy not in kind:
        parts.append(anatomy)
    if plane:
        parts.append(plane)
    if "view" in extra:
        parts.append(extra["view"])
    labels = "" if record.dataset in (*UNNAMED_LABELS, SEQUENCES) else extra.get("label", "")
    if labels:
        parts.append(f"labeled {labels.replace('; ', ' and ')}")
    return f"{', '.join(parts)}; {look_of(pixels)}."
