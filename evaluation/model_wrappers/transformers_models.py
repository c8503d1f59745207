"""Any transformers model with a chat template: `from_pretrained`, the processor, `generate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
)

import unimedvl
from unimedvl.checkpoint.adapter_folder import Adapter, check_base, put_on
from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.checkpoint.loading import load_processor
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig

from .base import Conversation


class _ChosenProbabilities(LogitsProcessor):
    """Keeps the log-probability of each step's greedy choice, float32 (rows,), and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(scores.float().log_softmax(dim=-1).amax(dim=-1).cpu())
        return scores

    def means(self, lengths: list[int]) -> list[float]:
        """Geometric mean of the probabilities of each row's first tokens."""
        rows = torch.stack(self.steps, dim=1)
        return [round(float(row[:length].mean().exp()), 6) for row, length in zip(rows, lengths, strict=True)]


def _lengths(ids: torch.Tensor, ends: list[int | None]) -> list[int]:
    """Tokens of each row up to its first end token, that one included."""
    found = []
    for row in ids.tolist():
        places = [place for place, token in enumerate(row) if token in ends]
        found.append(places[0] + 1 if places else len(row))
    return found


@contextmanager
def _cannot_load(path: str, adapter: Adapter | None) -> Iterator[None]:
    """Says in one line what could not be loaded, and what helps."""
    try:
        yield
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if adapter is None:
            raise ValueError(f"{path} cannot be loaded: {reason}") from error
        raise ValueError(
            f"the base of the adapter {adapter.name!r}, {path!r}, cannot be loaded ({reason.rstrip('.')}): name its "
            "base, --base FOLDER or HUB_ID."
        ) from error


class TransformersModel:
    """A model that reads images and writes text and, where its `output_modalities` say so, draws.

    A generation configuration with `task_presets` marks the interface of this package (one generator per image,
    presets by name); other models that draw are asked one image at a time, with the global generator seeded.
    """

    def __init__(
        self,
        path: str,
        *,
        revision: str | None,
        dtype: Any,
        device: torch.device,
        steps: int | None,
        trust_remote_code: bool,
        adapter: Adapter | None = None,
    ):
        unimedvl.register()
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        with _cannot_load(path, adapter):
            config = AutoConfig.from_pretrained(path, **options)
        if adapter is not None and config.model_type == UniMedVLConfig.model_type:
            check_base(adapter, open_checkpoint(path, revision))
        with _cannot_load(path, adapter):
            self.processor = self._processor(path, adapter, config, options)
            auto_class: Any = AutoModelForMultimodalLM
            if type(config) not in AutoModelForMultimodalLM._model_mapping:
                auto_class = AutoModelForImageTextToText
            self.model = auto_class.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"{path} has no chat template: save its processor with one, the benchmark asks in chats.")
        bare = self.model
        if adapter is not None:
            self.model = put_on(bare, adapter)
        self.model = self.model.to(device).eval()
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.name = path if adapter is None else f"{adapter.name} on {path}"
        self.steps = steps
        self.presets: dict[str, Any] | None = getattr(self.model.generation_config, "task_presets", None)
        abilities = {"text", "text_from_image"}
        if "image" in (getattr(self.model, "output_modalities", None) or ()) and getattr(config, "visual_gen", True):
            abilities |= {"image", "image_from_image"}
        self.abilities = frozenset(abilities)
        self.settings: dict[str, Any] = {
            "class": type(bare).__name__,
            "dtype": str(self.model.dtype),
            "presets": self.presets,
            "steps": steps,
        }

    @staticmethod
    def _processor(path: str, adapter: Adapter | None, config: Any, options: dict[str, Any]) -> Any:
        """The one that was saved with the adapter, else the checkpoint's."""
        if adapter is None or not adapter.has_processor:
            return AutoProcessor.from_pretrained(path, **options)
        if config.model_type == UniMedVLConfig.model_type:
            return load_processor(adapter.directory, config)
        return AutoProcessor.from_pretrained(
            adapter.directory, trust_remote_code=options["trust_remote_code"], local_files_only=True
        )

    def write(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[tuple[str, float | None]]:
        inputs = self._inputs(conversations, add_generation_prompt=True)
        recorder = _ChosenProbabilities()
        with torch.inference_mode():
            ids = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                logits_processor=LogitsProcessorList([recorder]),
            )
        ids = ids[:, -len(recorder.steps) :]
        ends = self.model.generation_config.eos_token_id
        lengths = _lengths(ids, ends if isinstance(ends, list) else [ends])
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [(text.strip(), value) for text, value in zip(texts, recorder.means(lengths), strict=True)]

    def draw(self, conversations: Sequence[Conversation], preset: str, seeds: Sequence[int]) -> list[Image.Image]:
        if self.presets is None:
            return [self._draw_one(*pair) for pair in zip(conversations, seeds, strict=True)]
        options: dict[str, Any] = {"preset": preset if preset in self.presets else None, "show_progress": False}
        if self.steps is not None:
            options["num_inference_steps"] = self.steps
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        inputs = self._inputs(conversations, generation_mode="image")
        with torch.inference_mode():
            pixels = self.model.generate(**inputs, generation_mode="image", generator=generators, **options)
        images: list[Image.Image] = self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        return images

    def _draw_one(self, conversation: Conversation, seed: int) -> Image.Image:
        inputs = self._inputs([conversation], generation_mode="image", add_generation_prompt=True)
        torch.manual_seed(seed)
        with torch.inference_mode():
            output = self.model.generate(**inputs, generation_mode="image")
            if hasattr(self.model, "decode_image_tokens"):
                output = self.model.decode_image_tokens(output)
        return self.processor.post_process_multimodal_output(output, generation_mode="image")[0]

    def _inputs(self, conversations: Sequence[Conversation], **options: Any) -> Any:
        inputs = self.processor.apply_chat_template(
            list(conversations),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **options,
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)
