"""The application as a server: what a client gets, what it never fetches or logs, and what is left when it ends."""

import os
import signal
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.hub_cards.ui import uploads
from tests.hub_cards.ui.running import program
from unimedvl.checkpoint.dicom_capture import read_dicom_capture
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.hub_cards.ui.application import running

pytestmark = pytest.mark.medium


@pytest.fixture
def client(server: str, tmp_path: Path) -> Client:
    return Client(server, verbose=False, download_files=str(tmp_path / "downloads"))


def test_a_client_does_what_a_page_does(client, tmp_path):
    file = uploads.dicom(tmp_path / "scan.dcm")
    assert client.predict([handle_file(file)], api_name="/add_images")[2].startswith("DICOM · 128 x 128")
    looked = client.predict(None, 0, 0, "Bone", 40, 400, api_name="/look")
    assert "window 400 / 1800" in looked[2]
    job = client.submit("What imaging modality is this?", 8, 0, api_name="/ask")
    chat, _ = job.result()
    assert [turn["role"] for turn in chat] == ["user", "user", "assistant"] and len(job.outputs()) >= 2
    gallery, files, _ = client.predict("a scan", "t2i", 1, "7", "2", "", "", True, api_name="/generate")
    assert read_provenance(files[0]) == read_dicom_capture(files[1])
    # What the page shows is the file itself, with its record.
    assert read_provenance(gallery[0]["image"])["seed"] == 7
    pair, _, _ = client.predict("Sharpen it.", "edit", "", "2", "", "", False, api_name="/edit")
    assert Image.open(pair[0]).size == Image.open(pair[1]).size
    overlay, words, *_ = client.predict("Mark it.", "segmentation", None, 0.5, "", "", "", "", api_name="/segment")
    assert read_provenance(overlay)["ai_generated"] and "mask covers" in words


def test_nothing_that_a_page_shows_lies_where_old_uploads_are_deleted(client, place, tmp_path):
    client.predict([handle_file(uploads.png(tmp_path / "a.png"))], api_name="/add_images")
    client.predict("What is it?", 8, 0, api_name="/ask")
    client.predict("a scan", "t2i", 1, "7", "2", "", "", True, api_name="/generate")
    client.predict("Mark it.", "segmentation", None, 0.5, "", "2", "", "", api_name="/segment")
    client.predict("Draw.", "Text, then image", "1", 8, api_name="/converse")
    (root,) = place.glob("unimedvl-ui-*")
    # Chat, gallery and slider show files of the session itself. Gradio names an upload by an empty file.
    outside = [path for path in root.rglob("*") if path.is_file() and root / "sessions" not in path.parents]
    assert sum(path.stat().st_size for path in outside) == 0


def test_stop_reaches_a_request_that_waits(server, client):
    other = Client(server, verbose=False, download_files=False)
    running = other.submit("a scan", "t2i", 4, "1", "200", "", "", False, api_name="/generate")
    deadline = time.monotonic() + 30
    while not running.outputs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running.outputs() and not running.done()
    waiting = client.submit("a scan", "t2i", 1, "1", "200", "", "", False, api_name="/generate")
    time.sleep(1)
    assert not running.done() and not waiting.outputs()
    client.predict(api_name="/stop")
    other.predict(api_name="/stop")
    assert waiting.result(timeout=60)[-1] == "Stopped." and len(waiting.outputs()) == 1
    again = client.predict("a scan", "t2i", 1, "1", "2", "", "", False, api_name="/generate")
    assert "seed 1" in again[-1]


def test_only_pages_of_the_application_ask_it(server):
    config = f"{server}gradio_api/info"
    assert httpx.get(config).status_code == 200
    for host in ("evil.example:80", "127.0.0.1.evil.example", "", "[::1", "evil.example@evil.example"):
        answer = httpx.get(config, headers={"Host": host})
        assert answer.status_code in (400, 421), host
    port = server.rstrip("/").rpartition(":")[2]
    assert httpx.get(config, headers={"Host": f"localhost:{port}"}).status_code == 200
    file = {"files": ("a.png", b"x")}
    for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example", "http://["):
        assert httpx.post(f"{server}gradio_api/upload", files=file, headers={"Origin": origin}).status_code == 403
    own = httpx.post(f"{server}gradio_api/upload", files=file, headers={"Origin": server.rstrip("/")})
    assert own.status_code == 200


def test_requests_without_measure_are_refused(server):
    join = f"{server}gradio_api/queue/join"
    assert httpx.post(join, content=b"x" * (2 << 20)).status_code == 413
    assert httpx.post(join, content=iter([b"{}"])).status_code == 411


def test_uploads_beyond_the_room_of_all_are_a_sentence(nano, place, monkeypatch):
    monkeypatch.setattr("unimedvl.hub_cards.ui.room.TOTAL_BYTES", 10_000)
    monkeypatch.setattr("unimedvl.hub_cards.ui.room.MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with running(nano) as url:
        answers = [
            httpx.post(f"{url}gradio_api/upload", files={"files": (f"{number}.png", bytes(3000))})
            for number in range(5)
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 507, 507]
    assert "when others have left" in answers[-1].text


def test_two_clients_do_not_share_images(server, client, tmp_path):
    client.predict([handle_file(uploads.png(tmp_path / "mine.png"))], api_name="/add_images")
    other = Client(server, verbose=False, download_files=False)
    assert "No image" in other.predict(None, 0, 0, "As stored", 40, 400, api_name="/look")[2]


def test_a_corrupt_file_is_a_sentence_without_a_trace(client, tmp_path, place):
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8b" + os.urandom(500))
    with pytest.raises(AppError) as caught:
        client.predict([handle_file(tmp_path / "bad.nii.gz")], api_name="/add_images")
    message = str(caught.value)
    assert "bad.nii.gz" in message and "Traceback" not in message and str(place) not in message


def test_no_address_is_fetched(server, client):
    fetched = {
        "path": "https://example.com/a.png",
        "url": "https://example.com/a.png",
        "meta": {"_type": "gradio.FileData"},
    }
    for name, arguments in (("/add_images", ([fetched],)), ("/compare", (fetched, 0.5))):
        with pytest.raises(AppError, match="not fetched|upload the file"):
            client.predict(*arguments, api_name=name)
    for path in ("file=https://example.com/a.png", "proxy=https://example.com/a.png", "file=http%3A//127.0.0.1/"):
        assert httpx.get(f"{server}gradio_api/{path}").status_code == 404, path


def test_files_of_the_machine_are_not_served(server, client):
    for path in ("/etc/passwd", str(Path(__file__)), "../../../etc/passwd"):
        assert httpx.get(f"{server}gradio_api/file={path}").status_code in (403, 404), path
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.predict([stolen], api_name="/add_images")


def test_a_file_above_the_limit_is_refused(nano, place, monkeypatch, tmp_path):
    monkeypatch.setattr("unimedvl.hub_cards.ui.application.MAX_UPLOAD", "1kb")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with running(nano) as url:
        answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"x" * 5000)})
    assert answer.status_code == 413


def test_the_command_logs_no_patient_no_name_and_no_words_and_leaves_nothing(tmp_path):
    secret, prompt = "Jane-Doe-portrait", "the secret words of a prompt"
    with program(tmp_path) as served:
        client = Client(served.url, verbose=False, download_files=str(tmp_path / "downloads"))
        client.predict([handle_file(uploads.dicom(tmp_path / f"{secret}.dcm"))], api_name="/add_images")
        (tmp_path / f"{secret}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + uploads.PATIENT.encode())
        with pytest.raises(AppError):
            client.predict([handle_file(tmp_path / f"{secret}.png")], api_name="/add_images")
        client.predict(prompt, 8, 0, api_name="/ask")
        with pytest.raises(AppError):
            client.predict(prompt, "no such preset", 1, "", "", "", "", False, api_name="/generate")
        assert list(served.temporary.rglob("*.dcm"))
        served.process.send_signal(signal.SIGTERM)
        code = served.process.wait(timeout=60)
        printed = served.log.read_text()
    assert code == 0, printed
    for words in (secret, uploads.PATIENT, uploads.NUMBER, prompt, "Traceback"):
        assert words not in printed, printed
    assert "research use only" in printed.lower()
    assert not [path for path in served.temporary.rglob("*") if path.is_file()]


def test_a_closed_page_leaves_nothing(server, place, tmp_path):
    client = Client(server, verbose=False, download_files=False)
    client.predict([handle_file(uploads.png(tmp_path / "gone.png"))], api_name="/add_images")
    kept = list(place.rglob("gone.png"))
    assert len(kept) == 1
    # A page holds this stream open for as long as it is there.
    with httpx.stream("GET", f"{server}gradio_api/heartbeat/{client.session_hash}", timeout=20) as heartbeat:
        next(heartbeat.iter_raw())
    deadline = time.monotonic() + 30
    while kept[0].exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not kept[0].exists()
