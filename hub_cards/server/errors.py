"""Errors in OpenAI's form, `{"error": {"message", "type", "code"}}`, with no trace of the code in them."""

import json
import logging
import traceback
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

log = logging.getLogger("unimedvl.server")

CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    421: "misdirected_request",
    429: "queue_full",
    499: "client_closed_request",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal that the client reads.

    Args:
        status: HTTP status.
        message: one sentence that the client can act on.
        code: a word for programs; by default the one of the status.
        headers: further headers of the response.
    """

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}
        self.code = code or CODES[status]

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def response(self) -> Response:
        # ASCII, as a message may quote lone surrogates, which UTF-8 has no bytes for.
        return Response(json.dumps(self.body()), self.status, self.headers, media_type="application/json")


INTERNAL = "The server met an error of its own: ask its operator to look into the log."


def report(error: BaseException) -> None:
    """Log where an unexpected error arose. Its message stays out: it may quote a prompt or a name."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " <- ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames))
    log.error("%s at %s", type(error).__name__, place)


def as_api_error(error: BaseException) -> ApiError:
    """What a client reads of an error: its sentence where the user can act on it, else none of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, " ".join(str(error).split()))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ApiError(503, "Out of memory: ask for smaller or fewer images, or a shorter text.", "out_of_memory")
    report(error)
    return ApiError(500, INTERNAL)


def describe_validation(error: RequestValidationError) -> str:
    """The first fault of a request in one sentence, without the value that was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    return f"{place}: {first['msg']}."


def answer_errors(app: FastAPI) -> None:
    """Let an application answer every error in OpenAI's form."""

    async def expected(request: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return ApiError(400, describe_validation(error)).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        status = 400 if error.status_code == 422 else error.status_code
        message = "There is no such route." if status == 404 else f"{str(error.detail).rstrip('.')}."
        return ApiError(status, message, CODES.get(status, "invalid_request"), dict(error.headers or {})).response()

    app.add_exception_handler(RequestValidationError, malformed)
    for kind in (StarletteHTTPException, HTTPException):
        app.add_exception_handler(kind, http)
    for failure in (ApiError, ValueError, MemoryError):
        app.add_exception_handler(failure, expected)
    app.add_exception_handler(Exception, expected)
