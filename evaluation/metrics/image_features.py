"""Features of images, by named extractors: what FID, KID, memorization and diversity compare.

A figure of these metrics means nothing without its extractor and resize rule, so both are part of the name. Weights
are always local; nothing here needs torchvision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from PIL import Image
from torch import nn

DEFAULT = "pixels-8"
BATCH = 32
INCEPTION_SIDE = 299


class FeatureExtractor(Protocol):
    """Images to features; `name` says how, with the resize rule."""

    name: str

    def __call__(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        """Float64 (images, features)."""
        ...


class PixelFeatures:
    """Levels of the image averaged over a grid of `side` x `side`, RGB in [0, 1]: layout and color, no anatomy."""

    def __init__(self, side: int):
        if side < 1:
            raise ValueError(f"pixels-{side}: the grid needs at least one cell a side.")
        self.side = side
        self.name = f"pixels-{side} (PIL box, RGB)"

    def __call__(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        rows = [
            numpy.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.BOX)).ravel() / 255.0
            for image in images
        ]
        return numpy.array(rows, dtype=numpy.float64).reshape(len(rows), 3 * self.side**2)


def clean_resize(image: Image.Image, side: int) -> torch.Tensor:
    """clean-fid's rule: every channel in floating point, PIL's bicubic, not rounded; (3, side, side) in [0, 255]."""
    channels = [
        numpy.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC))
        for channel in numpy.asarray(image.convert("RGB"), dtype=numpy.float32).transpose(2, 0, 1)
    ]
    return torch.from_numpy(numpy.stack(channels)).clamp(0, 255)


class ModuleFeatures:
    """Any network from pixels in [0, 255], float32 (N, 3, side, side), to features (N, D)."""

    def __init__(self, module: nn.Module, name: str, side: int = INCEPTION_SIDE):
        self.module = module.eval()
        self.side = side
        self.name = f"{name} (clean bicubic {side})"

    def __call__(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        rows = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([clean_resize(image, self.side) for image in images[start : start + BATCH]])
            with torch.inference_mode():
                rows.append(vectors_of(self.module(pixels)).double().cpu().numpy())
        return numpy.concatenate(rows) if rows else numpy.zeros((0, 0))


class EncoderFeatures:
    """A transformers image encoder by local path, with its own image processor as the resize rule."""

    def __init__(self, path: str | Path):
        from transformers import AutoImageProcessor, AutoModel

        # Without an answer to that, transformers asks on the terminal whether a folder's code may run.
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.processor = AutoImageProcessor.from_pretrained(path, **options)
        self.model = AutoModel.from_pretrained(path, use_safetensors=True, **options).eval()
        self.name = f"{Path(path).name} ({type(self.model).__name__}, its own image processor)"

    def __call__(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        rows = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self.processor(batch, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                rows.append(vectors_of(image_output(self.model, pixels)).double().numpy())
        return numpy.concatenate(rows) if rows else numpy.zeros((0, 0))


def image_output(model: nn.Module, pixels: torch.Tensor) -> Any:
    """What a transformers model says about pixels: its image tower's features where it has several towers."""
    features = getattr(model, "get_image_features", None)
    return model(pixel_values=pixels) if features is None else features(pixel_values=pixels)


def vectors_of(output: Any) -> torch.Tensor:
    """One vector per image out of a network's output, (N, D)."""
    if not isinstance(output, torch.Tensor):
        pooled = getattr(output, "pooler_output", None)
        output = output.last_hidden_state if pooled is None else pooled
    if output.ndim == 3:
        output = output.mean(dim=1)
    return output.flatten(1)


def load_feature_extractor(spec: str = DEFAULT) -> FeatureExtractor:
    """An extractor by name.

    Args:
        spec: "pixels-N"; "torchscript:FILE" for a TorchScript network of the kind of clean-fid's Inception; or the
            folder of a transformers encoder.

    Raises:
        ValueError: if there is none of that name, or its files cannot be read.
    """
    if spec.startswith("pixels-") and spec.removeprefix("pixels-").isdigit():
        return PixelFeatures(int(spec.removeprefix("pixels-")))
    if spec.startswith("torchscript:"):
        path = Path(spec.removeprefix("torchscript:"))
        try:
            return ModuleFeatures(torch.jit.load(str(path), map_location="cpu"), path.name)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{path} is no TorchScript network: give the file of the extractor.") from error
    if not Path(spec).is_dir():
        raise ValueError(
            f"feature extractor {spec!r}: expected pixels-N, torchscript:FILE or the folder of a transformers encoder."
        )
    try:
        return EncoderFeatures(spec)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{spec} holds no image encoder of transformers: {str(error).splitlines()[0]}") from error
