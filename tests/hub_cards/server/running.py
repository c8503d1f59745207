"""A server in a process of its own, its clients, and what they send."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from PIL import Image

from unimedvl.checkpoint.folder import NANO_DIRECTORY

MODEL = NANO_DIRECTORY.name
QUESTION = "What kind of image is this?"
START_SECONDS = 240
KEY = "a-key-of-the-tests"  # pragma: allowlist secret


def shades(size: tuple[int, int] = (72, 60)) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert("RGB")


def png_bytes(image: Image.Image | None = None) -> bytes:
    stream = io.BytesIO()
    (image or shades()).save(stream, "PNG")
    return stream.getvalue()


def data_uri(content: bytes | None = None, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(content or png_bytes()).decode()


def conversation(text: str = QUESTION, *addresses: str) -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Running:
    """A server that answers.

    Attributes:
        process: its process.
        port: where it listens on 127.0.0.1.
        log: the file with what it wrote.
        key: the key that it asks for.
    """

    process: subprocess.Popen
    port: int
    log: Path
    key: str | None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, key: str | None = None, timeout: float = 120) -> OpenAI:
        """The official client, without retries."""
        return OpenAI(base_url=f"{self.address}/v1", api_key=key or self.key or "none", timeout=timeout, max_retries=0)

    def http(self, timeout: float = 120) -> httpx.Client:
        """A plain client with the key."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.address, headers=headers, timeout=timeout, trust_env=False)

    def metric(self, line_start: str) -> float:
        """The sum of the metric's lines that begin so."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(line_start))


@contextmanager
def serving(
    folder: Path,
    options: Sequence[str] = (),
    key: str | None = None,
    port: int | None = None,
    started: Callable[[subprocess.Popen], object] | None = None,
) -> Iterator[Running]:
    """`unimedvl serve` with the shipped checkpoint.

    Args:
        folder: for its log.
        options: further words of its command line.
        key: given to it in the environment.
        port: where it listens; a free one by default.
        started: called with its process before it has loaded anything.
    """
    port = port or free_port()
    log = folder / f"server-{port}.log"
    environment = {name: value for name, value in os.environ.items() if name != "UNIMEDVL_API_KEY"}
    if key is not None:
        environment["UNIMEDVL_API_KEY"] = key
    command = [sys.executable, "-m", "unimedvl", "serve", "--port", str(port), "--device", "cpu", *options]
    with open(log, "a") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        if started is not None:
            started(process)
        wait_until_ready(process, port, log)
        yield Running(process, port, log, key)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen, port: int, log: Path, route: str = "ready") -> None:
    """Return once a server's route answers, which says that it takes requests; fail with its log if it ends."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{route}", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
