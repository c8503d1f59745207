"""The demonstration's page works alone, marks what is synthetic, and states the truth beside every answer."""

import base64
import contextlib
import io
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from PIL import Image

from unimedvl.checkpoint.loading import load
from unimedvl.checkpoint.provenance import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, read_provenance
from unimedvl.commands import demo
from unimedvl.commands.demonstration import (
    DRAWINGS,
    PROMPTS,
    Demonstration,
    judge_fluid,
    judge_mask,
    judge_sharpness,
)
from unimedvl.commands.shared import NOTICE
from unimedvl.hub_cards.demo_images import ASKED, BRAIN, CT, FUNDUS, MEDICAL, Question, disc_mask
from unimedvl.processing.image_processing_unimedvl import resize_image
from unimedvl.unimed5m.task_images import lower_resolution
from unimedvl.utils.command_line import run_module

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[3]
EDITS = 3


class Page(HTMLParser):
    """Images with what is written below them, links, and all text in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.terms: list[list[str]] = []
        self.text = ""
        self.text_before_images = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if tag == "img":
            self.text_before_images = self.text_before_images or self.text
            self.images.append({**values, "caption": ""})
        if "href" in values:
            self.links.append(values["href"])
        if tag == "dt":
            self.terms.append([""])
        elif tag == "dd":
            self.terms[-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "style":
            return
        self.text += data
        if self.terms:
            self.terms[-1][-1] += data
        if self.images:
            self.images[-1]["caption"] += data

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")


def file_of(image: dict[str, str], folder: Path) -> Path:
    """The PNG file inside the page."""
    path = folder / "embedded.png"
    path.write_bytes(base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory, checkpoint) -> tuple[Path, Page, str]:
    """Folder, page and printed lines of a run with a random model."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        demo.main(str(folder), model=str(checkpoint), seed=5)
    return folder, Page((folder / demo.PAGE).read_text(encoding="utf-8")), printed.getvalue()


def test_the_page_needs_nothing_else(written):
    folder, page, _ = written
    source = (folder / demo.PAGE).read_text(encoding="utf-8")
    assert {"script", "link", "iframe"}.isdisjoint(page.tags) and "url(" not in source
    assert page.links == [demo.SHEET] and (folder / demo.SHEET).is_file()
    assert 'name="viewport"' in source and "prefers-color-scheme: dark" in source
    for tag in ("article", "div", "figure", "dl", "footer", "h2", "h3"):
        assert page.tags.count(tag) == page.tags.count(f"/{tag}") > 0
    assert NOTICE in page.text_before_images


def test_every_image_has_words_and_every_generated_one_its_record(written, tmp_path):
    folder, page, _ = written
    alternatives = [image["alt"] for image in page.images]
    assert len(set(alternatives)) == len(alternatives) and all(alternatives)
    synthetic = [image for image in page.images if image["caption"].startswith("synthetic")]
    assert len(synthetic) == len(PROMPTS) * DRAWINGS + EDITS
    kept = {path.read_bytes() for path in folder.glob("generated-*.png")}
    assert kept == {file_of(image, tmp_path).read_bytes() for image in synthetic}
    for image in page.images:
        path = file_of(image, tmp_path)
        if image in synthetic:
            record = read_provenance(path)
            assert record["synthetic"] is True and record["model"] == "tiny" and record["prompt"] in page.text
            assert record["digital_source_type"] == DIGITAL_SOURCE_TYPE and image["alt"].startswith("synthetic")
        else:
            with pytest.raises(ValueError, match="no unimedvl record"):
                read_provenance(path)
    edited = [read_provenance(path) for path in folder.glob("generated-*.png")]
    assert sum(bool(record["input_sha256"]) for record in edited) == EDITS
    assert read_provenance(folder / demo.SHEET)["digital_source_type"] == COMPOSITE_SOURCE_TYPE


def test_questions_answers_and_truths_stand_together(written):
    _, page, printed = written
    asked = [(image, question) for image in ASKED for question in image.questions]
    for (image, question), (term, answer, truth, verdict) in zip(asked, page.terms, strict=False):
        assert term.strip() == question.text and truth.strip() == f"Truth: {question.truth}"
        assert answer.startswith("Answer: ") and verdict.strip().split()[0] in ("Right", "Wrong")
        assert f"{image.name}: {question.text} -> " in printed
    stated = {image.questions[0].truth for image in ASKED}
    assert len(stated) == len(ASKED) == len(MEDICAL) + 1
    closed = [image.questions[1].truth for image in ASKED]
    assert closed.count("yes") == closed.count("no")
    named = re.search(r"(\d) of 5 modalities", page.text)
    right = sum(
        f"{image.name}: {image.questions[0].text} -> {image.questions[0].truth} (right)" in printed
        for image in MEDICAL
    )
    assert named is not None and int(named[1]) == right


def test_the_foot_says_how_it_was_made(written):
    _, page, _ = written
    foot = page.text[page.text.index("The same images on one sheet") :]
    for name in ("Model", "Revision", "Seed", "Device", "Versions", "Time", "Settings of t2i", "num_inference_steps"):
        assert name in foot
    assert re.search(r"Seed\s*5\b", foot) and "processor time" in foot


def test_an_answer_is_right_where_it_is_the_truth(loaded, tmp_path):
    shown = Demonstration(loaded, tmp_path, 0)
    image = FUNDUS.open()
    (first,) = shown.answers((Question("What is this?", "a truth that it does not say"),), image)
    assert not first.right
    again = shown.answers((Question("What is this?", first.answer), Question("What is this?", "yes")), image)
    assert [found.right for found in again] == [True, False]
    assert {found.answer for found in again} == {first.answer}


def test_a_seed_repeats_its_drawings(loaded, tmp_path):
    def drawn(seed):
        return [figure.image.tobytes() for figure in Demonstration(loaded, tmp_path, seed).drawings("OCT")]

    first = drawn(3)
    assert first == drawn(3) and len(set(first)) == DRAWINGS
    assert drawn(4)[0] == first[1]


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (120, 88)])
def test_the_disc_is_where_the_fundus_is_brightest(size):
    mask = disc_mask(size)
    assert mask.shape == size[::-1]
    assert mask.mean() == pytest.approx(math.pi * 0.0666 * 0.0702, rel=0.1)
    levels = numpy.asarray(FUNDUS.open().convert("L").resize(size), dtype=float)
    eye = levels > 25
    assert levels[mask].mean() > levels[eye & ~mask].mean() + 40
    assert levels[mask].mean() > numpy.quantile(levels[eye], 0.95)


def test_the_truth_succeeds_and_the_input_fails():
    disc = Image.fromarray(disc_mask((96, 96)).astype(numpy.uint8) * 255)
    assert judge_mask(disc, disc)[1] and judge_mask(disc.resize((48, 48)), disc)[1]
    assert not judge_mask(disc.transpose(Image.Transpose.FLIP_LEFT_RIGHT), disc)[1]
    truth = resize_image(CT.open(), {"max_image_size": 96, "min_image_size": 96, "image_stride": 8})
    bicubic = Image.fromarray(lower_resolution(numpy.asarray(truth), 4, "bicubic"))
    halfway = Image.blend(bicubic, truth, 0.5)
    assert judge_sharpness(truth, bicubic, truth)[1] and judge_sharpness(halfway, bicubic, truth)[1]
    assert not judge_sharpness(bicubic, bicubic, truth)[1]
    brain = BRAIN.open()
    dark_fluid = Image.fromarray(255 - numpy.asarray(brain))
    assert judge_fluid(brain, dark_fluid)[1]
    noise = numpy.random.default_rng(0).integers(0, 256, (*brain.size[::-1], 3), dtype=numpy.uint8)
    for other in (brain, brain.resize((64, 48)), Image.new("RGB", brain.size), Image.fromarray(noise)):
        assert not judge_fluid(brain, other)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "file"], "choose another --out"),
        (["--out", "file/below"], "choose another --out"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--seed", "one"], "--seed"),
        (["--model", "nowhere"], "nowhere"),
        (["--device", "mars"], "mars"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run_module(demo.main, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_model_that_only_answers_is_refused(checkpoint, tmp_path, capsys):
    model, processor, _ = load(checkpoint, understanding_only=True)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "reader")
    assert run_module(demo.main, ["--model", str(tmp_path / "reader"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'reader' makes no images" in line


def test_the_command_on_the_nano(tmp_path):
    """As `make demo` calls it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "unimedvl.commands.demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert NOTICE in done.stdout and "demo/index.html" in done.stdout
    page = Page((tmp_path / "demo" / demo.PAGE).read_text(encoding="utf-8"))
    seconds = re.search(r"([\d.]+) s of processor time", page.text)
    assert seconds is not None and float(seconds[1]) < 90
    assert "unimedvl-nano" in page.text
