"""Damaged uploads: each is shown or refused in one sentence, in time and memory, and says nothing of a patient."""

import logging
import mmap
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import pytest
from hypothesis import given, settings

from tests.hub_cards.ui.mutations import (
    CASE,
    MAX_BYTES,
    MAX_SECONDS,
    NAME,
    OPTIONS,
    SECRETS,
    forget_peak,
    mutated,
    peak_bytes,
)
from unimedvl.hub_cards.ui.sessions import Sessions
from unimedvl.hub_cards.ui.sources import CUSTOM
from unimedvl.hub_cards.ui.tray import TRAY, Tray

ME = gr.Request(session_hash="me")


@pytest.fixture(autouse=True)
def bounded(record_property) -> Iterator[None]:
    """All cases of a test together stay within the memory."""
    forget_peak()
    yield
    record_property("peak_bytes", peak_bytes())
    assert peak_bytes() < MAX_BYTES


def check(content: bytes, log: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        file = root / "cache" / NAME
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
    for secret in SECRETS:
        assert secret not in said, said


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


def test_the_peak_of_memory_is_seen():
    forget_peak()
    before = peak_bytes()
    # Pages of its own: what earlier tests have freed may be large enough for a bytearray.
    with mmap.mmap(-1, 200 << 20) as held:
        held.write(b"\1" * (200 << 20))
    assert peak_bytes() - before > 150 << 20
    forget_peak()
    assert peak_bytes() - before < 100 << 20
