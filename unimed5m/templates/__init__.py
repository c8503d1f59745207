"""Phrasings of every task, chosen by the record's id so that a rebuilt record reads the same.

A library is a `Phrasings`: what the human may say and what the model may answer. Where the answer is the source's own
text (an answer, a report, a caption), the side `gpt` is empty and the text stays as it was written.
"""

import dataclasses
import hashlib
import re
import string

from . import describing, dialogue, editing, generation, understanding

# Fewer phrasings than this and a model learns the sentence instead of the task.
MINIMUM = 20


@dataclasses.dataclass(frozen=True)
class Phrasings:
    """The two sides of a task's library, `str.format` strings with named fields."""

    human: tuple[str, ...]
    gpt: tuple[str, ...]

    def fields(self) -> set[str]:
        """Names of all the fields that the phrasings of both sides fill in."""
        return {
            name
            for phrasing in (*self.human, *self.gpt)
            for _, name, _, _ in string.Formatter().parse(phrasing)
            if name is not None
        }


def _library(*modules: object) -> dict[str, Phrasings]:
    return {
        name.lower(): Phrasings(*sides)
        for module in modules
        for name, sides in vars(module).items()
        if name.isupper() and not name.startswith("_")
    }


LIBRARY = _library(understanding, describing, generation, editing, dialogue)
_ARTICLE = re.compile(r"(?<=\b[Aa])(?= \{(\w+)\})")
_SPOKEN_AS_WORDS = frozenset({"FLAIR", "HER2"})


def choose(name: str, side: str, key: str, **fields: str) -> str:
    """One phrasing, with its fields filled in.

    Args:
        name: key of `LIBRARY`.
        side: "human" or "gpt".
        key: id of the record. The same id always gets the same phrasing; ids spread evenly over all of them.
        fields: values of the phrasing's fields; those it does not use are ignored. The "a" before a field becomes
            "an" where its value is spoken so.
    """
    phrasings = getattr(LIBRARY[name], side)
    digest = hashlib.sha256(f"{name}/{side}/{key}".encode()).digest()
    phrasing = phrasings[int.from_bytes(digest[:8], "big") % len(phrasings)]
    phrasing = _ARTICLE.sub(lambda match: "n" * (article(fields[match[1]]) == "an") + match[0], phrasing)
    return phrasing.format(**fields)


def article(noun: str) -> str:
    """The word "a" or "an", by the sound of the first word; capitals are spelled out ("an MRI", "a CT")."""
    spoken = noun.replace("-", " ").split()[0]
    if spoken.isupper() and spoken not in _SPOKEN_AS_WORDS:
        return "an" if spoken[0] in "AEFHILMNORSX" else "a"
    return "an" if spoken[0].lower() in "aeiou" else "a"
