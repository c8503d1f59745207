"""Bad and mutated image files sent to a server: each is shown or refused, in bounded time and memory."""

import random
import re
import time

import psutil
import pytest

from tests.hub_cards.server.running import Running, data_uri, png_bytes, serving, shades
from tests.unimedvl.commands import bad_files

PATIENT = ("JANE", "4711")
# What a line of the log ends with: milliseconds and the request's random id, in which a number may occur.
ENDING = re.compile(r" \d+ ms [0-9a-f]{32}$")
MOST_SECONDS, MOST_BYTES = 10.0, 4 << 30
BAD = [
    *(bad_files.empty_file, bad_files.truncated_png, bad_files.truncated_jpeg, bad_files.damaged_png),
    *(
        bad_files.png_bomb,
        bad_files.zip_bomb,
        bad_files.gzip_bomb,
        bad_files.text_as_png,
        bad_files.pdf,
        bad_files.svg,
    ),
    *(bad_files.video, bad_files.postscript, bad_files.pickled_image, bad_files.object_array, bad_files.nan_array),
    *(bad_files.truncated_nifti, bad_files.dicom_report, bad_files.truncated_dicom),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("bad-files")) as running:
        yield running


def ask(client, content: bytes):
    image = {"type": "image_url", "image_url": data_uri(content, "application/octet-stream")}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    return client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})


@pytest.mark.medium
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_bad_file_is_refused_in_a_sentence(server: Running, tmp_path, make):
    content = make(tmp_path).read_bytes()
    with server.http() as client:
        # An empty data URI has no content to send.
        response = ask(client, content) if content else None
        upload = client.post("/v1/images/edits", data={"prompt": "a"}, files=[("image", ("a", content))])
    for refused in filter(None, (response, upload)):
        assert refused.status_code == 400, refused.text
        message = refused.json()["error"]["message"]
        assert len(message) > 20 and "Traceback" not in message and "/" not in message.replace("http(s)", "")


def originals(folder) -> list[bytes]:
    made = [bad_files.nifti(folder), bad_files.dicom(folder)]
    kinds = [bad_files.encoded(shades(), kind) for kind in ("JPEG", "TIFF", "GIF")]
    return [png_bytes(), *kinds, *(path.read_bytes() for path in made)]


def mutated(content: bytes, choose: random.Random) -> bytes:
    """A few bytes changed, a part repeated, removed or zeroed, mostly near the start, where headers are."""
    changed = bytearray(content)
    for _ in range(choose.randint(1, 6)):
        place = min(int(choose.expovariate(4 / len(changed))), len(changed) - 1)
        length = choose.randint(1, 16)
        kind = choose.randrange(4)
        if kind == 0:
            changed[place : place + length] = choose.randbytes(length)
        elif kind == 1:
            changed[place : place + length] = bytes(length)
        elif kind == 2 and len(changed) > 2 * length:
            del changed[place : place + length]
        else:
            changed[place:place] = changed[place : place + length]
    return bytes(changed)


def names_a_patient(line: str) -> bool:
    return any(word in ENDING.sub("", line).upper() for word in PATIENT)


def test_a_patient_in_the_log_would_be_seen():
    line = "2030-01-02 03:04:05,678 INFO POST /v1/chat/completions 200 4711 ms " + "4711" * 8
    assert not names_a_patient(line)
    assert names_a_patient(line.replace("chat", "Jane")) and names_a_patient(f"{line} 4711")
    assert names_a_patient("2030-01-02 03:04:05,678 ERROR ValueError: patient 4711")


def check_mutations(server: Running, folder, count: int) -> None:
    sources, choose, statuses = originals(folder), random.Random(0), []
    process, most_bytes, most_seconds = psutil.Process(server.process.pid), 0, 0.0
    with server.http(timeout=60) as client:
        for number in range(count):
            content = mutated(sources[number % len(sources)], choose)
            started = time.monotonic()
            response = ask(client, content)
            most_seconds = max(most_seconds, time.monotonic() - started)
            assert most_seconds < MOST_SECONDS
            assert response.status_code in (200, 400), response.text
            assert "Traceback" not in response.text
            statuses.append(response.status_code)
            most_bytes = max(most_bytes, process.memory_info().rss)
            assert most_bytes < MOST_BYTES
    shown = statuses.count(200)
    print(
        f"{count} files: {shown} shown, {count - shown} refused, at most {most_seconds:.1f} s, {most_bytes >> 20} MiB"
    )
    assert {200, 400} <= set(statuses)
    log = server.log.read_text()
    assert " ERROR " not in log and "Traceback" not in log
    lines = log.splitlines()
    assert sum(ENDING.search(line) is not None for line in lines) >= count
    assert not any(map(names_a_patient, lines))


@pytest.mark.medium
def test_mutated_files_are_shown_or_refused(server, tmp_path):
    check_mutations(server, tmp_path, 60)


@pytest.mark.slow
def test_a_thousand_mutated_files_are_shown_or_refused(server, tmp_path):
    check_mutations(server, tmp_path, 1_000)
