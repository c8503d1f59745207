"""One vocabulary: words that the project does not use, and American spelling."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Data that the shipped nano was trained on, and texts of other people, such as the terms of datasets on their card.
NOT_OURS = re.compile(
    r"^(unimed5m/templates/|unimed5m/sentences\.py|hub_cards/unimedvl-nano/(evaluation/|tokenizer)"
    r"|hub_cards/unimed-mini/|tests/golden/fixtures/"
    r"|LICENSE|benchmarks/results/|evaluation/paper\.json|tests/test_words\.py)"
)
# What the field does not say -> what it says.
BANNED = {
    r"\bpictures?\b": "image",
    r"\b(go|goes|going|gone) on\b": "resume",
    r"\b(learnt|unlearnt)\b": "trained, trained on",
    r"\btold apart\b": "distinguished",
    r"\b(is|are|was|were|be) told\b": "is reported",
    r"(?<!\.)\btells?\b(?!\(\))": "says, reports, distinguishes",
    r"\bfor nobody\b": "for no one",
    r"\blearned from\b": "trained on",
    r"\bgradient norm\b": "grad norm",
    r"\bspoilt\b": "spoiled",
    r"\bat hand\b": "available",
    r"\bin vain\b": "needlessly",
    r"\bin so many words\b": "explicitly",
    r"\bpublic door\b": "public API",
    r"\bweighed\b": "weighted",
    r"\b(stands|stand|stood|standing) (in )?for\b": "represents, replaces",
    r"\bcan mend\b": "can fix",
    r"\b\w*published_(layout|weights|config)\w*\b": "upstream",
    r"\boptimis\w*|\bnormalis\w*|\binitialis\w*|\bmemoris\w*|\bquantis\w*|\brecognis\w*|\bsummaris\w*": "-ize",
    r"\b(colour|grey|tumour|neighbour|licence|centre|labelled|modelling|behaviour|artefact)s?\b": "American spelling",
}


def texts() -> list[Path]:
    """Tracked code, documents and settings of ours, without links."""
    patterns = ["*.py", "*.md", "*.yaml", "*.yml", "*.cfg", "*.toml", "*.jinja", "Makefile", ".ci/*"]
    listing = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listing.stdout.splitlines() if not NOT_OURS.search(name)]
    return [ROOT / name for name in names if not (ROOT / name).is_symlink()]


def says(pattern: str, line: str) -> bool:
    """Whether a line has the words; parts of names count as words, so snake_case and CamelCase are split."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line.replace("_", " ") if "_" not in pattern else line)
    return re.search(pattern, words, re.IGNORECASE) is not None


@pytest.mark.parametrize("pattern", BANNED)
def test_nothing_says(pattern):
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if says(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, f"say {BANNED[pattern]!r}:\n" + "\n".join(found)


def test_the_search_finds_what_it_is_for():
    assert any(path.name == "README.md" for path in texts()) and len(texts()) > 200
    picture = next(pattern for pattern in BANNED if "picture" in pattern)
    assert all(says(picture, line) for line in ("a picture", "RecordPicture", "input_pictures"))
    assert not says(picture, "an image, pictured")
