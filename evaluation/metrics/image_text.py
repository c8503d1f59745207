"""Agreement of a generated image with its text: the cosine of an image-text encoder by local path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from PIL import Image

from .image_features import image_output, vectors_of

BATCH = 32


class ImageTextEncoder(Protocol):
    """Images and texts in one space."""

    name: str

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        """Cosine of each image with its text, float32 (N,)."""
        ...


class TransformersImageText:
    """A dual encoder of transformers."""

    def __init__(self, path: str | Path):
        from transformers import AutoModel, AutoProcessor

        # Without an answer to that, transformers asks on the terminal whether a folder's code may run.
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.processor = AutoProcessor.from_pretrained(path, **options)
        self.model = AutoModel.from_pretrained(path, use_safetensors=True, **options).eval()
        if not hasattr(self.model, "get_text_features"):
            raise ValueError(
                f"{path} holds {type(self.model).__name__}, which has no text tower: give a dual encoder."
            )
        self.name = Path(path).name

    @torch.inference_mode()
    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        found = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self.processor(images=batch, return_tensors="pt")["pixel_values"]
            words = self.processor(
                text=list(texts[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True
            )
            sides = (
                vectors_of(image_output(self.model, pixels)),
                vectors_of(self.model.get_text_features(**words)),
            )
            found.append(torch.cosine_similarity(*sides).float().numpy())
        return numpy.concatenate(found) if found else numpy.zeros(0, numpy.float32)


class OpenClipImageText:
    """An open_clip model in a local folder."""

    def __init__(self, path: str | Path):
        try:
            import open_clip
        except ImportError as error:
            raise ValueError(
                "open_clip is not installed: pip install open_clip_torch (it needs torchvision)."
            ) from error
        name = f"local-dir:{path}"
        self.model, self.transform = open_clip.create_model_from_pretrained(name)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.model.eval()
        self.name = f"open_clip {Path(path).name}"

    @torch.inference_mode()
    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        found = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([self.transform(image) for image in images[start : start + BATCH]])
            words = self.tokenizer(list(texts[start : start + BATCH]))
            sides = self.model.encode_image(pixels), self.model.encode_text(words)
            found.append(torch.cosine_similarity(*sides).float().numpy())
        return numpy.concatenate(found) if found else numpy.zeros(0, numpy.float32)


def load_image_text_encoder(spec: str) -> ImageTextEncoder:
    """An encoder by path: a transformers folder, or "open_clip:FOLDER".

    Raises:
        ValueError: if it cannot be loaded.
    """
    path = spec.removeprefix("open_clip:")
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path}: give the folder of an image-text encoder.")
    if spec.startswith("open_clip:"):
        return OpenClipImageText(path)
    try:
        return TransformersImageText(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no image-text encoder: {str(error).splitlines()[0]}") from error


def image_text_score(predictions: Sequence[Image.Image], references: Sequence[str], encoder: str) -> dict[str, Any]:
    """Agreement of generated images with their texts: the cosine of an image-text encoder by local path.

    The encoder has local weights: a folder of transformers (CLIP, SigLIP, ...) or "open_clip:FOLDER" with an open_clip
    configuration and safetensors weights, as BiomedCLIP is published. `cosine` is raw. `halved` is (1 + cosine) / 2,
    one guess at the scale of the score that the paper reports around 0.7: do not compare it with the paper's figures,
    whose formula is not published. UNVERIFIED with BiomedCLIP itself, whose weights no one has run here yet.

    Args:
        predictions: generated images.
        references: the text of each.
        encoder: folder of the encoder.

    Returns:
        `cosine` in [-1, 1], `halved` in [0, 1], `encoder`, `count`.

    Raises:
        ValueError: without an image, or if there is no such encoder.

    Source:
        Hessel et al. 2021, "CLIPScore"; Zhang et al. 2023, "BiomedCLIP".
    """
    if not predictions:
        raise ValueError("there is nothing to score: pass at least one image.")
    model = load_image_text_encoder(encoder)
    cosine = float(model.similarity(predictions, references).mean())
    return {"cosine": cosine, "halved": (1 + cosine) / 2, "encoder": model.name, "count": len(predictions)}
