"""What texts and file names of the publishers say about a sample: modality, sections of a report, a paper's number."""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from ..schema import IMAGE_PLACEHOLDER, Turn

# Publishers' words for a modality, from the most to the least specific. Applied to captions this is a guess, good
# enough to balance a mixture and not to be relied on; the cards of the sources say where it is used.
MODALITY_WORDS = (
    ("OCT", r"\boct\b|optical coherence"),
    ("CFP", r"fundus|retinal photograph"),
    ("HIS", r"histolog|histopatholog|microscop|h&e|hematoxylin|haematoxylin|immunohisto|stain(ed|ing)"),
    ("ENDO", r"endoscop|colonoscop|gastroscop|laparoscop|bronchoscop"),
    ("US", r"ultraso|sonogra|echocardi|doppler"),
    ("MRI", r"\bmri?\b|magnetic resonance|t[12][- ]weighted|\bflair\b"),
    ("CT", r"\bct\b|\bcta\b|computed tomograph|computerized tomograph"),
    ("CXR", r"chest (x-?ray|radiograph|film)|thorax x-?ray|\bcxr\b"),
)
PAPER_NUMBER = re.compile(r"PMC\d+")


def modality_of(text: str, default: str = "RAD") -> str:
    """The modality that a text names, the first of `MODALITY_WORDS` if several, else `default`."""
    lowered = text.lower()
    return next((modality for modality, words in MODALITY_WORDS if re.search(words, lowered)), default)


def paper_of(name: str) -> str:
    """PMC number in a file name, or the whole name: figures of one paper stay on one side of a split."""
    found = PAPER_NUMBER.search(name)
    return found.group() if found else name


def turns_of(conversation: Sequence[Mapping[str, Any]], images: int) -> tuple[Turn, ...]:
    """LLaVA's `conversations` as turns; a first turn without placeholders gets one for each image in front."""
    turns = [
        Turn("gpt" if turn["from"] in ("gpt", "assistant") else "human", str(turn["value"]))
        for turn in conversation
        if turn["from"] != "system"
    ]
    if turns and images and not any(IMAGE_PLACEHOLDER in turn.value for turn in turns):
        turns[0] = Turn(turns[0].role, f"{IMAGE_PLACEHOLDER}\n" * images + turns[0].value)
    return tuple(turns)


def report_text(findings: str, impression: str) -> str:
    """Findings and impression as one report, with whichever of the two there is; line breaks become spaces."""
    parts = (("Findings", findings), ("Impression", impression))
    return "\n".join(f"{title}: {' '.join(text.split())}" for title, text in parts if text.strip())


def report_sections(text: str) -> tuple[str, str]:
    """Findings and impression of a MIMIC-CXR report: what follows each heading, up to the next in capitals."""
    found = []
    for heading in ("FINDINGS", "IMPRESSION"):
        match = re.search(rf"{heading}:\s*(.*?)(?=\n\s*[A-Z][A-Z ]{{3,}}:|\Z)", text, re.DOTALL)
        found.append(" ".join(match.group(1).split()) if match else "")
    return found[0], found[1]


def options_in(row: Mapping[str, Any], *names: str) -> list[str]:
    """The choices in those columns, "" where one is missing: the place of a choice is its letter."""
    return ["" if row.get(name) is None else str(row[name]) for name in names]


def plain_options(options: Sequence[str]) -> list[str]:
    """Choices without the letters that some publishers put in front ("A: liver", "B: kidney").

    They are taken off only if every choice carries the letter of its place, blank ones aside; "E. coli" and
    "H. pylori" stay as they are.
    """
    lettered = [
        re.fullmatch(rf"\s*{letter}\s*[:.)]\s*(.*?)\s*", option, re.DOTALL)
        for letter, option in zip(ascii_uppercase, options, strict=False)
        if option.strip()
    ]
    if len(lettered) > 1 and len(options) <= len(ascii_uppercase) and all(lettered):
        return [option.strip() and re.split(r"[:.)]", option, maxsplit=1)[1].strip() for option in options]
    return [option.strip() for option in options]


def chosen_option(options: Sequence[str], answer: str) -> int:
    """Index of the right choice, stated as its letter, its words, or both ("B: kidney"); -1 if it is none of them."""
    wanted = answer.strip()
    stated = re.fullmatch(r"([A-Z])(?:\s*[:.)]\s*(.+))?", wanted, re.DOTALL)
    index = ascii_uppercase.index(stated[1]) if stated else -1
    if stated and index < len(options) and options[index]:
        if stated[2] is None or stated[2].lower() == options[index].lower():
            return index
    return next((place for place, option in enumerate(options) if option and option.lower() == wanted.lower()), -1)
