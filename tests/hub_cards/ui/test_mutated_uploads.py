"""Damaged uploads: every one is shown or refused in one sentence, in time, and says nothing of a patient."""

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.hub_cards.ui import uploads
from unimedvl.hub_cards.ui.sessions import Sessions
from unimedvl.hub_cards.ui.sources import CUSTOM
from unimedvl.hub_cards.ui.tray import TRAY, Tray

ME = gr.Request(session_hash="me")
MAX_SECONDS = 10


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    Image.fromarray(numpy.arange(400, dtype=numpy.uint16).reshape(20, 20) * 100).save(folder / "deep.tif")
    Image.radial_gradient("L").save(folder / "a.jpg")
    numpy.save(folder / "a.npy", numpy.zeros((8, 9), dtype=numpy.float32))
    paths = [
        uploads.dicom(folder / "a.dcm"),
        uploads.nifti(folder / "a.nii", (4, 5, 6)),
        uploads.nifti(folder / "a.nii.gz", (4, 5, 6)),
        uploads.png(folder / "a.png"),
        *(folder / name for name in ("deep.tif", "a.jpg", "a.npy")),
    ]
    return [path.read_bytes() for path in paths]


@st.composite
def mutations(draw) -> list[tuple[int, int, bytes]]:
    """Pieces of a file that are replaced: where (in millionths of its length), how many bytes, and by what."""
    piece = st.tuples(st.integers(0, 10**6), st.integers(0, 64), st.binary(max_size=64))
    # Headers decide most, and lie in front.
    front = st.tuples(st.integers(0, 20_000), st.integers(0, 8), st.binary(max_size=8))
    return draw(st.lists(st.one_of(piece, front), min_size=1, max_size=6))


def mutated(content: bytes, pieces: list[tuple[int, int, bytes]], length: int) -> bytes:
    for place, count, new in pieces:
        start = place * len(content) // 10**6
        content = content[:start] + new + content[start + count :]
    return content[: length * len(content) // 100]


def check(content: bytes, log: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        file = root / "cache" / "Smith-4711.bin"
        file.parent.mkdir()
        file.write_bytes(content)
        tray = Tray(Sessions(root / "root"))
        began = time.monotonic()
        try:
            state = tray.add([str(file)], ME)
            for view in (("coronal", 1, 0, "Bone", None, None), (None, 99, 9, CUSTOM, 0, 1)):
                state = tray.look(*view, ME)
            assert Path(dict(zip(TRAY, state, strict=True))["viewer"]["value"]).is_file()
        except gr.Error as error:
            message = error.message
            assert len(message.split()) > 3 and "\n" not in message and "Traceback" not in message, message
            assert str(root) not in message and "fault in the program" not in message, message
        assert time.monotonic() - began < MAX_SECONDS
    printed = capfd.readouterr()
    said = log.text + printed.out + printed.err
    for secret in (uploads.PATIENT, uploads.NUMBER, "Smith"):
        assert secret not in said, said


CASE = {"which": st.integers(0, 6), "pieces": mutations(), "length": st.sampled_from([100, 100, 100, 99, 60, 5])}
OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@pytest.mark.medium
@settings(max_examples=50, **OPTIONS)
@given(**CASE)
def test_mutated_upload(seeds, caplog, capfd, which, pieces, length):
    with caplog.at_level(logging.DEBUG):
        check(mutated(seeds[which], pieces, length), caplog, capfd)


@pytest.mark.slow
@settings(max_examples=600, **{**OPTIONS, "derandomize": False})
@given(**CASE)
def test_many_mutated_uploads(seeds, caplog, capfd, which, pieces, length):
    with caplog.at_level(logging.DEBUG):
        check(mutated(seeds[which], pieces, length), caplog, capfd)


def test_seeds_themselves_are_shown(seeds, caplog, capfd, tmp_path):
    for number, content in enumerate(seeds):
        check(content, caplog, capfd)
        file = tmp_path / f"{number}" / "seed"
        file.parent.mkdir()
        file.write_bytes(content)
        assert Tray(Sessions(tmp_path / f"root{number}")).add([str(file)], ME)[0]["visible"]
