"""The texts of a record that quality control looks at."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from ..schema import IMAGE_PLACEHOLDER

# Tasks whose text says something about one image. An editing instruction ("segment the vessels") does not.
ALIGNED_TASKS = ("caption", "diagnosis", "planned_text_to_image", "report", "text_to_image", "vqa")
CAPTION_TASKS = ("caption", "planned_text_to_image", "text_to_image")
# Entries of `extra` that templates put into words.
FACTS = ("submodality", "anatomy", "plane", "label")


def whole_text(message: Sequence[Mapping[str, str]]) -> str:
    """All turns of a conversation without image placeholders, one line per turn."""
    return "\n".join(turn["value"].replace(IMAGE_PLACEHOLDER, "").strip() for turn in message).strip()


def normalized_text(message: Sequence[Mapping[str, str]]) -> str:
    """The whole text in lower case with single spaces and no punctuation: equal for texts that read the same.

    Letters keep their marks, which are the vowels of Hindi and the tones of Thai, composed or not.
    """
    text = unicodedata.normalize("NFC", whole_text(message).lower())
    return " ".join(regex.findall(r"[\w\p{M}]+", text))


def original_text(row: Mapping[str, Any]) -> str:
    """The text of a record that describes its image.

    Questions keep their answer ("is there a fracture? no"); captions and reports are the answer alone, because their
    question is one of our phrasings; a text-to-image record is described by its prompt.
    """
    asked = [turn["value"] for turn in row["message"] if turn["from"] == "human"]
    answered = [turn["value"] for turn in row["message"] if turn["from"] == "gpt"]
    if row["sub_task_type"] in ("text_to_image", "planned_text_to_image"):
        parts = asked
    elif row["sub_task_type"] in ("caption", "report"):
        parts = answered
    else:
        parts = asked + answered
    return " ".join(" ".join(parts).replace(IMAGE_PLACEHOLDER, " ").split())


def described_image(row: Mapping[str, Any]) -> bytes | None:
    """The bytes of the image that `original_text` describes: the first input image, else the first output image."""
    for image in [*(row["input_img"] or []), *(row["output_img"] or [])]:
        if image["image"] is not None and image["image"]["bytes"] is not None:
            return image["image"]["bytes"]
    return None


def stated_facts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the source states about a record's image, as far as its texts say: records with equal facts have
    texts that are true of each other's images.

    A text that somebody wrote about this one image (a report, a question of the source) is a fact of its own.
    """
    extra = json.loads(row["extra"])
    if row["sub_task_type"] == "report" or "official_split" in extra:
        return (original_text(row),)
    return tuple(str(extra.get(name, "")) for name in FACTS)
