"""docs/walkthrough.md runs as written, by a new user in a new folder: no command of it is a dead end."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.running import was_printed

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
# The listing of files, then what commands print.
LISTING, *SHOWN = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("unimedvl ")]

pytestmark = pytest.mark.slow


def write_images(folder: Path, count: int = 60) -> None:
    """Fields of noise with a spot, and a table that asks whether each is bright or dark."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with open(folder / "vqa.csv", "w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(["image", "question", "answer", "group"])
        for number in range(count):
            answer = ("bright", "dark")[number % 2]
            pixels = random.integers(0, 100, (160, 160, 3)) + (150 if answer == "bright" else 0)
            x, y = random.integers(0, 120, 2)
            pixels[y : y + 40, x : x + 40] = random.integers(0, 256, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number:04}.png")
            table.writerow([f"images/{number:04}.png", "Is the field bright or dark?", answer, f"patient{number}"])


def test_every_block_is_run():
    fenced = len(BLOCKS) + 1 + len(SHOWN)
    assert TEXT.count("```") == 2 * fenced, "a fenced block is neither run nor of text"
    assert "vqa.csv" in LISTING and len(SHOWN) == 3
    others = [line for block in BLOCKS for line in block.splitlines() if line not in COMMANDS]
    assert others == ['pip install -c constraints.txt ".[medical,train,eval,data]"']
    used = [command.split()[1] for command in COMMANDS]
    assert used == ["data"] * 3 + ["train", "info", "ask", "merge", "ask", "eval", "eval", "eval", "push", "push"]


def test_a_new_user_gets_from_images_to_scores(tmp_path):
    write_images(tmp_path / "my_folder")
    place = tmp_path / "bin"
    place.mkdir()
    # The installed command, of this checkout.
    (place / "unimedvl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unimedvl "$@"\n')
    (place / "unimedvl").chmod(0o755)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    printed, said = {}, ""
    for command in COMMANDS:
        result = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, (command, result.stderr)
        assert result.stdout.strip(), command
        assert "Traceback" not in result.stderr, (command, result.stderr)
        printed[command] = result.stdout
        said += result.stdout + result.stderr
    for line in "".join(SHOWN).splitlines():
        assert was_printed(line, said), line
    with_adapter, merged = (text for command, text in printed.items() if command.startswith("unimedvl ask"))
    assert with_adapter == merged
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    results = json.loads((tmp_path / "scores" / "merged" / "results.json").read_text())
    assert results["benchmarks"]["records"]["tasks"]["vqa"]["count"] > 0
    assert "files would be sent to owner/adapter" in printed[COMMANDS[-1]]
