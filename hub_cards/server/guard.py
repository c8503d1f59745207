"""The outermost layer of the application: who may ask, how much is read, how many at once, and what is logged."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .budget import Budget, Share, busy
from .errors import INTERNAL, ApiError, report
from .metrics import Metrics
from .settings import Settings

access = logging.getLogger("unimedvl.server.access")

# Answered without a key: they say nothing but that the server lives.
OPEN_ROUTES = ("/health", "/ready")
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Of a body that is too large, as multiples of the limit.
DROPPED_BODIES = 4
# Bodies come in parts of any size, and are kept in pieces of about this many bytes.
PIECE = 1 << 20


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key.strip()).digest()


class Guard:
    """An ASGI application around another.

    Args:
        app: what answers the requests that are let through.
        settings: the key, the hosts and the limits.
        metrics: counts requests.
        routes: the paths that are known; others are counted as one.
        ready: whether the application takes requests.
        budget: bytes of all bodies.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        metrics: Metrics,
        routes: set[str],
        ready: Callable[[], bool],
        budget: Budget,
    ):
        self.app, self.ready = app, ready
        self._settings, self._metrics, self._routes, self._budget = settings, metrics, routes, budget
        key = settings.api_key
        self._key = None if key is None else _digest(key.encode("utf-8", "surrogateescape"))
        self._inside = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, begun = time.monotonic(), 499, False
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", "")
        if REQUEST_ID.fullmatch(request_id) is None:
            request_id = secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: Any) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        counted = scope["method"] == "POST"
        try:
            self._check(scope, headers, counted)
            if counted:
                self._inside += 1
                self._metrics.inside(self._inside)
            try:
                with self._budget.share() as share:
                    if counted:
                        receive = await self._read(receive, headers, share)
                    await self.app(scope, receive, answer)
            finally:
                if counted:
                    self._inside -= 1
                    self._metrics.inside(self._inside)
        except ApiError as error:
            await error.response()(scope, receive, answer)
        # The application has answered, or cannot any more; the log keeps the place and not the words.
        except Exception as error:
            report(error)
            if not begun:
                await ApiError(500, INTERNAL).response()(scope, receive, answer)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            seconds = time.monotonic() - started
            self._metrics.answered(route, status, seconds)
            access.info("%s %s %d %.0f ms %s", scope["method"], route, status, 1000 * seconds, request_id)

    def _check(self, scope: dict[str, Any], headers: dict[str, str], counted: bool) -> None:
        hosts = self._settings.hosts
        if hosts is not None:
            if re.sub(r":\d*$", "", headers.get("host", "")) not in hosts:
                raise ApiError(421, "This server answers on its own machine only: ask it as 127.0.0.1 or localhost.")
            # Browsers say which page sends a form; without this any page could keep the device busy.
            if "origin" in headers and _origin_host(headers["origin"]) not in hosts:
                raise ApiError(403, "This server answers no web page of another host: ask it from its own machine.")
        if self._key is not None and scope["path"] not in OPEN_ROUTES:
            # Keys beyond ASCII come as UTF-8.
            scheme, _, key = headers.get("authorization", "").encode("latin-1").partition(b" ")
            # Of equal length and compared in constant time, so that no answer's delay says how much was right.
            if not (hmac.compare_digest(_digest(key), self._key) and scheme.lower() == b"bearer"):
                raise ApiError(401, "The API key is missing or wrong.", headers={"www-authenticate": "Bearer"})
        if counted and self._inside >= self._settings.limits.requests:
            raise busy()

    async def _read(self, receive: Any, headers: dict[str, str], share: Share) -> Any:
        """The whole body, within its limits of size and time, as a `receive` that gives it out."""
        limits = self._settings.limits
        length = headers.get("content-length", "")
        expected = int(length) if length.isdecimal() and len(length) < 20 else 0
        pieces: deque[bytearray] = deque()
        refusal: ApiError | None = None
        received, more = 0, True
        try:
            async with asyncio.timeout(limits.body_seconds):
                # Many clients read no answer before they have sent everything, so the rest is received and dropped.
                while more and received <= DROPPED_BODIES * limits.body_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "The client left.")
                    part = message.get("body", b"")
                    received += len(part)
                    more = message.get("more_body", False)
                    refusal = refusal or self._refusal(max(received, expected), share)
                    if refusal is not None:
                        pieces.clear()
                        share.release()
                        continue
                    if not pieces or len(pieces[-1]) >= PIECE:
                        pieces.append(bytearray())
                    pieces[-1] += part
        except TimeoutError:
            raise ApiError(408, "The request took too long to arrive: send it again.") from None
        if refusal is not None:
            raise refusal

        async def replay() -> dict[str, Any]:
            if not pieces:
                return await receive()
            # Given away, as the application makes a copy of its own.
            body = bytes(pieces.popleft())
            return {"type": "http.request", "body": body, "more_body": bool(pieces)}

        return replay

    def _refusal(self, size: int, share: Share) -> ApiError | None:
        """Why a body of so many bytes is not taken."""
        limits = self._settings.limits
        if size > limits.body_bytes:
            return ApiError(413, f"The request is larger than {limits.body_mb} MiB: send smaller images.")
        try:
            share.grow_to(size)
        except ApiError as error:
            return error
        return None


def _origin_host(origin: str) -> str:
    """The host of an `Origin` header as a `Host` header has it, without the port; empty for none."""
    try:
        netloc = urlsplit(origin).netloc
    except ValueError:
        return ""
    return re.sub(r":\d*$", "", netloc)
