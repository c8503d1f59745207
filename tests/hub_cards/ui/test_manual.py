"""docs/ui.md: its commands run as written, and its numbers are those of the program."""

import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import httpx
import pytest
import typer

from tests.hub_cards.ui.running import program
from tests.hub_server import HubServer
from unimedvl.checkpoint.dicom_capture import read_dicom_capture
from unimedvl.commands.main import app
from unimedvl.hub_cards.space import write_space
from unimedvl.hub_cards.ui import application, given, page, room, sessions, talking, uploads
from unimedvl.hub_cards.ui.sources import WINDOWS

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "ui.md").read_text(encoding="utf-8")
LINES = [line.strip() for line in TEXT.splitlines() if line.startswith("    ")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret


@pytest.fixture(scope="module")
def shell(tmp_path_factory) -> dict[str, str]:
    """An environment with the installed command, of this checkout."""
    place = tmp_path_factory.mktemp("bin")
    (place / "unimedvl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unimedvl "$@"\n')
    (place / "unimedvl").chmod(0o755)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}


def test_every_line_is_run():
    set_up, start, space = LINES[:2], LINES[2], LINES[3:]
    assert set_up[0].startswith("python3 -m venv") and set_up[1] == 'pip install ".[ui,medical]"'
    assert start == "unimedvl ui"
    assert [shlex.split(line)[:2] for line in space] == [["unimedvl", "ui"], ["unimedvl", "push"]]
    assert "```" not in TEXT and "ui" in (metadata("unimedvl").get_all("Provides-Extra") or [])


@pytest.mark.medium
def test_the_first_command_prints_an_address_and_ends_at_control_c(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", shell["PATH"])
    monkeypatch.setenv("PYTHONPATH", shell["PYTHONPATH"])
    shown = re.search(r"`(http://[\d.]+):\d+/`", TEXT)
    assert shown is not None
    with program(tmp_path, shlex.split(LINES[2])) as served:
        assert re.fullmatch(re.escape(shown[1]) + r":\d{4,5}/", served.url)
        assert httpx.get(f"{served.url}config").json()["title"] == page.TITLE
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(timeout=60) == 0
        assert not any(served.temporary.iterdir())


@pytest.mark.medium
def test_the_commands_of_the_space_write_and_send_it(shell, tmp_path):
    names = {"owner/space": "tester/space", "COMMIT": COMMIT}
    with HubServer() as hub:
        environment = {**shell, **hub.environment(tmp_path / "home")}
        for line in LINES[3:]:
            words = [names.get(word, word) for word in shlex.split(line)]
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0 and done.stdout.strip(), (line, done.stderr)
        repository = hub.repositories["spaces", "tester/space"]
        sent = repository.commits[repository.refs["main"]]
    call = re.search(r"`unimedvl\.hub_cards\.space\.write_space\((.*?)\)`", TEXT)
    assert call is not None and call[1] == "folder, model_id, revision"
    for name in write_space(tmp_path / "python", "owner/name", COMMIT):
        same = (tmp_path / "python" / name).read_bytes()
        assert (tmp_path / "FOLDER" / name).read_bytes() == same and name in sent


@pytest.mark.medium
def test_generate_writes_the_same_dicom_files(shell, tmp_path):
    command = re.search(r"`(unimedvl generate --out image\.dcm)`", TEXT)
    assert command is not None
    words = [*shlex.split(command[1]), "--steps", "2", "--seed", "5", "a scan"]
    done = subprocess.run(words, cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_dicom_capture(tmp_path / "image.dcm")["seed"] == 5


def test_its_options_are_those_of_the_command():
    command = typer.main.get_command(app).commands["ui"]
    known = {name for parameter in command.params for name in parameter.opts}
    rows = [line for line in TEXT.splitlines() if line.startswith("| `--")]
    named = {name for row in rows for name in re.findall(r"--\w+", row.split("|")[1])}
    assert named == known - {"--help", "--debug"} and "127.0.0.1" in TEXT
    defaults = {parameter.name: parameter.default for parameter in command.params}
    assert defaults["host"] == "127.0.0.1" and defaults["port"] is None


def test_its_numbers_are_those_of_the_program():
    text = " ".join(TEXT.split())
    words = {4: "four", 8: "eight"}
    for name, (center, width) in WINDOWS.items():
        assert f"{name.lower()} ({center:g} / {width:g})" in text
    for said in (
        f"up to {words[uploads.MAX_SOURCES]} images",
        f"up to {application.MAX_UPLOAD.replace('mb', ' MB')} a file",
        f"up to {words[given.MAX_IMAGES]} variants",
        f"{page.QUEUE_SIZE} may wait",
        f"up to {talking.MAX_TURNS} turns and shows the model up to {talking.MAX_ATTACHED} images",
        f"At most {sessions.MAX_SESSIONS} pages",
        f"{room.PAGE_BYTES >> 30} GiB of files each and {room.TOTAL_BYTES >> 30} GiB together",
    ):
        assert said in text, said
    assert sessions.IDLE_SECONDS == 3600 and "after an hour without a request" in text
