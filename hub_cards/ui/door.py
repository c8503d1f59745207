"""What stands before Gradio: who may ask, what is never fetched, and how much is taken in."""

import logging
import time
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from unimedvl.utils.loopback import LOOPBACK

from .room import Room

LOGGER = logging.getLogger("unimedvl.ui")
# Of a request that uploads no file; the longest prompt takes a part of it.
MAX_BODY = 1 << 20
UNREADABLE = "The program could not make anything of the request."
_ARRIVED = "unimedvl.arrived"


def hosts_of(address: str) -> tuple[str, ...] | None:
    """The names under which a server at an address is asked; None for any, where other machines reach it."""
    return LOOPBACK if address in LOOPBACK else None


def arrival(request: gr.Request) -> float:
    """When a handler's request arrived, before it waited for its turn; in the seconds of `time.monotonic`."""
    scope = {} if request.request is None else request.request.scope
    return scope.get(_ARRIVED, time.monotonic())


class Door:
    """ASGI middleware around Gradio.

    On the loopback interface only pages of the application itself may ask, so that no web page in the same browser
    reaches it through a name of its own (DNS rebinding) or by a form.

    Args:
        app: what answers the requests that are let through.
        hosts: what the headers `Host` and `Origin` may name; None for anything.
        room: for uploads.
    """

    def __init__(self, app: Any, hosts: tuple[str, ...] | None, room: Room):
        self._app, self._hosts, self._room = app, hosts, room
        self._arriving = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            # Gradio has no use for web sockets.
            if scope["type"] != "websocket":
                await self._app(scope, receive, send)
            return
        scope[_ARRIVED] = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "")
        refusal = self._refusal(scope, headers, length)
        if refusal is not None:
            await _refuse(receive, send, *refusal)
            return
        size = int(length) if length.isdecimal() else 0
        begun = False

        async def answer(message: Any) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        self._arriving += size
        try:
            await self._app(scope, receive, answer)
        # A server would log the trace, whose words may quote what was sent.
        except Exception as error:
            LOGGER.error("%s before a handler", type(error).__name__)
            if not begun:
                await _answer(send, 500, UNREADABLE)
        finally:
            self._arriving -= size

    def _refusal(self, scope: Any, headers: dict[str, str], length: str) -> tuple[int, str] | None:
        """Status and sentence for what is refused."""
        if self._hosts is not None:
            if _host(f"//{headers.get('host', '')}") not in self._hosts:
                return 421, "This application answers on its own machine only: ask it as 127.0.0.1 or localhost."
            if "origin" in headers and _host(headers["origin"]) not in self._hosts:
                return 403, "Other web pages may not use this application: open its own page."
        path = scope["path"]
        # With these Gradio would fetch an address for whoever asks.
        after = path.partition("/file=")[2] or path.partition("/proxy=")[2]
        if "://" in after or "/proxy=" in path:
            return 404, ""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return None
        if not length.isdecimal():
            return 411, "The length of the request is missing."
        if not path.rstrip("/").endswith("/upload"):
            return None if int(length) <= MAX_BODY else (413, "The request is too large.")
        try:
            self._room.check(self._arriving + int(length))
        except ValueError as error:
            return 507, str(error)
        return None


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _refuse(receive: Any, send: Any, status: int, sentence: str) -> None:
    # Browsers read no answer before they have sent everything.
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)
    await _answer(send, status, sentence)


async def _answer(send: Any, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
