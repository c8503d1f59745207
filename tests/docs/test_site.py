"""The site builds without a warning, its links lead somewhere, and it asks nothing of other hosts."""

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """Links, anchors and what a browser loads by itself, of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect") and found.get("href"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path: Page(path) for path in sorted(folder.rglob("*.html")) if path.name != "404.html"}, folder


def test_links_and_anchors_lead_somewhere(site):
    pages, folder = site
    missing = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchored = parts.fragment in ("", "__skip", "__toc", "__search") or target not in pages
            if not target.is_file() or not (anchored or unquote(parts.fragment) in pages[target].anchors):
                missing.append((path.relative_to(folder).as_posix(), link))
    assert not missing
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_no_page_asks_another_host_for_anything(site):
    pages, folder = site
    outside = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert not outside
    styles = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.css"))
    assert not re.findall(r"url\(\s*['\"]?https?://", styles) and "@import url(http" not in styles


def test_every_page_of_docs_and_every_command_is_there(site):
    pages, folder = site
    for path in (ROOT / "docs").glob("*.md"):
        assert folder / f"{path.stem}.html" in pages
    commands = (folder / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in ("ask", "generate", "data build", "eval compare", "export-diffusers", "serve", "ui", "push"):
        assert f'id="{name.replace(" ", "-")}"' in commands, name
    reference = (folder / "reference" / "models.html").read_text(encoding="utf-8")
    assert "num_images_per_prompt" in reference and "timestep_shift" in reference


def test_every_page_is_linked_from_the_menu():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert re.search(rf"[: ]{re.escape(name)}$", text, re.MULTILINE), name


def test_stored_figures_are_those_that_are_drawn():
    """A change of the block rules shows in the figure of who attends to whom."""
    figures = runpy.run_path(str(ROOT / "docs" / "site" / "figures.py"))
    for name, draw in figures["DRAWN"].items():
        assert (figures["FIGURES"] / f"{name}.svg").read_text(encoding="utf-8") == draw(), name
