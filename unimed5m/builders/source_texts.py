"""What texts and file names of the publishers say about a sample: modality, sections of a report, a paper's number."""

import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
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
# Names of roles in publishers' conversations -> ours.
CONVERSATION_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
PAPER_NUMBER = re.compile(r"PMC\d+")


def modality_of(text: str, default: str = "RAD") -> str:
    """The modality that a text names, the first of `MODALITY_WORDS` if several, else `default`."""
    lowered = text.lower()
    return next((modality for modality, words in MODALITY_WORDS if re.search(words, lowered)), default)


def paper_of(name: str) -> str:
    """PMC number in a file name, or the whole name: figures of one paper stay on one side of a split."""
    found = PAPER_NUMBER.search(name)
    return found.group() if found else name


def turns_of(conversation: Any, images: int) -> tuple[Turn, ...]:
    """LLaVA's `conversations` as turns; without placeholders the first question gets one for each image in front.

    Args:
        conversation: a list of {"from": role, "value": text}, or its JSON text, as a cell of CSV holds it. Roles are
            those of `CONVERSATION_ROLES`, in any case.
        images: of the row.

    Raises:
        ValueError: naming the turn, for one of another form or role or without a text, and for a conversation without
            a question or without an answer at its end.
    """
    if isinstance(conversation, str):
        try:
            conversation = json.loads(conversation)
        except ValueError:
            conversation = None
    if not isinstance(conversation, list | tuple) or not conversation:
        raise ValueError("conversations: expected a list of turns, or its JSON text, found none.")
    turns = [_turn(turn, number) for number, turn in enumerate(conversation, 1)]
    asked = next((place for place, turn in enumerate(turns) if turn.role == "human"), None)
    if asked is None:
        raise ValueError("conversations: expected a question, found no turn of human.")
    if turns[-1].role != "gpt":
        raise ValueError(f"conversations: expected an answer at the end, found a turn of {turns[-1].role}.")
    if images and not any(IMAGE_PLACEHOLDER in turn.value for turn in turns):
        turns[asked] = Turn("human", f"{IMAGE_PLACEHOLDER}\n" * images + turns[asked].value)
    return tuple(turns)


def _turn(turn: Any, number: int) -> Turn:
    place = f"conversations: turn {number}"
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        found = ", ".join(map(str, turn)) if isinstance(turn, Mapping) else type(turn).__name__
        raise ValueError(f"{place}: expected from and value, found {found[:80] or 'nothing'}.")
    role = CONVERSATION_ROLES.get(str(turn["from"]).strip().lower())
    if role is None:
        raise ValueError(f"{place}: from: expected {', '.join(CONVERSATION_ROLES)}, found {str(turn['from'])[:40]!r}.")
    value = turn["value"]
    if not isinstance(value, str):
        raise ValueError(f"{place}: value: expected a text, found {type(value).__name__}.")
    if not value.replace(IMAGE_PLACEHOLDER, "").strip():
        raise ValueError(f"{place}: value: expected a text of {role}, found none.")
    return Turn(role, value)


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
    named = next((place for place, option in enumerate(options) if option and option.lower() == wanted.lower()), -1)
    small = ascii_lowercase.find(wanted) if len(wanted) == 1 else -1
    return small if named < 0 <= small < len(options) and options[small] else named
