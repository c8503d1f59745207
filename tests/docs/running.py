"""A folder in which a page's snippets run as a reader runs them, in the page's order."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from skimage import data

from tests.docs.snippets import ROOT, Snippet
from tests.unimedvl.commands import bad_files
from unimedvl.commands.main import main

# Folders and files of a checkout that snippets read.
CHECKOUT = ("hub_cards", "training", "constraints.txt")


def was_printed(line: str, said: str) -> bool:
    """Whether a line of what was said begins as a page shows it; `...` is any word."""
    pattern = r"\S+".join(map(re.escape, line.split("...")))
    return re.search(f"^{pattern}", said, re.MULTILINE) is not None


def write_files(folder: Path) -> None:
    """Write what README and pages name: images from scikit-image, drawn ones, and synthetic scans."""
    for name, image in {"retina": data.retina, "section": data.immunohistochemistry}.items():
        Image.fromarray(image()).save(folder / f"{name}.png")
    for name in ("a", "b", "scan"):
        bad_files.image(64).save(folder / f"{name}.png")
    bad_files.dicom(folder)
    (folder / "series").mkdir()
    for index in range(13):
        bad_files.dicom(folder / "series", f"{index:02}.dcm")
    bad_files.nifti(folder, "brain.nii.gz", (20, 22, 100))


def write_own_images(folder: Path, count: int = 40) -> None:
    """Write `captions.csv` and its images: fields of noise, bright or dark, each of a patient of its own."""
    generator = numpy.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image,caption,group"]
    for number in range(count):
        kind = ("bright", "dark")[number % 2]
        pixels = generator.integers(0, 100, (160, 160, 3)) + (150 if kind == "bright" else 0)
        Image.fromarray(pixels.astype(numpy.uint8)).save(folder / "images" / f"{number:04}.png")
        lines.append(f"images/{number:04}.png,This image shows a {kind} field.,patient{number}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Place:
    """The folder of one page.

    Attributes:
        folder: the working directory.
        stack: what ends with the page.
        names: of the page's Python blocks, which are one program.
        replaced: words of the page and what takes their place, such as a port that is free here.
        printed: what the last statement wrote to stdout.
        said: what all shell statements wrote.
    """

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder = folder
        self.stack = stack
        self.names: dict[str, Any] = {}
        self.replaced: dict[str, str] = {}
        self.printed = ""
        self.said = ""
        write_files(folder)
        write_own_images(folder / "my_folder")
        for name in CHECKOUT:
            (folder / name).symlink_to(ROOT / name)
        programs = folder / ".bin"
        programs.mkdir()
        for name, words in {"unimedvl": "-m unimedvl", "python": ""}.items():
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        self.variables = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    def run(self, snippet: Snippet, more: str = "") -> None:
        """Run a snippet in the working directory; `more` are words that make it small.

        Raises:
            AssertionError: if a statement fails.
            Exception: whatever a Python block raises.
        """
        if snippet.kind == "python":
            text = snippet.text
            for word, other in self.replaced.items():
                text = text.replace(word, other)
            exec(compile(textwrap.dedent(text), snippet.page, "exec"), self.names)
        elif snippet.kind == "assignment":
            ((name, command),) = snippet.variables
            self._shell(snippet, command)
            self.variables[name] = self.printed.strip()
        elif snippet.kind == "shell" and snippet.program == "unimedvl" and not set(snippet.words) & set("<>|"):
            self._unimedvl(snippet, more.split())
        else:
            self._shell(snippet, f"{snippet.text} {more}".strip())

    def _unimedvl(self, snippet: Snippet, more: list[str]) -> None:
        """In this process: the libraries are loaded once."""
        words = [re.sub(r"\$(\w+)", lambda name: self.variables.get(name[1], name[0]), word) for word in snippet.words]
        printed, said = io.StringIO(), io.StringIO()
        # The log's own handler holds the stderr of the first command of this process.
        log, handler = logging.getLogger("unimedvl"), logging.StreamHandler(said)
        log.addHandler(handler)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
                code = main([*words[1:], *more])
        finally:
            log.removeHandler(handler)
        self.printed = printed.getvalue()
        self.said += self.printed + said.getvalue()
        assert code == 0, f"{snippet.page}: {snippet.text}\n{said.getvalue()[-2000:]}"

    def _shell(self, snippet: Snippet, command: str) -> None:
        environment = {**os.environ, **self.variables, **dict(snippet.variables if snippet.kind == "shell" else ())}
        words = ["bash", "-c", command]
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True)
        self.printed = done.stdout
        self.said += done.stdout + done.stderr
        assert done.returncode == 0, f"{snippet.page}: {command}\n{done.stderr[-2000:]}"
