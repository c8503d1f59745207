"""The notebooks of docs/notebooks run as they are, in an empty folder and without a network."""

import base64
import getpass
import importlib.util
import io
import re
import sys
import types
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.test_words import BANNED, says

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra dev")
for package in ("nbclient", "nbconvert", "ipykernel", "matplotlib"):
    pytest.importorskip(package, reason="the notebooks need the extra dev")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("ask-and-draw", "build-and-check-data", "lora-in-five-minutes")
IMAGES = {"ask-and-draw": 4, "build-and-check-data": 4, "lora-in-five-minutes": 1}


def module_at(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def execute() -> types.ModuleType:
    return module_at(FOLDER / "execute.py")


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook, stream: str) -> str:
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def shown_images(notebook) -> list[numpy.ndarray]:
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    encoded = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [numpy.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L")) for content in encoded]


def names_of_the_machine(notebook) -> list[str]:
    """Paths of this machine, its user and addresses of objects, in what the cells put out."""
    outputs = [str(dict(output)) for cell in code(notebook) for output in cell.get("outputs", [])]
    text = re.sub(r"'image/\w+': '[^']*'", "", "\n".join(outputs))
    named = [name for name in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", "/tmp/") if name in text]
    named += re.findall(r"\b0x[0-9A-Fa-f]{6,}", text)
    user = getpass.getuser()
    return named + re.findall(rf"(?:home|Users|user)\W+{re.escape(user)}\b", text)


def run(name: str, execute: types.ModuleType, folder: Path):
    """A notebook after a run that printed no warning and named nothing of the machine."""
    notebook = execute.executed(FOLDER / f"{name}.ipynb", folder)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not printed(notebook, "stderr")
    assert not names_of_the_machine(notebook)
    images = shown_images(notebook)
    assert len(images) == IMAGES[name]
    assert all(image.std() > 10 for image in images), "an image is empty"
    return notebook


@pytest.mark.medium
def test_ask_and_draw(execute, tmp_path):
    text = printed(run("ask-and-draw", execute, tmp_path), "stdout")
    for kind in ("fundus photograph", "immunohistochemistry", "MRI (DICOM)", "ultrasound (DICOM)"):
        assert re.search(rf"^{re.escape(kind)} +\w+", text, re.MULTILINE), kind
    assert "largest difference: 0 of 255" in text or "largest difference: 1 of 255" in text
    assert re.search(r"^not_for_diagnosis +True$", text, re.MULTILINE) and "AI-generated: true" in text


@pytest.mark.medium
def test_build_and_check_data(execute, tmp_path):
    text = printed(run("build-and-check-data", execute, tmp_path), "stdout")
    for reason in ("found no such file", "expected a text, found ''", "cannot be decoded", "leak_image"):
        assert reason in text, reason
    assert "21 patients, each in one split" in text
    assert "files would be sent to owner/head-phantoms" in text


@pytest.mark.medium
def test_lora_in_five_minutes(execute, tmp_path):
    text = printed(run("lora-in-five-minutes", execute, tmp_path), "stdout")
    before, after = map(int, re.findall(r"held-out fields: (\d+)% before, (\d+)% after", text)[0])
    assert after - before >= 25, "the cell that fails where nothing was learned let this pass"
    assert "reloaded: the same 100 answers" in text
    (merged,) = re.findall(r"merged: accuracy (\d+)%", text)
    assert abs(int(merged) - after) <= 1


def test_a_notebook_that_learns_nothing_fails():
    """Its own check, with accuracies that are given."""
    notebook = nbformat.read(FOLDER / "lora-in-five-minutes.ipynb", as_version=4)
    lines = [line for cell in code(notebook) for line in cell.source.splitlines()]
    (check,) = [line for line in lines if line.startswith("assert after")]
    for before, after, passes in ((0.5, 0.98, True), (0.5, 0.55, False), (0.8, 0.86, False)):
        if passes:
            exec(check, {"before": before, "after": after})
        else:
            with pytest.raises(AssertionError, match="not learned"):
                exec(check, {"before": before, "after": after})


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_committed_is_clear_or_a_whole_run(path, execute):
    assert path.stem in NAMES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == execute.METADATA and all(not cell.metadata for cell in notebook.cells)
    counts = [cell.execution_count for cell in code(notebook)]
    if any(counts) or any(cell.outputs for cell in code(notebook)):
        assert counts == list(range(1, len(counts) + 1)), "not a run from the first cell to the last"
    assert not names_of_the_machine(notebook) and not printed(notebook, "stderr")
    first = notebook.cells[0].source
    assert first.startswith("# ") and "Research use only" in first
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_words_are_those_of_the_project(path):
    lines = [line for cell in nbformat.read(path, as_version=4).cells for line in cell.source.splitlines()]
    assert not [(pattern, line) for line in lines for pattern in BANNED if says(pattern, line)]


def test_a_page_of_the_site_holds_outputs_and_no_element_without_an_end(tmp_path):
    """The table of the Trainer ends in an open paragraph, which would take the rest of the page for HTML."""
    cell = nbformat.v4.new_code_cell("trainer.train()")
    pixels = io.BytesIO()
    Image.new("L", (4, 4)).save(pixels, "PNG")
    image = base64.b64encode(pixels.getvalue()).decode()
    table = "    <table><tr><td>1</td></tr></table><p>"
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": table, "text/plain": "a table"})]
    cell.outputs.append(nbformat.v4.new_output("display_data", {"image/png": image, "text/plain": "an image"}))
    title, link = nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_markdown_cell("[other](other.ipynb)")
    path = tmp_path / "some.ipynb"
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[title, cell, link])), encoding="utf-8")
    text, images = module_at(ROOT / "docs" / "site" / "notebooks.py").page(path)
    assert text.startswith("# Title\n\n[Download this notebook](some.ipynb)\n")
    assert "\n<table><tr><td>1</td></tr></table><p></p>" in text and "[other](other.md)" in text
    ((name, content),) = images.items()
    assert content == pixels.getvalue() and name in text


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links and not [link for link in links if not (FOLDER / link.partition("#")[0]).exists()]


def test_clearing_removes_what_a_run_leaves(execute):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", execution_count=3)])
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="/home/someone/file")]
    notebook.cells[0].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    cleared = execute.cleared(notebook)
    assert not cleared.cells[0].outputs and cleared.cells[0].execution_count is None
    assert not cleared.cells[0].metadata and cleared.metadata == execute.METADATA
