"""Damaged uploads and requests over HTTP: the program answers each in time, keeps its memory, and shows no code."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
from tests.hub_cards.ui.running import Program, program
from unimedvl.hub_cards.ui.door import UNREADABLE
from unimedvl.hub_cards.ui.sources import CUSTOM

# Inputs of every handler that a client may call, see `page.py`.
INPUTS = {
    **{"add_images": 1, "select_image": 1, "remove_image": 0, "look": 6, "stop": 0, "new_conversation": 0},
    **{"ask": 3, "report": 2, "converse": 4, "generate": 8, "edit": 7, "segment": 8, "opacity": 1, "compare": 2},
}
VIEWS = (("coronal", 1, 0, "Bone", None, None), (None, 99, 9, CUSTOM, 0, 1))


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Program]:
    with program(tmp_path_factory.mktemp("requests")) as served:
        yield served


@pytest.fixture
def client(served, record_property) -> Iterator[httpx.Client]:
    forget_peak(served.process.pid)
    with httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60, trust_env=False) as client:
        yield client
        assert client.get("info").status_code == 200
    peak, printed = peak_bytes(served.process.pid), served.log.read_text()
    record_property("peak_bytes", peak)
    assert peak < MAX_BYTES
    for words in (*SECRETS, "Traceback"):
        assert words not in printed, printed


def call(client: httpx.Client, served: Program, name: str, data: Any) -> str:
    """What the program answers to a handler's inputs: the last event, with all that was said."""
    began = time.monotonic()
    # The standard library's words for numbers that JSON lacks reach the program, too.
    body = json.dumps({"data": data, "session_hash": "me"})
    joined = client.post(f"call/{name}", content=body, headers={"Content-Type": "application/json"})
    said = joined.text
    if joined.status_code == 200:
        said = client.get(f"call/{name}/{joined.json()['event_id']}").text
    else:
        assert joined.status_code < 500 or said == UNREADABLE, said
    assert time.monotonic() - began < MAX_SECONDS, (name, data)
    for words in ("Traceback", 'File "', "fault in the program", "site-packages"):
        assert words not in said, said
    shown = said.replace("\\/", "/")
    # Files of its own are named in answers only.
    assert str(served.temporary) not in "".join(shown.partition("event: error")[1:]), shown
    return said


def check(client: httpx.Client, served: Program, content: bytes) -> None:
    sent = client.post("upload", files={"files": (NAME, content)})
    assert sent.status_code == 200, sent.text
    file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
    said = call(client, served, "add_images", [[file]])
    if "event: complete" in said:
        for view in VIEWS:
            call(client, served, "look", list(view))
        assert "event: complete" in call(client, served, "remove_image", [])
    else:
        message = json.loads(said.rpartition("data: ")[2])["error"]
        assert len(message.split()) > 3 and "\n" not in message, message


@pytest.mark.medium
@settings(max_examples=40, **OPTIONS)
@given(**CASE)
def test_mutated_upload_over_http(served, client, seeds, which, pieces, length):
    check(client, served, mutated(seeds[which], pieces, length))


@pytest.mark.slow
@settings(max_examples=200, **{**OPTIONS, "derandomize": False})
@given(**CASE)
def test_many_mutated_uploads_over_http(served, client, seeds, which, pieces, length):
    check(client, served, mutated(seeds[which], pieces, length))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 40),
    st.sampled_from([2**63, -(2**63), 1e308, float("nan"), float("inf"), "t2i", "segmentation", "As stored", CUSTOM]),
    st.text(max_size=20),
    st.just({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}),
    st.just({"path": "x", "url": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def requests(draw) -> tuple[str, Any]:
    """A handler's name, and inputs of the right number more often than not."""
    name = draw(st.sampled_from(sorted(INPUTS)))
    count = draw(st.one_of(st.just(INPUTS[name]), st.just(INPUTS[name]), st.integers(0, 9)))
    return name, draw(st.one_of(st.lists(VALUES, min_size=count, max_size=count), VALUES))


@pytest.mark.medium
def test_every_handler_is_asked(client):
    endpoints = client.get("info").json()["named_endpoints"]
    assert {name.removeprefix("/"): len(each["parameters"]) for name, each in endpoints.items()} == INPUTS


@pytest.mark.medium
@settings(max_examples=60, **OPTIONS)
@given(request=requests())
@example(request=("add_images", float("nan")))
def test_mutated_request(served, client, request):
    call(client, served, *request)


@pytest.mark.slow
@settings(max_examples=300, **{**OPTIONS, "derandomize": False})
@given(request=requests())
def test_many_mutated_requests(served, client, request):
    call(client, served, *request)
