"""Answers in text: batched `generate` behind the interface that transformers' serving handlers call."""

import asyncio
import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria
from transformers.cli.serving.utils import BaseGenerateManager, DirectStreamer, _GenerationCancelled, _StreamError
from transformers.generation.streamers import BaseStreamer

from .errors import as_api_error
from .lanes import LATE, Job, Lane
from .metrics import Metrics
from .rows import joined
from .turns import Turns

LANE = "text"
# A stop text can begin in one token and end in a later one; one character may take several tokens.
TOKENS_PER_CHARACTER = 4


class TextJob(Job):
    """One answer to decode.

    Args:
        inputs: of one prompt, on the model's device.
        config: how to decode it.
        stops: texts before which the answer ends.
        seed: of sampling, where the configuration samples.
        seconds: until it has to be answered.
        processor: decodes the tokens.
    """

    def __init__(
        self,
        inputs: dict[str, Any],
        config: GenerationConfig,
        *,
        stops: Sequence[str],
        seed: int,
        seconds: float,
        processor: Any,
    ):
        super().__init__(_batch_key(config), 1, seconds)
        self.inputs, self.config, self.stops, self.seed = inputs, config, stops, seed
        self.processor = processor
        self.tokens: list[int] = []
        self.complete = False
        self.streamer: _Stream | None = None
        self.queue: asyncio.Queue[Any] | None = None

    @property
    def untouched(self) -> bool:
        return super().untouched and not self.tokens

    def stream(self, response_parser: Any) -> tuple[asyncio.Queue[Any], "_Stream"]:
        """Let the answer go to a queue token by token."""
        self.queue = asyncio.Queue()
        self.streamer = _Stream(self, self.queue, response_parser)
        late = self.loop.call_later(self.seconds, self._time_out)

        def settled(future: asyncio.Future[Any]) -> None:
            late.cancel()
            # Looked at, as the queue has reported it.
            future.exception()

        self.future.add_done_callback(settled)
        return self.queue, self.streamer

    def fail(self, error: BaseException) -> None:
        if self.queue is not None:
            # transformers puts the sentence into a JSON string as it is.
            sentence = as_api_error(error).message.replace("\\", "/").replace('"', "'")
            self.loop.call_soon_threadsafe(self.queue.put_nowait, _StreamError(sentence))
        super().fail(error)

    def _time_out(self) -> None:
        self.cancelled.set()
        assert self.queue is not None
        self.queue.put_nowait(_StreamError(LATE))

    def add(self, token: int) -> None:
        """Take the next token; `complete` says whether it was the last."""
        self.tokens.append(token)
        if self.streamer is not None:
            try:
                self.streamer.put(torch.tensor([token]))
            except _GenerationCancelled:
                self.cancelled.set()
        ends = self.config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        limit = self.config.max_new_tokens
        if token in ends or (limit is not None and len(self.tokens) >= limit) or self._stopped():
            self.close()

    def close(self) -> None:
        """The answer is complete: hand it over."""
        if self.complete:
            return
        self.complete = True
        if self.streamer is not None:
            self.streamer.end()
        text = self.processor.decode(self.tokens, skip_special_tokens=True)
        self.finish((cut(text, self.stops), self.tokens))

    def _stopped(self) -> bool:
        if not self.stops:
            return False
        window = TOKENS_PER_CHARACTER * max(map(len, self.stops))
        tail = self.processor.decode(self.tokens[-window:], skip_special_tokens=True)
        return any(stop in tail for stop in self.stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


class _Stream(DirectStreamer):
    """transformers' streamer for one row of a batch, which keeps back what may begin a stop text."""

    def __init__(self, job: TextJob, queue: asyncio.Queue[Any], response_parser: Any):
        self._job, self._held = job, ""
        super().__init__(job.processor.tokenizer._tokenizer, job.loop, queue, response_parser)
        # The prompt, which `generate` shows a streamer first, is not put into this one.
        self._first = False

    def _enqueue(self, item: Any) -> None:
        stops = self._job.stops
        if not stops:
            super()._enqueue(item)
            return
        self._held += item or ""
        shown = cut(self._held, stops)
        ended = item is None or shown != self._held
        ready_length = len(shown) if ended else max(len(shown) - max(map(len, stops)) + 1, 0)
        ready, self._held = shown[:ready_length], shown[ready_length:]
        if ready:
            super()._enqueue(ready)
        if item is None:
            super()._enqueue(None)

    def cancel(self) -> None:
        super().cancel()
        self._job.cancelled.set()


def _batch_key(config: GenerationConfig) -> str | None:
    """Equal for configurations that one call of `generate` can serve; None for sampling, whose draws are a call's."""
    if config.do_sample:
        return None
    return json.dumps({**config.to_dict(), "max_new_tokens": None}, sort_keys=True, default=str)


class _Rows(StoppingCriteria, BaseStreamer):
    """A batch as `generate` decodes it: hands every token to its job, ends rows one by one, and offers the turn."""

    def __init__(self, jobs: list[TextJob], prompt_length: int, turns: Turns):
        self._jobs, self._prompt_length, self._turns = jobs, prompt_length, turns
        self._started = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        self._turns.offer(LANE)
        # `generate` asks here first and shows the token afterwards.
        made = input_ids.shape[1] - self._prompt_length
        done = [job.complete or job.ended or made >= (job.config.max_new_tokens or made) for job in self._jobs]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]

    def put(self, value: torch.Tensor) -> None:
        if not self._started:
            self._started = True
            return
        for job, token in zip(self._jobs, value.tolist(), strict=True):
            if not job.complete and not job.ended:
                job.add(token)

    def end(self) -> None:
        for job in self._jobs:
            if not job.ended:
                job.close()


class TextWorker:
    """Decodes batches of answers; what the text lane runs.

    Args:
        network: the model.
        pad_token_id: of its tokenizer.
        turns: shared with the image lane.
        metrics: counts tokens.
    """

    def __init__(self, network: Any, pad_token_id: int, turns: Turns, metrics: Metrics):
        self._network, self._pad, self._turns, self._metrics = network, pad_token_id, turns, metrics

    def __call__(self, jobs: list[TextJob]) -> None:
        inputs = joined([job.inputs for job in jobs], self._pad)
        # The jobs' own limits end their rows.
        config = copy.copy(jobs[0].config)
        config.max_new_tokens = max(job.config.max_new_tokens or 1 for job in jobs)
        rows = _Rows(jobs, inputs["input_ids"].shape[1], self._turns)
        with self._turns.held(LANE):
            if config.do_sample:
                torch.manual_seed(jobs[0].seed)
            self._network.generate(**inputs, generation_config=config, stopping_criteria=[rows], streamer=rows)
        for job in jobs:
            self._metrics.tokens_used(job.inputs["input_ids"].shape[1], len(job.tokens))


class TextRequest(BaseGenerateManager):
    """One request of transformers' serving handlers, sent through the lane.

    Args:
        lane: the text lane.
        seconds: until it has to be answered.
        seed: of sampling.
        stops: texts before which the answer ends.
    """

    def __init__(self, lane: Lane, *, seconds: float, seed: int, stops: Sequence[str]):
        self._lane, self._options = lane, {"seconds": seconds, "seed": seed, "stops": stops}

    def generate_streaming(self, model, processor, inputs, gen_config, request_id, response_parser=None):
        """Submit a job whose answer streams; see the base class."""
        job = TextJob(inputs, gen_config, processor=processor, **self._options)
        queue, streamer = job.stream(response_parser)
        self._lane.submit(job)
        return queue, streamer

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        """Submit a job and wait for it; see the base class."""
        job = TextJob(inputs, gen_config, processor=processor, **self._options)
        self._lane.submit(job)
        text, tokens = await job.result()
        return text, inputs["input_ids"].shape[-1], tokens

    def stop(self) -> None:
        """Nothing of its own runs."""
