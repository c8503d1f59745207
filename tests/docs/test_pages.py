"""What every page says, and what none says."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.docs.snippets import PAGES, ROOT
from unimedvl.unimed5m.builders.registry import list_sources

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DOCUMENTS = [
    *PAGES,
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    *NOTEBOOKS,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "hub_cards/templates/model.md.jinja")),
]
# The package by its name, where pip expects a path: it is on no index, and a name that is free there can be taken.
BY_NAME = re.compile(
    r"\bpip3? (?:install|download)\b[^\n`]*?[ \"']unimedvl(?=[\[\s\"'`]|$)|[\"']unimedvl\[", re.MULTILINE
)


def text_of(path: Path) -> str:
    """The text of a page; of a notebook, that of its cells."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_package_is_installed_from_a_checkout(path):
    assert not BY_NAME.findall(text_of(path))


def test_an_installation_by_name_is_found():
    for line in ("pip install unimedvl", 'pip install "unimedvl[data]" a', "%pip install --quiet 'unimedvl[data]'"):
        assert BY_NAME.search(line), line
    for line in (
        'pip install ".[data]"\nunimedvl info',
        "pip install dist/unimedvl-0.2.0-py3-none-any.whl",
        "import unimedvl",
    ):
        assert not BY_NAME.search(line), line


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_page_is_for_research_only(path):
    """Near the top, where a reader sees it."""
    words = " ".join(text_of(path).split()[:400]).replace("**", "")
    assert re.search(r"\bresearch use only\b", words, re.IGNORECASE), path.name


@pytest.mark.parametrize("name", ["README.md", "docs/curriculum.md", "docs/verification.md"])
def test_pages_count_the_sources_that_there_are(name):
    named = list_sources(named_only=True)
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
    assert f"{len(named)} public datasets" in text
    assert f"{len(list_sources()) - len(named)} generic layouts" in text
    shown = sum(source.card.verified for source in named)
    assert name != "docs/verification.md" or f"{shown} of which a public source shows" in text
