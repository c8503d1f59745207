"""What the tabs answer, without a browser: in pieces, as the command answers, with provenance, and stoppable."""

import json
import time
from itertools import product
from pathlib import Path

import gradio as gr
import nibabel
import numpy
import pytest
from PIL import Image
from starlette.requests import Request

from tests.hub_cards.ui import uploads
from unimedvl.checkpoint.dicom_capture import read_dicom_capture
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.commands.main import main
from unimedvl.evaluation.metrics.masks import read_mask
from unimedvl.hub_cards.ui.door import arrival
from unimedvl.hub_cards.ui.drawing import Drawing
from unimedvl.hub_cards.ui.engine import Drawn, Engine, Progress
from unimedvl.hub_cards.ui.sessions import Sessions
from unimedvl.hub_cards.ui.talking import MAX_ATTACHED, MAX_TURNS, PLANS, Talking
from unimedvl.hub_cards.ui.tray import Tray
from unimedvl.processing.medical_formats_unimedvl import load_medical_image
from unimedvl.utils.digests import hash_file

pytestmark = pytest.mark.medium

ME = gr.Request(session_hash="me")


def waited() -> gr.Request:
    """A request of this moment, for a handler that begins later."""
    now = time.monotonic()
    return gr.Request(Request({"type": "http", "unimedvl.arrived": now}), session_hash="me")


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


def test_what_waits_for_its_turn_is_stopped_too(with_image):
    talking, drawing, request = with_image.talking, with_image.drawing, waited()
    assert arrival(request) < arrival(ME)
    talking.stop(ME)
    assert list(talking.ask("First?", 4, 0, request)) == [([], "First?")]
    assert list(talking.report("Report.", 4, request))[-1] == ("Stopped.", None)
    assert list(talking.converse("Draw.", "Text, then image", "1", 4, request)) == [([], "Draw.", None, "Stopped.")]
    sampler = ("1", "2", "", "")
    made = [
        drawing.generate("a scan", "t2i", 1, *sampler, False, request),
        drawing.edit("Sharpen it.", "edit", *sampler, False, request),
        drawing.segment("Mark it.", "segmentation", None, 0.5, *sampler, request),
    ]
    assert [list(states)[-1][-1] for states in made] == ["Stopped."] * 3
    assert not with_image.session.made and not with_image.session.asked.messages
    # What is asked for afterwards is answered.
    assert list(talking.ask("Second?", 4, 0, waited()))[-1][0][-1]["role"] == "assistant"


@pytest.mark.parametrize("tab", ["ask", "converse"])
def test_a_new_conversation_stays_new(tab, with_image):
    talking, session = with_image.talking, with_image.session

    def asked(request: gr.Request):
        if tab == "ask":
            return talking.ask("What is it?", 64, 0, request)
        return talking.converse("What is it?", "Text, then image", "1", 64, request)

    def turns() -> int:
        return len((session.asked if tab == "ask" else session.interleaved).messages)

    forget = talking.forget_asked if tab == "ask" else talking.forget_interleaved
    answer = asked(ME)
    next(answer)
    next(answer)
    assert forget(ME) == []
    rest = list(answer)
    assert rest[-1][0] == [] and turns() == 0
    # What waited while the conversation ended is no part of the next one.
    request = waited()
    forget(ME)
    assert list(asked(request))[-1][0] == [] and turns() == 0
    list(asked(waited()))
    assert turns() == 2


def test_a_conversation_has_an_end(with_image, tmp_path):
    ask, session = with_image.talking.ask, with_image.session
    with_image.tray.add([uploads.cached(tmp_path, uploads.nifti(tmp_path / "a.nii", (10, 12, 40)))], ME)
    for index in range(MAX_ATTACHED - 1):
        with_image.tray.look("axial", index, None, "As stored", None, None, ME)
        list(ask("And this?", 1, 0, ME))
    images = [item["image"] for turn in session.asked.messages for item in turn["content"] if item["type"] == "image"]
    # Images lie on disk, where they count, and not in memory.
    assert len(images) == MAX_ATTACHED and all(Path(image).is_relative_to(session.folder) for image in images)
    with_image.tray.look("axial", 39, None, "As stored", None, None, ME)
    with pytest.raises(gr.Error, match="begin a new one"):
        list(ask("And this?", 1, 0, ME))
    while session.sources:
        with_image.tray.remove(ME)
    for _ in range(MAX_TURNS - MAX_ATTACHED + 1):
        list(ask("And?", 1, 0, ME))
    with pytest.raises(gr.Error, match="turns: begin a new one"):
        list(ask("And?", 1, 0, ME))
    assert len(session.asked.messages) == 2 * MAX_TURNS
    with_image.talking.forget_asked(ME)
    list(ask("And?", 1, 0, ME))


def test_a_report_names_the_images_that_it_was_written_from(with_image):
    digest = with_image.session.sources[0].digest
    report = with_image.talking.report("Report.", 8, ME)
    next(report)
    with_image.tray.remove(ME)
    *_, (_, (file,)) = report
    record = json.loads(Path(file).read_text().splitlines()[-1])
    assert record["input_sha256"] == [digest]


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
    last = previews[-1][0][0]
    assert read_provenance(last)["settings"]["preview_after_steps"] == 5
    gallery, files, line = states[-1]
    assert "seed 3" in line and len(gallery) == 2 and len(files) == 4
    command = ["generate", "a chest X-ray", "--seed", "3", "--steps", "6", "--num-images", "2", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "made.png")]) == 0
    for number in (1, 2):
        png, dicom = files[2 * number - 2 : 2 * number]
        expected = tmp_path / f"made-{number}.png"
        assert (numpy.asarray(Image.open(png)) == numpy.asarray(Image.open(expected))).all()
        assert read_provenance(png) == read_dicom_capture(dicom) == read_provenance(expected)
        assert Image.open(last).size == Image.open(png).size


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
    preview = read_provenance(next(pair[1] for pair, _, _ in states[:-1] if isinstance(pair, tuple)))
    same = ("input_sha256", "prompt_sha256", "seed", "model")
    assert {name: preview[name] for name in same} == {name: record[name] for name in same}
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
    mask = read_provenance(files[0])
    same = ("input_sha256", "prompt_sha256", "seed", "model")
    assert {name: record[name] for name in same} == {name: mask[name] for name in same}
    assert record["settings"] == {"preset": "segmentation", "opacity": 0.5}
    assert mask["input_sha256"] == [with_image.session.sources[0].digest]
    plain = Image.open(with_image.drawing.overlay(0, ME))
    assert (numpy.asarray(plain) == numpy.asarray(Image.open(tmp_path / "image.png"))).all()
    levels = numpy.asarray(Image.open(files[0]).convert("RGB"), dtype=float).mean(axis=-1)
    Image.fromarray((levels > 127.5).astype(numpy.uint8) * 255).save(tmp_path / "truth.png")
    truth = uploads.cached(tmp_path, tmp_path / "truth.png")
    _, words, field = with_image.drawing.compare(truth, 0.5, ME)
    assert "Dice 1.000" in words and field is None and not Path(truth).exists()


def test_a_true_volume_is_compared_where_the_mask_was_made(page, tmp_path):
    scan = uploads.nifti(tmp_path / "scan.nii", (64, 64, 12))
    page.tray.add([uploads.cached(tmp_path, scan)], ME)
    page.tray.look("axial", 3, None, "As stored", None, None, ME)
    *_, (_, _, files, _, _) = page.drawing.segment("Mark it.", "segmentation", None, 0.5, "1", "4", "", "", ME)
    mask = read_mask(Image.open(files[0]), (64, 64))
    assert 0.01 < mask.mean() < 0.99
    for turned, flip, flop in product((False, True), repeat=3):
        voxels = numpy.zeros((64, 64, 12), dtype=numpy.uint8)
        voxels[..., 3] = (mask.T if turned else mask)[:: -1 if flip else 1, :: -1 if flop else 1]
        nibabel.save(nibabel.Nifti1Image(voxels, numpy.eye(4)), tmp_path / "truth.nii")
        drawn = numpy.asarray(load_medical_image(tmp_path / "truth.nii", plane="axial", slice_index=3)) > 127
        if (drawn == mask).all():
            break
    else:
        pytest.fail("no orientation of the volume shows the mask")
    for name, index in (("same", 3), ("moved", 10)):
        page.tray.look("axial", index, None, "As stored", None, None, ME)
        truth = uploads.cached(tmp_path / name, tmp_path / "truth.nii")
        _, words, _ = page.drawing.compare(truth, 0.5, ME)
        assert "Dice 1.000" in words, (name, words)
    # Also after the image was removed.
    page.tray.remove(ME)
    _, words, _ = page.drawing.compare(uploads.cached(tmp_path / "gone", tmp_path / "truth.nii"), 0.5, ME)
    assert "Dice 1.000" in words


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
    # The model still sees an image that was removed, and the record says so.
    with_image.tray.remove(ME)
    *_, (_, _, files, _) = with_image.talking.converse("And last?", plan, "2", 6, ME)
    assert read_provenance(files[0])["input_sha256"] == record["input_sha256"] != []
