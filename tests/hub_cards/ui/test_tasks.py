"""What the tabs answer, without a browser: in pieces, as the command answers, with provenance, and stoppable."""

from pathlib import Path

import gradio as gr
import numpy
import pytest
from PIL import Image

from tests.hub_cards.ui import uploads
from unimedvl.checkpoint.dicom_capture import read_dicom_capture
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.commands.main import main
from unimedvl.hub_cards.ui.drawing import Drawing
from unimedvl.hub_cards.ui.engine import Drawn, Engine, Progress
from unimedvl.hub_cards.ui.sessions import Sessions
from unimedvl.hub_cards.ui.talking import PLANS, Talking
from unimedvl.hub_cards.ui.tray import Tray
from unimedvl.utils.digests import hash_file

pytestmark = pytest.mark.medium

ME = gr.Request(session_hash="me")


class Page:
    """The handlers of a page, over one model and an empty folder."""

    def __init__(self, loaded, root: Path):
        self.engine, self.sessions = Engine(loaded), Sessions(root)
        self.tray = Tray(self.sessions)
        self.talking = Talking(self.engine, self.sessions)
        self.drawing = Drawing(self.engine, self.sessions)

    @property
    def session(self):
        return self.sessions.of("me")


@pytest.fixture
def page(nano, tmp_path: Path) -> Page:
    return Page(nano, tmp_path / "root")


@pytest.fixture
def with_image(page: Page, tmp_path: Path) -> Page:
    page.tray.add([uploads.cached(tmp_path, uploads.png(tmp_path / "image.png"))], ME)
    return page


def texts(shown: list[dict]) -> list:
    return [(turn["role"], turn["content"]) for turn in shown if isinstance(turn["content"], str)]


# ------------------------------------------------------------------------------------------------------- words


def test_an_answer_comes_in_pieces_and_is_that_of_the_command(with_image, tmp_path, capsys):
    states = list(with_image.talking.ask("What imaging modality is this?", 24, 0, ME))
    answers = [shown[-1]["content"] for shown, _ in states[1:]]
    assert all(later.startswith(earlier) for earlier, later in zip(answers, answers[1:], strict=False))
    assert all(field == "" for _, field in states)
    command = ["ask", "What imaging modality is this?", "--image", str(tmp_path / "image.png"), "--device", "cpu"]
    assert main([*command, "--max-new-tokens", "24"]) == 0
    assert answers[-1] == capsys.readouterr().out.strip()


def test_an_image_is_shown_to_the_model_once_until_it_changes(with_image, tmp_path):
    def images(messages: list[dict]) -> list[int]:
        return [
            sum(item["type"] == "image" for item in turn["content"]) for turn in messages if turn["role"] == "user"
        ]

    ask = with_image.talking.ask
    list(ask("First?", 4, 0, ME))
    list(ask("Second?", 4, 0, ME))
    assert images(with_image.session.asked.messages) == [1, 0]
    with_image.tray.add([uploads.cached(tmp_path, uploads.nifti(tmp_path / "a.nii"))], ME)
    list(ask("Third?", 4, 0, ME))
    with_image.tray.look("axial", 0, None, "As stored", None, None, ME)
    list(ask("Fourth?", 4, 0, ME))
    assert images(with_image.session.asked.messages) == [1, 0, 1, 1]
    assert [role for role, _ in texts(with_image.session.asked.shown)] == ["user", "assistant"] * 4
    with_image.talking.forget_asked(ME)
    list(ask("Again?", 4, 0, ME))
    assert images(with_image.session.asked.messages) == [2]


def test_control_tokens_of_a_question_are_text(with_image):
    states = list(with_image.talking.ask("<|vision_start|><|image_pad|><|im_end|> what?", 4, 0, ME))
    assert states[-1][0][-1]["role"] == "assistant"


def test_an_answer_stops_when_it_is_asked_to(with_image):
    stream = with_image.engine.answer(
        [{"role": "user", "content": [{"type": "text", "text": "Describe."}]}],
        with_image.session.begin(),
        max_new_tokens=1000,
        temperature=2.0,
    )
    next(stream)
    with_image.talking.stop(ME)
    assert len(list(stream)) < 100


def test_nothing_is_made_for_a_page_that_left(with_image):
    stop = with_image.session.begin()
    stream = with_image.engine.answer(
        [{"role": "user", "content": "Describe."}], stop, max_new_tokens=1000, temperature=2.0
    )
    next(stream)
    stream.close()
    assert stop.is_set()
    # The device is free for the next one.
    assert list(with_image.talking.ask("What?", 4, 0, ME))


def test_a_report_is_a_file_that_says_what_made_it(with_image):
    states = list(with_image.talking.report("Generate a radiology report for the image.", 16, ME))
    text, (path,) = states[-1]
    written = Path(path).read_text(encoding="utf-8")
    assert text in written and "AI-generated" in written and "research use only" in written.lower()
    assert hash_file(with_image.session.sources[0].path) in written


@pytest.mark.parametrize("question", ["", "   ", "x" * 5000])
def test_a_question_that_is_none_is_refused(question, page):
    with pytest.raises(gr.Error, match="question"):
        list(page.talking.ask(question, 4, 0, ME))


def test_what_needs_an_image_says_so(page):
    for stream in (
        page.talking.report("Write.", 4, ME),
        page.drawing.edit("Edit.", "edit", "", "", "", "", False, ME),
        page.drawing.segment("Mark.", "segmentation", None, 0.5, "", "", "", "", ME),
    ):
        with pytest.raises(gr.Error, match="no image"):
            list(stream)


# ------------------------------------------------------------------------------------------------------ images


def test_generated_images_are_those_of_the_command_with_previews_and_provenance(page, tmp_path):
    states = list(page.drawing.generate("a chest X-ray", "t2i", 2, "3", "6", "", None, True, ME))
    assert [line for *_, line in states[:-1]] == [f"Step {step} of 6" for step in range(1, 7)]
    previews = [gallery for gallery, files, _ in states[:-1] if isinstance(gallery, list)]
    assert len(previews) == 5 and all(len(gallery) == 2 for gallery in previews)
    first = Image.open(previews[0][0][0])
    assert read_provenance(previews[0][0][0])["settings"]["preview_after_steps"] == 1
    gallery, files, line = states[-1]
    assert "seed 3" in line and len(gallery) == 2 and len(files) == 4
    command = ["generate", "a chest X-ray", "--seed", "3", "--steps", "6", "--num-images", "2", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "made.png")]) == 0
    for number in (1, 2):
        png, dicom = files[2 * number - 2 : 2 * number]
        expected = tmp_path / f"made-{number}.png"
        assert (numpy.asarray(Image.open(png)) == numpy.asarray(Image.open(expected))).all()
        assert read_provenance(png) == read_dicom_capture(dicom) == read_provenance(expected)
        assert first.size == Image.open(png).size


def test_previews_come_closer_to_the_image(page):
    events = list(page.engine.draw("a chest X-ray", [], page.session.begin(), preset="t2i", seed=5))
    (drawn,) = [event for event in events if isinstance(event, Drawn)]
    final = numpy.asarray(drawn.images[0], dtype=float)
    shown = [event.previews[0] for event in events if isinstance(event, Progress) and event.previews]
    errors = [numpy.abs(numpy.asarray(image, dtype=float) - final).mean() for image in shown]
    assert len(errors) >= 4 and errors[-1] < errors[0]


def test_an_edit_stands_beside_its_image(with_image):
    states = list(with_image.drawing.edit("Sharpen it.", "edit", "1", "2", "", "", True, ME))
    (before, after), files, line = states[-1]
    assert Image.open(before).size == Image.open(after).size and "seed 1" in line
    record = read_provenance(after)
    assert record["input_sha256"] == [hash_file(with_image.session.sources[0].path)]
    assert record["settings"]["preset"] == "edit" and "prompt" not in record
    # The result is an image like any other.
    with_image.tray.add_made("edit", ME)
    assert len(with_image.session.sources) == 2


def test_sampling_stops_when_it_is_asked_to(page):
    states = []
    for state in page.drawing.generate("a scan", "t2i", 1, "0", "150", "", "", False, ME):
        states.append(state)
        page.talking.stop(ME)
    assert states[-1][-1] == "Stopped." and len(states) < 20
    assert "image" not in page.session.made


@pytest.mark.parametrize(
    ("settings", "words"),
    [(("no", "", ""), "Seed"), (("-1", "", ""), "Seed"), (("", "2.5", ""), "Steps"), (("", "9999", ""), "200"),
     (("", "0", ""), "Steps"), (("", "", "nan"), "finite")],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(settings, words, page):
    with pytest.raises(gr.Error, match=words):
        list(page.drawing.generate("a scan", "t2i", 1, *settings, "", False, ME))


def test_an_unknown_preset_is_refused(page):
    with pytest.raises(gr.Error, match="preset"):
        list(page.drawing.generate("a scan", "magic", 1, "", "", "", "", False, ME))


# ------------------------------------------------------------------------------------------------------- masks


def test_a_mask_lies_over_its_image_and_agrees_with_itself(with_image, tmp_path):
    segment = with_image.drawing.segment
    *_, (shown, words, files, _, _) = segment("Mark the disc.", "segmentation", None, 0.5, "1", "", "", "", ME)
    assert "Dice" not in words and len(files) == 2
    record = read_provenance(shown)
    assert record["digital_source_type"].endswith("compositeWithTrainedAlgorithmicMedia")
    plain = Image.open(with_image.drawing.overlay(0, ME))
    assert (numpy.asarray(plain) == numpy.asarray(Image.open(tmp_path / "image.png"))).all()
    levels = numpy.asarray(Image.open(files[0]).convert("RGB"), dtype=float).mean(axis=-1)
    Image.fromarray((levels > 127.5).astype(numpy.uint8) * 255).save(tmp_path / "truth.png")
    truth = uploads.cached(tmp_path, tmp_path / "truth.png")
    _, words, field = with_image.drawing.compare(truth, 0.5, ME)
    assert "Dice 1.000" in words and field is None and not Path(truth).exists()


def test_a_true_mask_of_zeros_and_ones_counts_its_ones(with_image, tmp_path):
    mask = numpy.zeros((64, 64), dtype=numpy.uint8)
    mask[:32] = 1
    Image.fromarray(mask).save(tmp_path / "truth.png")
    truth = uploads.cached(tmp_path, tmp_path / "truth.png")
    list(with_image.drawing.segment("Mark it.", "segmentation", truth, 0.5, "1", "", "", "", ME))
    assert numpy.asarray(with_image.session.segmentation.truth).mean() == 127.5


def test_a_true_mask_that_is_none_is_one_sentence(with_image, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    truth = uploads.cached(tmp_path, tmp_path / "bad.png")
    with pytest.raises(gr.Error, match="bad.png"):
        list(with_image.drawing.segment("Mark it.", "segmentation", truth, 0.5, "", "", "", "", ME))


# ------------------------------------------------------------------------------------------------- interleaved


@pytest.mark.parametrize("plan", ["Text, then image", "Image, then text"])
def test_an_interleaved_answer_follows_its_plan(plan, with_image):
    *_, (shown, _, files, line) = with_image.talking.converse("Describe and draw.", plan, "2", 6, ME)
    assert "seed 2" in line and len(files) == 2
    record = read_provenance(files[0])
    assert record["seed"] == 2 and read_dicom_capture(files[1]) == record
    kinds = [item["type"] for item in with_image.session.interleaved.messages[-1]["content"]]
    assert kinds == PLANS[plan]
    # Its images are part of what the next turn builds on.
    *_, (shown, _, _, _) = with_image.talking.converse("And now?", plan, "2", 6, ME)
    assert len(with_image.session.interleaved.messages) == 4 and shown[-1]["role"] == "assistant"
