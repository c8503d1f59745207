"""The application as a server: what a client gets, what it never fetches or logs, and what is left when it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.hub_cards.ui import uploads
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


# Answers, is used, and ends as the shell asks it to. Everything it prints comes back.
PROGRAM = """
import sys
from unimedvl.commands.main import main
sys.exit(main(["ui", "--device", "cpu"]))
"""


def test_the_command_logs_no_patient_no_name_and_no_words_and_leaves_nothing(tmp_path):
    secret, prompt = "Jane-Doe-portrait", "the secret words of a prompt"
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    printed = ""
    try:
        assert program.stdout is not None
        while "http" not in printed:
            line = program.stdout.readline()
            assert line, printed
            printed += line
        url = printed[printed.index("http") :].split()[0]
        client = Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
        client.predict([handle_file(uploads.dicom(tmp_path / f"{secret}.dcm"))], api_name="/add_images")
        (tmp_path / f"{secret}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + uploads.PATIENT.encode())
        with pytest.raises(AppError):
            client.predict([handle_file(tmp_path / f"{secret}.png")], api_name="/add_images")
        client.predict(prompt, 8, 0, api_name="/ask")
        with pytest.raises(AppError):
            client.predict(prompt, "no such preset", 1, "", "", "", "", False, api_name="/generate")
        assert list((tmp_path / "tmp").rglob("*.dcm"))
        program.send_signal(signal.SIGTERM)
        rest, _ = program.communicate(timeout=60)
    finally:
        program.kill()
    printed += rest
    assert program.returncode == 0, printed
    for words in (secret, uploads.PATIENT, uploads.NUMBER, prompt, "Traceback"):
        assert words not in printed, printed
    assert "research use only" in printed.lower()
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]


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
