"""Captioners, text encoders and image-text encoders that `transformers` runs from a name or a local path.

The paper's models are MedGemma-27B (captions), E5-large-v2 (text) and MedSigLIP (image and text). Their weights could
not be had where this was written: `transformers` runs any model of the same interface here, and these three themselves
are UNVERIFIED. Scores are computed by one thread, in float32 unless `dtype` says otherwise, nothing is remembered
between calls, and a caption's random draw is seeded by its image: a score depends on its batch alone, not on the
process that computes it.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

logger = logging.getLogger(__name__)

UNVERIFIED = ("medgemma", "e5-large-v2", "medsiglip")
CAPTION_PROMPT = "Describe this medical image in one sentence: modality, body part and findings."


def is_unverified(path: str) -> bool:
    """Whether a model is one that the paper names and that has never been run here."""
    return any(name in str(path).lower() for name in UNVERIFIED)


def _announce(path: str) -> None:
    if is_unverified(path):
        logger.warning("%s runs through an interface tested with other models only: unverified", path)


@contextmanager
def _reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def text_prefix(path: str) -> str:
    """What a sentence encoder wants before each text, judged by its folder or Hub name: "query: " for E5."""
    return "query: " if re.search(r"(^|[^a-z0-9])e5([^a-z0-9]|$)", Path(path).name.lower()) else ""


class TransformersCaptioner:
    """Any image-text-to-text model with a chat template: MedGemma, UniMedVL itself, ...

    Args:
        path: model folder or Hub name.
        prompt: the request shown with every image.
        max_new_tokens: length limit of a caption.
        temperature, top_p: of the draws; the first caption is greedy.
        device, dtype: where and how the model runs.
        trust_remote_code: needed for models that bring their code, such as UniMedVL.
    """

    def __init__(
        self,
        path: str,
        prompt: str = CAPTION_PROMPT,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        top_p: float = 0.95,
        device: str = "cpu",
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        _announce(path)
        self.name = f"{path} ({max_new_tokens} tokens, temperature {temperature}, top_p {top_p}, {dtype}): {prompt}"
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
        self.model = model.to(device).eval()
        self.prompt = prompt
        self.options = {"max_new_tokens": max_new_tokens}
        self.sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}

    def caption(self, images: Sequence[Image.Image], count: int) -> list[list[str]]:
        """`count` captions of each image: the greedy one, then draws seeded by the image's pixels."""
        with _reproducible(), torch.random.fork_rng(enabled=True):
            return [self._captions(image, count) for image in images]

    def _captions(self, image: Image.Image, count: int) -> list[str]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": self.prompt}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, dtype=self.model.dtype)
        length = inputs["input_ids"].shape[1]
        outputs = list(self.model.generate(**inputs, **self.options, do_sample=False))
        if count > 1:
            torch.manual_seed(int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "little"))
            # One by one: a batch pads its captions, and what a draw sees would depend on the others' lengths.
            for _ in range(count - 1):
                outputs.extend(self.model.generate(**inputs, **self.options, **self.sampling))
        return [
            text.strip()
            for text in self.processor.batch_decode([row[length:] for row in outputs], skip_special_tokens=True)
        ]


class TransformersTextEncoder:
    """A text encoder whose sentence vector is the mean over its tokens.

    MiniLM takes no prefix. E5 was trained with "query: " and "passage: "; its model card asks for "query: " on both
    sides where, as here, texts of equal standing are compared: `text_prefix` gives it to texts and captions alike.
    """

    def __init__(
        self, path: str, prefix: str = "", max_length: int = 256, device: str = "cpu", batch: int = 32
    ) -> None:
        _announce(path)
        self.name = f"{path} (prefix {prefix!r}, {max_length} tokens)"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path, dtype="float32", use_safetensors=True).to(device).eval()
        self.prefix, self.max_length, self.batch = prefix, max_length, batch

    def encode(self, texts: Sequence[str]) -> numpy.ndarray:
        """Unit vectors, float32 (texts, dimensions)."""
        # Templated texts repeat; sorted by length, a batch pads little.
        new = sorted(set(texts), key=lambda text: (len(text), text))
        known: dict[str, numpy.ndarray] = {}
        with _reproducible():
            for start in range(0, len(new), self.batch):
                chunk = new[start : start + self.batch]
                known.update(zip(chunk, self._encode(chunk), strict=True))
        return numpy.stack([known[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> numpy.ndarray:
        inputs = self.tokenizer(
            [self.prefix + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)
        hidden = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy()


class TransformersImageTextEncoder:
    """A dual encoder with `image_embeds` and `text_embeds` outputs: SigLIP, MedSigLIP, CLIP."""

    def __init__(self, path: str, max_length: int = 64, device: str = "cpu", batch: int = 16) -> None:
        _announce(path)
        self.name = f"{path} ({max_length} tokens)"
        self.processor = AutoProcessor.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path, dtype="float32", use_safetensors=True).to(device).eval()
        self.max_length, self.batch = max_length, batch

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        """The cosine of each image with its text, float32 (images,) in [-1, 1]."""
        scores = []
        with _reproducible():
            for start in range(0, len(images), self.batch):
                inputs = self.processor(
                    text=list(texts[start : start + self.batch]),
                    images=list(images[start : start + self.batch]),
                    padding="max_length",
                    truncation=True,
                    max_length=self.max_length,
                    return_tensors="pt",
                ).to(self.model.device)
                output = self.model(**inputs)
                image = torch.nn.functional.normalize(output.image_embeds, dim=-1)
                text = torch.nn.functional.normalize(output.text_embeds, dim=-1)
                scores.append((image * text).sum(dim=-1).float().cpu().numpy())
        return numpy.concatenate(scores) if scores else numpy.zeros(0, dtype=numpy.float32)
