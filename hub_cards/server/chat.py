"""Chat completions and responses: transformers' serving handlers, with our own loading, checks and scheduling."""

import copy
import secrets
from typing import Any

from starlette.responses import Response
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import GenerationState, Modality

from unimedvl.checkpoint.conversations import typed_inputs
from unimedvl.checkpoint.loading import Loaded

from .errors import ApiError
from .inputs import Inputs, Reading
from .lanes import Lane
from .requests import ChatBody, Message, ResponseBody
from .texts import TextRequest

DEFAULT_NEW_TOKENS = 1_024


class LoadedModel(ModelManager):
    """transformers' manager of models, of the one model that is loaded.

    Args:
        loaded: the model, with our installed classes: no code of a repository is run.
    """

    def __init__(self, loaded: Loaded):
        super().__init__()
        self.loaded = loaded
        self.force_model = loaded.checkpoint.name

    def load_model_and_processor(self, model_id_and_revision, progress_callback=None, tqdm_class=None, gguf_file=None):
        """The loaded model and its processor, whatever is asked for."""
        return self.loaded.model, self.loaded.processor

    @staticmethod
    def get_model_modality(model, processor=None) -> Modality:
        """Text and images."""
        return Modality.VLM

    def check_name(self, name: str | None) -> None:
        """Raise ApiError for the name of another model."""
        if name is not None and name != self.force_model:
            raise ApiError(
                404, f"This server has one model: name {self.force_model}, or leave model out.", "model_not_found"
            )


class _Handler:
    """What both handlers do instead of transformers' `handle_request`.

    transformers' own prepares on the event loop, lets a request set any argument of the template and of the generation
    configuration, seeds from whatever thread it is in, and parses control tokens in what a user wrote.
    """

    model_manager: Any
    inputs: Inputs
    lane: Lane

    async def answer(self, body: ChatBody | ResponseBody, request_id: str) -> Response:
        """Answer a request that was checked for its form.

        Raises:
            ApiError: for the name of another model, and beyond a limit.
            ValueError: for what the processor refuses.
        """
        self.model_manager.check_name(body.model)
        if len(body.stops) > 4:
            raise ApiError(400, "stop: give at most four texts.")
        loaded, messages = self.model_manager.loaded, body.conversation()
        self.inputs.check(messages)
        with self.inputs.budget.share() as share:
            files = await self.inputs.fetched(messages, share)
            inputs = await self.inputs.read(self._prepared, messages, files, body.think)
            del files
        config = self._config(body, inputs["input_ids"].shape[1])
        seed = secrets.randbelow(1 << 31) if body.seed is None else body.seed
        manager = TextRequest(self.lane, seconds=self.inputs.limits.seconds, seed=seed, stops=body.stops)
        arguments = (request_id, loaded.model, loaded.processor, loaded.checkpoint.name)
        # The responses handler echoes some fields of the body.
        echoed = ({"parallel_tool_calls": False},) if isinstance(self, ResponseHandler) else ()
        handler: Any = self
        if body.stream:
            return handler._streaming(*arguments, *echoed, inputs, config, gen_manager=manager)
        return await handler._non_streaming(*arguments, *echoed, inputs, config, gen_manager=manager)

    def _prepared(self, reading: Reading, messages: list[Message], files: dict[str, bytes], think: bool) -> Any:
        loaded, turns = self.model_manager.loaded, reading.conversation(messages, files)
        inputs = typed_inputs(loaded.processor, turns, add_generation_prompt=True, think=think)
        return inputs.to(loaded.model.device, dtype=loaded.model.dtype)

    def _config(self, body: ChatBody | ResponseBody, prompt_length: int) -> GenerationConfig:
        network, limit = self.model_manager.loaded.model, self.inputs.limits.new_tokens
        wanted = body.new_tokens
        if wanted is not None and wanted > limit:
            raise ApiError(400, f"The answer may have {limit} tokens: ask for no more.", "too_many_tokens")
        context = network.config.text_config.max_position_embeddings
        room = context - prompt_length
        if room < (wanted or 1):
            raise ApiError(
                400,
                f"The prompt has {prompt_length} of the {context} tokens that the model reads: shorten it, send fewer "
                "images, or ask for a shorter answer.",
                "context_length_exceeded",
            )
        config = copy.deepcopy(network.generation_config)
        config.max_new_tokens = wanted or min(DEFAULT_NEW_TOKENS, limit, room)
        config.min_new_tokens = min(body.min_tokens or 0, config.max_new_tokens) or None
        config.do_sample = bool(body.temperature)
        if config.do_sample:
            config.temperature, config.top_p = body.temperature, body.top_p
        penalty = getattr(body, "frequency_penalty", None)
        if penalty:
            config.repetition_penalty = 1.0 + penalty
        return config


class Chat(_Handler, ChatCompletionHandler):
    """`/v1/chat/completions`.

    Args:
        manager: the model.
        inputs: reads images.
        lane: the text lane.
    """

    def __init__(self, manager: LoadedModel, inputs: Inputs, lane: Lane):
        super().__init__(manager, GenerationState())
        self.inputs, self.lane = inputs, lane


class Responses(_Handler, ResponseHandler):
    """`/v1/responses`; arguments as for `Chat`."""

    def __init__(self, manager: LoadedModel, inputs: Inputs, lane: Lane):
        super().__init__(manager, GenerationState())
        self.inputs, self.lane = inputs, lane
