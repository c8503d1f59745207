"""The application over other models: an adapter, and a checkpoint that makes no images."""

from pathlib import Path

import gradio as gr
import pytest

from tests.adapters import write_adapter
from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.checkpoint.loading import load
from unimedvl.hub_cards.ui.drawing import Drawing
from unimedvl.hub_cards.ui.engine import Engine
from unimedvl.hub_cards.ui.page import build
from unimedvl.hub_cards.ui.sessions import Sessions
from unimedvl.hub_cards.ui.talking import Talking
from unimedvl.hub_cards.ui.tray import Tray

pytestmark = pytest.mark.medium

ME = gr.Request(session_hash="me")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_checkpoint(folder)
    # The presets of the reference are for images of 1024 pixels.
    model.generation_config.task_presets = {"t2i": {"num_inference_steps": 3, "height": 32, "width": 48}, "edit": {}}
    model.save_pretrained(folder)
    return folder


def tabs(page: gr.Blocks) -> list[str]:
    return [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]


def test_an_adapter_answers_and_draws(base, tmp_path):
    loaded = load(write_adapter(base, tmp_path / "adapter"), base=str(base), device="cpu")
    engine, sessions = Engine(loaded), Sessions(tmp_path / "root")
    *_, (shown, _) = Talking(engine, sessions).ask("What is this?", 8, 0, ME)
    assert shown[-1]["role"] == "assistant"
    *_, (gallery, files, line) = Drawing(engine, sessions).generate("a scan", "t2i", 1, "1", "", "", "", True, ME)
    assert len(gallery) == 1 and len(files) == 2 and "seed 1" in line
    assert "Generate" in tabs(build(engine, sessions))


def test_previews_have_the_shape_of_the_image(base, tmp_path):
    engine, sessions = Engine(load(base, device="cpu")), Sessions(tmp_path / "root")
    Tray(sessions).add_example("Fundus photograph", ME)
    for events in (
        engine.draw("a scan", [], sessions.of("me").begin(), preset="t2i", seed=1),
        engine.draw(
            "edit it",
            [sessions.of("me").image(sessions.of("me").sources[0])],
            sessions.of("me").begin(),
            preset="edit",
            seed=1,
            num_inference_steps=3,
        ),
    ):
        *steps, drawn = events
        sizes = {image.size for step in steps for image in step.previews}
        assert sizes == {drawn.images[0].size}


def test_a_checkpoint_that_only_understands_has_no_tabs_for_images(base, tmp_path):
    loaded = load(base, device="cpu", understanding_only=True)
    page = build(Engine(loaded), Sessions(tmp_path / "root"))
    assert tabs(page) == ["Ask", "Report"]


def test_a_checkpoint_without_a_preset_for_masks_offers_its_others(base, tmp_path):
    assert "Segment" in tabs(build(Engine(load(base, device="cpu")), Sessions(tmp_path / "root")))
