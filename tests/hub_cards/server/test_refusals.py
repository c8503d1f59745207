"""What a server refuses: every refusal is an error in OpenAI's form, with a sentence, and nothing about the code."""

import io
import json
import shutil
import socket
import threading
import time

import openai
import pytest

from tests.hub_cards.server.running import KEY, MODEL, Running, conversation, data_uri, png_bytes, serving, shades
from tests.unimedvl.commands import bad_files
from unimedvl.checkpoint.folder import NANO_DIRECTORY

pytestmark = pytest.mark.medium

OPTIONS = [
    *(
        "--max-body-mb",
        "1",
        "--max-images",
        "2",
        "--max-pixels",
        "20000",
        "--max-total-pixels",
        "25000",
        "--max-n",
        "2",
        "--max-prompt",
        "500",
    ),
    *("--max-tokens", "600", "--max-steps", "60", "--max-requests", "4", "--timeout", "20"),
]
CHAT, EDITS, GENERATIONS = "/v1/chat/completions", "/v1/images/edits", "/v1/images/generations"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("refusals"), OPTIONS, KEY) as running:
        yield running


def chat(content, **fields) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 2, **fields}


def image(address: str) -> dict:
    return {"type": "image_url", "image_url": {"url": address}}


def check_error(response, status: int, code: str | None = None) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert {"message", "type", "code"} <= error.keys() and error["message"].endswith((".", "file"))
    assert "Traceback" not in response.text and ".py" not in response.text
    assert code is None or error["code"] == code
    return error


LARGE = data_uri(png_bytes(shades((201, 100))))
SMALL = data_uri()
REFUSED = {
    "another model": (CHAT, chat("hi", model="gpt-4"), 404),
    "no messages": (CHAT, {"messages": []}, 400),
    "an empty text": (CHAT, chat(" "), 400),
    "a lone surrogate": (CHAT, '{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    "a tool's message": (CHAT, {"messages": [{"role": "tool", "content": "hi"}]}, 400),
    "no JSON": (CHAT, "{", 400),
    "deep JSON": (CHAT, "[" * 100_000, 400),
    "a list": (CHAT, "[]", 400),
    "not a number": (CHAT, '{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400),
    "a long prompt": (CHAT, chat("a " * 400), 400),
    "a long answer": (CHAT, chat("hi", max_tokens=601), 400),
    "a seed too large": (CHAT, chat("hi", temperature=1, seed=2**63), 400),
    "the template's arguments": (CHAT, chat("hi", chat_template_kwargs={"split_special_tokens": False}), 400),
    "the generation's configuration": (CHAT, chat("hi", generation_config='{"num_beams": 999}'), 400),
    "two answers": (CHAT, chat("hi", n=2), 400),
    "a path": (CHAT, chat([image("/etc/passwd")]), 400),
    "a file address": (CHAT, chat([image("file:///etc/passwd")]), 400),
    "an http address": (CHAT, chat([image("http://example.com/a.png")]), 400),
    "broken base64": (CHAT, chat([image("data:image/png;base64,####")]), 400),
    "no image": (CHAT, chat([image(data_uri(b"GIF89a junk"))]), 400),
    "a cut image": (CHAT, chat([image(data_uri(png_bytes()[:200]))]), 400),
    "a pickle": (CHAT, chat([image(data_uri(b"\x80\x04\x95junk"))]), 400),
    "a large image": (CHAT, chat([image(LARGE)]), 400),
    "three images": (CHAT, chat([image(SMALL)] * 3 + [{"type": "text", "text": "hi"}]), 400),
    "an unknown preset": (GENERATIONS, {"prompt": "a", "preset": "none"}, 400),
    "three new images": (GENERATIONS, {"prompt": "a", "n": 3}, 400),
    "many steps": (GENERATIONS, {"prompt": "a", "steps": 61}, 400),
    "a size that does not fit": (GENERATIONS, {"prompt": "a", "size": "63x64"}, 400),
    "a huge size": (GENERATIONS, {"prompt": "a", "size": "99999x99999"}, 400),
    "an address wanted": (GENERATIONS, {"prompt": "a", "response_format": "url"}, 400),
    "an unknown route": ("/v1/audio/speech", {}, 404),
    "a route of transformers that would unload the model": ("/reset", {}, 404),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_is_refused(server: Running, name):
    path, body, status = REFUSED[name]
    with server.http() as client:
        content = body if isinstance(body, str) else json.dumps(body)
        response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    check_error(response, status)


def test_an_upload_is_refused(server: Running):
    files = [("image", ("patient-name.png", png_bytes()))]
    with server.http() as client:
        check_error(client.post(EDITS, data={"prompt": "a"}), 400)
        check_error(client.post(EDITS, data={"prompt": "a"}, files=[("image", ("a.png", b"junk"))]), 400)
        check_error(client.post(EDITS, data={"prompt": "a"}, files=files * 3), 400)
        check_error(client.post(EDITS, data={"prompt": "a"}, files=[*files, ("mask", ("m.png", png_bytes()))]), 400)
        check_error(client.post(EDITS, data={"prompt": "a", "view": "[" * 9999}, files=files), 400)
        check_error(client.post(EDITS, data={"prompt": "a", "view": '{"window": [1, -1]}'}, files=files), 400)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        check_error(client.post(EDITS, content=b"--x\r\njunk", headers=headers), 400)


def test_only_the_key_opens(server: Running):
    for key in ("wrong", KEY[:-1], KEY + "x", "\u00e9"):
        with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
            server.openai(key).models.list()
    with server.http() as client:
        for headers in ({"Authorization": ""}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
            error = check_error(client.get("/v1/models", headers=headers), 401, "invalid_api_key")
            assert error["type"] == "authentication_error"
            check_error(client.get("/metrics", headers=headers), 401)
            check_error(client.get("/openapi.json", headers=headers), 401)
            assert client.get("/health", headers=headers).status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_a_name_of_another_host_is_refused(server: Running):
    # A web page whose host name is made to lead to this machine.
    with server.http() as client:
        check_error(client.get("/health", headers={"Host": "attacker.example"}), 421)
        for name in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80"):
            assert client.get("/health", headers={"Host": name}).status_code == 200


def test_a_page_of_another_host_is_refused(server: Running):
    # A form needs no consent of the server's: the browser sends it and says whose page it was.
    files, fields = [("image", ("a.png", png_bytes()))], {"prompt": "a", "steps": "1"}
    with server.http() as client:
        for origin in ("https://attacker.example", "null"):
            check_error(client.post(EDITS, data=fields, files=files, headers={"Origin": origin}), 403, "forbidden")
        own = {"Origin": f"http://127.0.0.1:{server.port}"}
        assert client.post(EDITS, data=fields, files=files, headers=own).status_code == 200


def test_a_body_too_large_is_refused_before_it_is_kept(server: Running):
    with server.http() as client:
        check_error(client.post(CHAT, content=b"x" * (1 << 20) + b"x"), 413, "request_too_large")
        # In chunks, without a length.
        check_error(client.post(CHAT, content=(b"x" * 65_536 for _ in range(20))), 413)
        assert client.post(CHAT, json=chat("hi")).status_code == 200


def test_large_images_are_refused_in_words_about_this_server(server: Running):
    with server.http() as client:
        error = check_error(client.post(CHAT, json=chat([image(LARGE)])), 400)
        assert "201 x 100 pixels" in error["message"] and "max_" not in error["message"]
        # Each of them is small enough.
        pair = [image(data_uri(png_bytes(shades((200, 90))))), image(data_uri(png_bytes(shades((100, 71)))))]
        error = check_error(client.post(CHAT, json=chat([*pair, {"type": "text", "text": "hi"}])), 400)
        assert "more than 25000 pixels together" in error["message"]
        text = {"type": "text", "text": "hi"}
        assert client.post(CHAT, json=chat([pair[0], image(SMALL), text])).status_code == 200


def slow_image() -> dict:
    return {"prompt": "a", "n": 2, "steps": 60, "size": "128x128"}


def busy(server: Running) -> bool:
    return server.metric("unimedvl_requests_inside") > 0


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_requests_than_the_server_takes_are_sent_away(server: Running):
    statuses, lock = [], threading.Lock()

    def send() -> None:
        with server.http() as client:
            response = client.post(GENERATIONS, json={**slow_image(), "steps": 10})
        with lock:
            statuses.append(response.status_code)
            if response.status_code == 429:
                check_error(response, 429, "queue_full")
                assert int(response.headers["retry-after"]) >= 1

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(429) >= 1 and statuses.count(200) >= 4 and len(statuses) == 10
    assert set(statuses) == {200, 429}


@pytest.mark.parametrize("path", [GENERATIONS, CHAT, "stream"])
def test_a_client_that_leaves_frees_the_device(server: Running, path):
    wait_for(lambda: not busy(server))
    body = slow_image() if path == GENERATIONS else chat("hi", max_tokens=600, min_tokens=600, stream=path == "stream")
    content = json.dumps(body).encode()
    route = GENERATIONS if path == GENERATIONS else CHAT
    head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    tokens = server.metric("unimedvl_tokens_total")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + content)
        wait_for(lambda: busy(server))
    left = time.monotonic()
    wait_for(lambda: not busy(server), 5)
    # The next request of the same kind is not behind the one that was left.
    with server.http() as client:
        small = {"prompt": "a", "steps": 1} if route == GENERATIONS else chat("hi", max_tokens=1)
        assert client.post(route, json=small).status_code == 200
    assert time.monotonic() - left < 5
    assert server.metric("unimedvl_tokens_total") - tokens < 600


def test_a_request_that_takes_too_long_ends(tmp_path):
    with serving(tmp_path, ["--timeout", "0.6", "--max-steps", "100000", "--max-tokens", "100000"]) as server:
        with server.http() as client:
            started = time.monotonic()
            body = {**slow_image(), "steps": 100_000}
            check_error(client.post(GENERATIONS, json=body), 504, "timeout")
            body = chat("hi", max_tokens=1_500, min_tokens=1_500)
            check_error(client.post(CHAT, json=body), 504, "timeout")
            # A stream has begun with status 200 and says it at its end.
            assert "time limit" in client.post(CHAT, json={**body, "stream": True}).text
            assert time.monotonic() - started < 20
            wait_for(lambda: not busy(server))
            assert client.get("/ready").status_code == 200


def test_the_log_holds_nothing_of_what_was_sent(server: Running):
    patient = "MARIA-MUSTERMANN"
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientName = patient
    stream = io.BytesIO()
    dataset.save_as(stream)
    dicom = stream.getvalue()
    cut = dicom[: len(dicom) // 2]
    client = server.openai()
    extra = {"steps": 1}
    client.chat.completions.create(model=MODEL, messages=conversation(patient, data_uri(dicom)), max_tokens=2)
    list(client.chat.completions.create(model=MODEL, messages=conversation(patient), max_tokens=2, stream=True))
    client.responses.create(model=MODEL, input=patient, max_output_tokens=2)
    client.images.generate(model=MODEL, prompt=patient, extra_body=extra)
    client.images.edit(model=MODEL, prompt=patient, image=(f"{patient}.dcm", dicom), extra_body=extra)
    for bad in (
        lambda: client.images.edit(model=MODEL, prompt=patient, image=(f"{patient}.dcm", cut)),
        lambda: client.chat.completions.create(model=patient, messages=conversation(patient)),
        lambda: client.chat.completions.create(model=MODEL, messages=conversation("x", f"/tmp/{patient}.png")),
        lambda: client.chat.completions.create(model=MODEL, messages=conversation("x", f"http://{patient}/")),
        lambda: client.get(f"/{patient}?q={patient}", cast_to=object),
    ):
        with pytest.raises(openai.APIStatusError) as raised:
            bad()
        assert "MUSTERMANN" not in raised.value.message or "/tmp" in raised.value.message
    text = server.log.read_text()
    assert "POST /v1/images/edits 200" in text and "POST /v1/images/edits 400" in text
    assert "MUSTERMANN" not in text.upper() and "Traceback" not in text and KEY not in text


@pytest.mark.parametrize("trap", [bad_files.pickled_weights, bad_files.only_pickles])
def test_a_checkpoint_of_pickles_is_not_served(tmp_path, capsys, trap):
    from unimedvl.commands.main import main

    place = tmp_path / "model"
    shutil.copytree(NANO_DIRECTORY, place, ignore=shutil.ignore_patterns("*.py", "evaluation"))
    trap(place)
    assert main(["serve", "--model", str(place)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not bad_files.spring_trap(place).exists()


def test_a_server_for_others_needs_a_key(capsys, monkeypatch):
    from unimedvl.commands.main import main

    monkeypatch.delenv("UNIMEDVL_API_KEY", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "UNIMEDVL_API_KEY" in capsys.readouterr().err
    assert main(["serve", "--api-key", " "]) == 2
    assert main(["serve", "--max-n", "0"]) == 2
    assert main(["serve", "--max-replicas", "2"]) == 2
