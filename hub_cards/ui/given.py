"""What people typed and chose, checked: texts, numbers that may be left out, and the images that a task works on."""

import math
import secrets
from typing import Any

import gradio as gr

from .engine import Progress
from .sessions import Session
from .sources import Source

MAX_PROMPT = 4000
MAX_IMAGES = 4
MAX_TOKENS = 1024
MAX_STEPS = 200
STOPPED = "Stopped."
# A number as a field of the page holds it, empty where the person leaves the choice to the program.
Given = str | float | None


def checked_text(text: str | None, what: str) -> str:
    """What a person typed, without spaces around it.

    Raises:
        ValueError: if it is empty or too long.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError(f"The {what} is empty: write what you want.")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"The {what} has {len(text)} characters: use at most {MAX_PROMPT}.")
    return text


def limited(value: float | None, most: int) -> int:
    """A number of a slider as a whole one from 1 to `most`; API clients may send any."""
    return max(1, min(int(value or 1), most))


def given_number(value: Given, what: str) -> float | None:
    """A number, None for an empty field.

    Raises:
        ValueError: for anything else.
    """
    text = str(value).strip() if value is not None else ""
    try:
        number = float(text) if text else None
    except ValueError:
        raise ValueError(f"{what} must be a number, or empty, not {text[:20]!r}.") from None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number.")
    return number


def given_whole(value: Given, what: str) -> int | None:
    """A whole number of at least 0, None for an empty field.

    Raises:
        ValueError: for anything else.
    """
    number = given_number(value, what)
    if number is not None and (number != int(number) or not 0 <= number < 1 << 53):
        raise ValueError(f"{what} must be a whole number of at least 0, or empty.")
    return None if number is None else int(number)


def seed_or_new(value: Given) -> int:
    """The seed that was asked for, or a new one."""
    seed = given_whole(value, "Seed")
    return secrets.randbelow(1 << 31) if seed is None else seed


def sampler_changes(steps: Given, guidance: Given, image_guidance: Given) -> dict[str, Any]:
    """Settings that replace those of the preset; an empty field leaves the preset's."""
    num_steps = given_whole(steps, "Steps")
    if num_steps is not None and not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"Steps must be a whole number from 1 to {MAX_STEPS}, or empty.")
    return {
        "num_inference_steps": num_steps,
        "guidance_scale": given_number(guidance, "Text guidance"),
        "image_guidance_scale": given_number(image_guidance, "Image guidance"),
    }


def all_sources(session: Session) -> list[Source]:
    """The images of a session.

    Raises:
        ValueError: if there is none.
    """
    if not session.sources:
        raise ValueError("There is no image: upload one, or take an example.")
    return list(session.sources)


def selected_source(session: Session) -> Source:
    """The image that is shown.

    Raises:
        ValueError: if there is none.
    """
    return all_sources(session)[session.selected]


def step_line(progress: gr.Progress, event: Progress) -> str:
    """Move the bar, and say in words how far the sampler is."""
    progress((event.done, event.total), desc="Denoising", unit="steps")
    return f"Step {event.done} of {event.total}"
