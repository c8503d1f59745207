"""Clients that ask a server at the same time, and what became of each of their requests."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import openai

from tests.hub_cards.server.running import MODEL, Running, conversation, data_uri, png_bytes

KINDS = ("text", "image question", "stream", "response", "generation", "edit", "refused")
TOKENS = 6


@dataclass(frozen=True)
class Outcome:
    """One request.

    Attributes:
        kind: one of `KINDS`.
        status: 200, the status of a refusal, or 0 where the connection broke.
        seconds: until it was answered.
    """

    kind: str
    status: int
    seconds: float


def ask(client: openai.OpenAI, kind: str, number: int, tokens: int = TOKENS) -> None:
    """Send one request and read its answer to the end; whatever it answers has to be whole.

    Answers have all their tokens, so that a load does not depend on how much the model has to say.
    """
    chat = {"model": MODEL, "max_tokens": tokens, "extra_body": {"min_tokens": tokens}}
    extra = {"steps": 2, "seed": number}
    if kind in ("text", "image question"):
        addresses = [data_uri()] if kind == "image question" else []
        found = client.chat.completions.create(messages=conversation(f"Question {number}?", *addresses), **chat)
        assert found.choices[0].finish_reason in ("stop", "length") and found.usage.completion_tokens == tokens
    elif kind == "stream":
        chunks = list(client.chat.completions.create(messages=conversation(f"{number}?"), stream=True, **chat))
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    elif kind == "response":
        found = client.responses.create(model=MODEL, input=f"{number}?", max_output_tokens=tokens)
        assert found.status == "completed"
    elif kind == "generation":
        made = client.images.generate(model=MODEL, prompt=f"image {number}", extra_body=extra)
        assert made.data[0].b64_json.startswith("iVBOR")
    elif kind == "edit":
        made = client.images.edit(model=MODEL, prompt="brighter", image=("a.png", png_bytes()), extra_body=extra)
        assert made.data[0].b64_json.startswith("iVBOR")
    else:
        assert kind == "refused"
        client.images.generate(model=MODEL, prompt="a", size="63x63")


def run_load(
    server: Running,
    count: int,
    clients: int,
    kind_of: Callable[[int], str],
    tokens: int = TOKENS,
    timeout: float = 120,
    between: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Send `count` requests from `clients` threads, each as soon as its last one is answered.

    Args:
        kind_of: the kind of a request by its number.
        tokens: of each answer in text.
        timeout: seconds that a client waits; nothing may take so long.
        between: called with the number of every request before it is sent.

    Returns:
        What became of each request, in the order in which they ended.
    """
    outcomes: list[Outcome] = []
    failures: list[BaseException] = []
    numbers, lock = iter(range(count)), threading.Lock()

    def work() -> None:
        with server.openai(timeout=timeout) as client:
            while not failures:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                if between is not None:
                    between(number)
                kind, started, status = kind_of(number), time.monotonic(), 200
                try:
                    ask(client, kind, number, tokens)
                except openai.APIStatusError as error:
                    status = error.status_code
                except openai.APITimeoutError as error:
                    failures.append(error)
                    return
                # Also what a stream says when it ends early, and a server that is gone.
                except openai.APIError:
                    status = 0
                except Exception as error:
                    failures.append(error)
                    return
                with lock:
                    outcomes.append(Outcome(kind, status, time.monotonic() - started))
                if status == 429:
                    # As it was asked to, though for less long.
                    time.sleep(0.2)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return outcomes


def mixed(number: int) -> str:
    """All kinds in turn."""
    return KINDS[number % len(KINDS)]
