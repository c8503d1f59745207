"""The model at work for the page: one request at a time, in pieces as they come, and able to stop."""

import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList, TextStreamer

from unimedvl.checkpoint.conversations import person_turn, typed_inputs
from unimedvl.checkpoint.loading import Loaded
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, flow_schedule

# Decoding a preview takes time of the device, in full size a good part of a step's.
PREVIEWS = 8
Emit = Callable[[Any], None]
# Marks the end of what a thread puts into its queue.
_END = object()


@dataclass(frozen=True)
class Progress:
    """How far the sampler is: steps that are done, of how many, and what the images look like, where it was asked."""

    done: int
    total: int
    previews: list[Image.Image]


@dataclass(frozen=True)
class Drawn:
    """Generated images, with the settings that their record names."""

    images: list[Image.Image]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A text or an image of an interleaved answer."""

    content: str | Image.Image


class _Stopped(Exception):
    """Ends the sampler's loop from its callback."""


class _StopRequested(StoppingCriteria):
    def __init__(self, stop: threading.Event):
        self._stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)


class _Words(TextStreamer):
    """Hands on the words of an answer as they are finished."""

    def __init__(self, tokenizer: Any, emit: Emit):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._emit(text)


class Engine:
    """A loaded checkpoint that answers the requests of many visitors in turn.

    Args:
        loaded: what `unimedvl.checkpoint.loading.load` returned.
    """

    def __init__(self, loaded: Loaded):
        self.model, self.processor, self.checkpoint = loaded
        self._turn = threading.Lock()

    @property
    def draws(self) -> bool:
        """Whether the checkpoint makes images."""
        return bool(self.model.config.visual_gen)

    @property
    def presets(self) -> dict[str, dict[str, Any]]:
        """The checkpoint's settings of each task."""
        return getattr(self.model.generation_config, "task_presets", None) or TASK_PRESETS

    def settings_of(self, preset: str) -> dict[str, Any]:
        """All settings of a preset, with the package's where the checkpoint leaves them out.

        Raises:
            ValueError: for an unknown preset.
        """
        if preset not in self.presets:
            raise ValueError(f"There is no preset {preset!r}: choose one of {', '.join(self.presets)}.")
        return {**TASK_PRESETS.get(preset, TASK_PRESETS["edit"]), **self.presets[preset]}

    def answer(
        self,
        messages: list[dict[str, Any]],
        stop: threading.Event,
        *,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer to a conversation, word by word.

        Args:
            messages: for `apply_chat_template`.
            stop: ends the answer when it is set.
            max_new_tokens: length limit.
            temperature: sample with this spread; the likeliest token by default.
            seed: of the sampling.

        Yields:
            The whole text so far, at least once.
        """
        inputs = self._inputs(messages, "text", add_generation_prompt=True)
        sampling: dict[str, Any] = {"do_sample": temperature is not None}
        if temperature is not None:
            sampling["temperature"] = temperature

        def work(emit: Emit) -> None:
            torch.manual_seed(seed)
            self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                streamer=_Words(self.processor.tokenizer, emit),
                stopping_criteria=StoppingCriteriaList([_StopRequested(stop)]),
                **sampling,
            )

        text = ""
        for words in self._run(work, stop):
            text += words
            yield text.strip()

    def draw(
        self,
        prompt: str,
        images: list[Image.Image],
        stop: threading.Event,
        *,
        preset: str,
        seed: int,
        count: int = 1,
        previews: bool = True,
        **changes: Any,
    ) -> Iterator[Progress | Drawn]:
        """Images of a prompt, the same as `unimedvl generate` makes with the same seed.

        Args:
            prompt: what is wanted.
            images: what it is made from.
            stop: ends the sampling when it is set; there are no images then.
            preset: name of the task's settings.
            seed: of the noise.
            count: images of the prompt.
            previews: whether the steps show what is being made, up to `PREVIEWS` times.
            **changes: settings of the sampler that replace the preset's; None does not.

        Yields:
            `Progress` after each step, and `Drawn` at the end.

        Raises:
            ValueError: for an unknown preset, and for values out of range.
        """
        inputs = self._inputs([person_turn(prompt, images)], "image")
        chosen = {name: value for name, value in changes.items() if value is not None}
        settings = {**chosen, "preset": preset}

        def work(emit: Emit) -> None:
            torch.manual_seed(seed)
            pixels = self.model.generate(
                **inputs,
                **settings,
                generation_mode="image",
                num_images_per_prompt=count,
                generator=torch.Generator().manual_seed(seed),
                show_progress=False,
                callback_on_step_end=self._watcher(emit, stop, preset, chosen, inputs if previews else None),
            )
            emit(Drawn(self.processor.post_process_multimodal_output(pixels, generation_mode="image"), settings))

        yield from self._run(work, stop)

    def converse(
        self,
        messages: list[dict[str, Any]],
        stop: threading.Event,
        *,
        segments: list[str] | None,
        seed: int,
        max_new_tokens: int = 128,
    ) -> Iterator[Progress | Piece]:
        """Texts and images in turn.

        Args:
            messages: for `apply_chat_template`.
            stop: ends the answer when it is set.
            segments: the plan, of "text" and "image"; text and image in turn by default, until the model ends it.
            seed: of all random draws.
            max_new_tokens: length limit of each text.

        Yields:
            `Progress` within an image, and a `Piece` for each text and image.
        """
        inputs = self._inputs(messages, "interleaved")
        preset = "edit" if "pixel_values" in inputs else "t2i"

        def work(emit: Emit) -> None:
            def hand_over(index: int, segment: torch.Tensor) -> bool:
                for content in self.processor.post_process_multimodal_output([segment], generation_mode="interleaved"):
                    emit(Piece(content.strip() if isinstance(content, str) else content))
                return not stop.is_set()

            torch.manual_seed(seed)
            self.model.generate(
                **inputs,
                generation_mode="interleaved",
                segments=segments,
                preset=preset,
                max_new_tokens=max_new_tokens,
                generator=torch.Generator().manual_seed(seed),
                on_segment_end=hand_over,
                show_progress=False,
                callback_on_step_end=self._watcher(emit, stop, preset, {}, None),
            )

        yield from self._run(work, stop)

    def _inputs(self, messages: list[dict[str, Any]], mode: str, add_generation_prompt: bool = False) -> BatchFeature:
        inputs = typed_inputs(
            self.processor, messages, generation_mode=mode, add_generation_prompt=add_generation_prompt
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _watcher(
        self,
        emit: Emit,
        stop: threading.Event,
        preset: str,
        changes: dict[str, Any],
        previewed: BatchFeature | None,
    ) -> Callable[..., None]:
        """A step callback that reports, shows what the images will be like (for `previewed` inputs), and stops."""
        settings = {**self.settings_of(preset), **changes}
        # Wrong numbers are refused by `generate`, in its own words; until then they are not computed with.
        schedule: list[float] = []

        def watch(model: Any, step: int, timestep: float, values: dict[str, Any]) -> None:
            if stop.is_set():
                raise _Stopped
            if not schedule:
                schedule.extend(flow_schedule(settings["num_inference_steps"], settings["timestep_shift"]).tolist())
            total = len(schedule) - 1
            shown: list[Image.Image] = []
            if previewed is not None and step + 1 < total and step % max(1, total // PREVIEWS) == 0:
                grid = self._grid(previewed, settings, values["latents"][0].shape[0])
                # Along the velocity of this step, the rest of the way to the data.
                clean = [
                    latents - schedule[step + 1] * velocity
                    for latents, velocity in zip(values["latents"], values["velocity"], strict=True)
                ]
                pixels = model.model.decode_latents([model.model.latent_grid(tokens, *grid) for tokens in clean])
                shown = self.processor.post_process_multimodal_output(pixels, generation_mode="image")
            emit(Progress(step + 1, total, shown))

        return watch

    def _grid(self, inputs: BatchFeature, settings: dict[str, Any], num_tokens: int) -> tuple[int, int]:
        """(rows, columns) in latent tokens of what is being made: those of the last image, else of the settings."""
        unit = self.model.config.pixels_per_latent_token
        sizes = [(settings.get("height"), settings.get("width"))]
        if inputs.get("latent_image_sizes") is not None:
            rows, columns = inputs["latent_image_sizes"][-1].tolist()
            sizes.insert(0, (rows, columns))
        for height, width in sizes:
            if height and width and (height // unit) * (width // unit) == num_tokens:
                return height // unit, width // unit
        side = math.isqrt(num_tokens)
        assert side * side == num_tokens, "without a size an image is square"
        return side, side

    def _run(self, work: Callable[[Emit], None], stop: threading.Event) -> Iterator[Any]:
        """What `work` emits in a thread of its own, in order; its error is raised here.

        When nobody wants more, `stop` is set and the thread ends at its next step.
        """
        events: queue.SimpleQueue = queue.SimpleQueue()
        failures: list[BaseException] = []

        def target() -> None:
            try:
                with self._turn:
                    if not stop.is_set():
                        work(events.put)
            except _Stopped:
                pass
            # Every error crosses to the thread that asked.
            except BaseException as error:
                failures.append(error)
            finally:
                events.put(_END)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not _END:
                yield event
        except GeneratorExit:
            stop.set()
            raise
        thread.join()
        if failures:
            raise failures[0]
