"""The application: one loaded model behind OpenAI's routes."""

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from unimedvl.checkpoint.loading import Loaded, load
from unimedvl.version import __version__

from .budget import Budget
from .chat import Chat, LoadedModel, Responses
from .errors import ApiError, answer_errors
from .guard import Guard
from .images import LANE as IMAGE_LANE
from .images import ImageRequest, ImageWorker, make_images
from .inputs import Inputs, Reading
from .lanes import LATE, Lane
from .metrics import Metrics
from .requests import MAX_SEED, ChatBody, ErrorBody, ImageBody, ImagesMade, ResponseBody, ViewFields
from .settings import Settings
from .texts import LANE as TEXT_LANE
from .texts import TextWorker
from .turns import Turns

DISCONNECT_POLL_SECONDS = 0.1
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 421, 429, 500, 503, 504)
}
EITHER = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": EITHER}}


class Server:
    """One loaded model and what answers for it.

    Args:
        loaded: the model, its processor and its checkpoint.
        settings: limits and the rest.
    """

    def __init__(self, loaded: Loaded, settings: Settings):
        self.loaded, self.settings, self.metrics = loaded, settings, Metrics()
        self.budget = Budget(settings.limits.total_bytes)
        self.inputs = Inputs(settings, loaded.processor.image_processor.max_image_pixels, self.budget)
        self.models = LoadedModel(loaded)
        limits, turns, network = settings.limits, Turns(), loaded.model
        texts = TextWorker(network, loaded.processor.tokenizer.pad_token_id, turns, self.metrics)
        images = ImageWorker(network, loaded.processor, turns, self.metrics)
        self.texts = Lane(TEXT_LANE, texts, limits.text_batch, self.metrics, limits.gather_ms / 1000)
        self.images = Lane(IMAGE_LANE, images, limits.image_batch, self.metrics)
        self.chat = Chat(self.models, self.inputs, self.texts)
        self.responses = Responses(self.models, self.inputs, self.texts)
        self.created = int(time.time())

    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.texts.alive and self.images.alive

    def stop(self) -> None:
        """Refuse what waits."""
        for lane in (self.texts, self.images):
            lane.stop()
        self.inputs.close()

    async def make(self, body: ImageBody, files: list[bytes], view: ViewFields | None) -> dict[str, Any]:
        """The images of a request.

        Args:
            body: what to make.
            files: contents of the input images.
            view: what to show of them.

        Raises:
            ApiError: for the name of another model, and beyond a limit.
            ValueError: for what the processor or the model refuses.
        """
        self.models.check_name(body.model)
        self.inputs.check_prompt(body.prompt)
        self.inputs.check_images(len(files))
        limits, n = self.settings.limits, body.n or 1
        if n > limits.n:
            raise ApiError(400, f"n: ask for at most {limits.n} images.", "too_many_images")
        if (body.steps or 0) > limits.steps:
            raise ApiError(400, f"steps: ask for at most {limits.steps}.", "too_many_steps")
        network = self.loaded.model
        settings = body.settings("edit" if files else "t2i")
        presets = getattr(network.generation_config, "task_presets", None)
        if presets and settings["preset"] not in presets:
            raise ApiError(400, f"preset: choose one of {', '.join(sorted(presets))}.")
        seed = secrets.randbelow(1 << 31) if body.seed is None else body.seed

        def prepared(reading: Reading) -> tuple[ImageRequest, Any]:
            hashes = tuple(hashlib.sha256(content).hexdigest() for content in files)
            request = ImageRequest(body.prompt, n, seed, settings, hashes)
            images = [reading.open(content, view) for content in files]
            return request, request.inputs(self.loaded.processor, images).to(network.device, dtype=network.dtype)

        request, inputs = await self.inputs.read(prepared)
        made = await make_images(self.images, request, inputs, limits.seconds)
        encoded = await self.inputs.run(request.encoded, made, self.loaded.checkpoint)
        return {
            "created": int(time.time()),
            "data": [{"b64_json": content} for content in encoded],
            "output_format": "png",
            "model": self.loaded.checkpoint.name,
            "seed": seed,
            "settings": settings,
            "synthetic": True,
            "notice": self.settings.notice,
        }


async def while_connected(request: Request, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """The result of `work`, which is cancelled when the client leaves and after `seconds`.

    Raises:
        ApiError: if the client left, or the time is over.
    """
    deadline = time.monotonic() + seconds
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=DISCONNECT_POLL_SECONDS))[0]:
            if await request.is_disconnected():
                raise ApiError(499, "The client left.")
            if time.monotonic() > deadline:
                raise ApiError(504, LATE)
        return task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def build_application(loaded: Loaded, settings: Settings) -> Guard:
    """The ASGI application of a loaded model."""
    server = Server(loaded, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.stop()

    # Their pages load scripts of other hosts.
    app = FastAPI(title="UniMedVL", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.description = settings.notice
    answer_errors(app)
    _add_texts(app, server)
    _add_images(app, server)
    _add_operation(app, server)
    paths = {str(getattr(route, "path", "")) for route in app.routes}
    return Guard(app, settings, server.metrics, paths, server.is_ready, server.budget)


def load_application(settings: Settings) -> Guard:
    """Load the model of `settings` and build its application.

    Raises:
        ValueError: if the model cannot be loaded; the message says what to do.
    """
    loaded = load(
        settings.model,
        revision=settings.revision,
        base=settings.base,
        dtype=settings.dtype,
        device=settings.device,
        quantize=settings.quantize,
    )
    return build_application(loaded, settings)


def _add_texts(app: FastAPI, server: Server) -> None:
    seconds = server.settings.limits.seconds

    @app.post("/v1/chat/completions", responses={**REFUSALS, **EVENTS}, response_class=JSONResponse)
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer a conversation with images, as one object or as a stream of events."""
        return await while_connected(request, server.chat.answer(body, request.state.request_id), seconds)

    @app.post("/v1/responses", responses={**REFUSALS, **EVENTS}, response_class=JSONResponse)
    async def responses(request: Request, body: ResponseBody) -> Response:
        """Answer an input with images, in the form of the Responses API."""
        return await while_connected(request, server.responses.answer(body, request.state.request_id), seconds)


def _add_images(app: FastAPI, server: Server) -> None:
    seconds = server.settings.limits.seconds

    @app.post("/v1/images/generations", responses=REFUSALS, response_model=ImagesMade)
    async def generations(request: Request, body: ImageBody) -> JSONResponse:
        """Make images of a text."""
        return JSONResponse(await while_connected(request, server.make(body, [], None), seconds))

    @app.post("/v1/images/edits", responses=REFUSALS, response_model=ImagesMade)
    async def edits(
        request: Request,
        prompt: Annotated[str, Form()],
        image: Annotated[list[UploadFile] | None, File(description="An input image.")] = None,
        images: Annotated[list[UploadFile] | None, File(alias="image[]", description="Several.")] = None,
        model: Annotated[str | None, Form()] = None,
        n: Annotated[int | None, Form(ge=1)] = None,
        size: Annotated[str | None, Form()] = None,
        seed: Annotated[int | None, Form(ge=0, le=MAX_SEED)] = None,
        preset: Annotated[str | None, Form()] = None,
        steps: Annotated[int | None, Form(ge=1)] = None,
        guidance: Annotated[float | None, Form(ge=0, le=100)] = None,
        image_guidance: Annotated[float | None, Form(ge=0, le=100)] = None,
        response_format: Annotated[str | None, Form()] = None,
        output_format: Annotated[str | None, Form()] = None,
        view: Annotated[str | None, Form(description="What to show of the images: a JSON object.")] = None,
    ) -> JSONResponse:
        """Make images of input images and a text; mask is not supported: say in words what to change."""
        form = await request.form()
        fields = ImageBody.model_fields
        if unknown := sorted(set(form) - set(fields) - {"image", "image[]", "view"}):
            raise ApiError(400, f"{unknown[0][:40]}: this field is not supported, leave it out.")
        # Through the same checks as a body in JSON.
        given = {name: value for name, value in form.items() if name in fields}
        body, shown = _checked(given, view)
        files = [await upload.read() for upload in [*(image or []), *(images or [])]]
        if not files:
            raise ApiError(400, "image: send at least one; /v1/images/generations makes images of a text alone.")
        return JSONResponse(await while_connected(request, server.make(body, files, shown), seconds))


def _checked(fields: dict[str, Any], view: str | None) -> tuple[ImageBody, ViewFields | None]:
    try:
        return ImageBody.model_validate(fields), None if not view else ViewFields.model_validate(json.loads(view))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    except (json.JSONDecodeError, RecursionError):
        raise ApiError(400, 'view: give a JSON object such as {"window": [40, 400]}.') from None


def _add_operation(app: FastAPI, server: Server) -> None:
    name = server.loaded.checkpoint.name

    @app.get("/v1/models", responses=REFUSALS)
    async def models() -> dict[str, Any]:
        """The one model."""
        entry = {"id": name, "object": "model", "created": server.created, "owned_by": name.partition("/")[0]}
        return {"object": "list", "data": [{**entry, "revision": server.loaded.checkpoint.revision}]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": ErrorBody}})
    async def ready() -> dict[str, str]:
        """Whether requests are taken."""
        if not server.is_ready():
            raise ApiError(503, "The server takes no requests: it stops, or a thread of it has ended.")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **REFUSALS})
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
