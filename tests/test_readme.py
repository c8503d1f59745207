"""Every code block and every command of README.md runs as it stands, on the checkpoint that comes with the package."""

import re
import shlex
from pathlib import Path

import pytest
from skimage import data

from tests.unimedvl.commands import bad_files
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.commands import demo
from unimedvl.commands.main import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Those with a capital M, owner/name or the name of a release represent something the reader fills in.
COMMANDS = [
    line.partition("  #")[0].strip()
    for line in README.splitlines()
    if line.startswith("    unimedvl ") and not re.search(r"--model M\b|owner/name|BAGEL-7B-MoT", line)
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README names: images from scikit-image, and synthetic scans."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name, image in {"retina": data.retina, "section": data.immunohistochemistry}.items():
        Image.fromarray(image()).save(f"{name}.png")
    for name in ("a", "b"):
        bad_files.image(64).save(f"{name}.png")
    bad_files.dicom(tmp_path)
    (tmp_path / "series").mkdir()
    for index in range(13):
        bad_files.dicom(tmp_path / "series", f"{index:02}.dcm")
    bad_files.nifti(tmp_path, "brain.nii.gz", (20, 22, 100))
    return tmp_path


def test_code_blocks(workplace):
    assert README.count("```") == 2 * len(BLOCKS) > 0, "a fenced block is not run"
    names: dict = {}
    for block in BLOCKS:
        block = block.replace('"hub_cards/unimedvl-nano"', repr(str(NANO_DIRECTORY)))
        exec(compile(block, "README.md", "exec"), names)
    assert (workplace / "xray.png").is_file()
    assert names["ids"].shape[0] == 2


def test_commands(workplace, capsys):
    assert {command.split()[1] for command in COMMANDS} >= {"ask", "generate"}
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    assert read_provenance(workplace / "stained.png")["settings"]["preset"] == "virtual_staining"


def test_demonstration(workplace, capsys):
    demo.main("images")
    printed = capsys.readouterr().out
    assert all(f"{name}: {demo.QUESTION} -> " in printed for name in demo.IMAGES)
    for number, prompt in enumerate(demo.PROMPTS, start=1):
        record = read_provenance(workplace / "images" / f"generated-{number}.png")
        assert record["prompt"] == prompt and record["synthetic"] is True
