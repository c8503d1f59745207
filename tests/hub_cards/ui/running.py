"""The application in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 240


@dataclass
class Program:
    """An application that answers.

    Attributes:
        process: its process.
        url: where it answers.
        log: the file with what it printed.
        temporary: its folder of temporary files.
    """

    process: subprocess.Popen
    url: str
    log: Path
    temporary: Path


@contextmanager
def program(
    folder: Path, command: Sequence[str] = (sys.executable, "-m", "unimedvl", "ui", "--device", "cpu")
) -> Iterator[Program]:
    """The command at work.

    Args:
        folder: for what it prints, and for its temporary files.
        command: what is run.
    """
    temporary, log = folder / "tmp", folder / "log.txt"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "http" not in (printed := log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, printed
            time.sleep(0.2)
        yield Program(process, printed[printed.index("http") :].split()[0], log, temporary)
    finally:
        process.kill()
        process.wait()
