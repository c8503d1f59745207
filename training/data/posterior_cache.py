"""A cache of the autoencoder's posteriors on disk: the autoencoder is frozen, so an image's posterior never changes.

What the model reads is drawn anew from the posterior each time, so training with and without the cache is the same.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.utils.digests import hash_tensors
from unimedvl.utils.whole_files import replacing


@dataclass
class LatentInput:
    """One image that enters through the autoencoder.

    Attributes:
        key: names it in the cache: its bytes and its size.
        noise: of the posterior, float32 (C, h, w).
        pixels: float32 (3, H, W) in [-1, 1]; None where the cache has it.
        mean, deviation: of the posterior, float32 (C, h, w), unscaled; None where it has not.
    """

    key: str
    noise: torch.Tensor
    pixels: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    deviation: torch.Tensor | None = None


def autoencoder_fingerprint(model: UniMedVLForConditionalGeneration) -> str:
    """Changes when any weight of the autoencoder's encoder does."""
    return hash_tensors(model.model.vae.encoder.state_dict())[:16]


class LatentCache:
    """Posteriors in files, safe for several processes: a file appears whole, and all writers write the same.

    Args:
        folder: a folder of its own; posteriors of other autoencoders lie in it side by side.
        fingerprint: of the autoencoder.
    """

    def __init__(self, folder: str | Path, fingerprint: str):
        self.folder = Path(folder) / fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and deviation, or None if they were never put, or not wholly."""
        try:
            tensors = load_file(self._path(key))
        except (FileNotFoundError, SafetensorError):
            return None
        return tensors["mean"], tensors["deviation"]

    def put(self, key: str, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Store a posterior under its key.

        Args:
            key: see `latent_key`.
            mean, deviation: float32 (C, h, w), unscaled.

        Raises:
            ValueError: if the disk refuses.
        """
        try:
            with replacing(self._path(key)) as partial:
                save_file({"mean": mean.contiguous().cpu(), "deviation": deviation.contiguous().cpu()}, partial)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{self.folder} cannot be written ({error}): make room, or leave out latent_cache."
            ) from error


def latent_key(image_sha256: str, steps: tuple[tuple[int, int], ...]) -> str:
    """Name of one view of one image: its bytes' digest and the sizes that it is resized to."""
    return hashlib.sha256(f"{image_sha256}/{steps}".encode()).hexdigest()


@torch.no_grad()
def scaled_latents(
    model: UniMedVLForConditionalGeneration, inputs: list[LatentInput], cache: LatentCache
) -> list[torch.Tensor]:
    """Draw latents from the posteriors of the autoencoder.

    Args:
        model: encodes what the cache lacks.
        inputs: for each image its posterior or its pixels, and the noise to draw with.
        cache: gets the posteriors that were missing.

    Returns:
        Scaled latents (C, h, w) of each image, for `latent_values` of `forward`.
    """
    latents = []
    for item in inputs:
        if item.mean is None or item.deviation is None:
            assert item.pixels is not None
            ((item.mean, item.deviation),) = model.model.encode_posteriors([item.pixels])
            cache.put(item.key, item.mean, item.deviation)
        drawn_with = (item.mean, item.deviation, item.noise)
        latents.append(
            model.model.posterior_latent(*(tensor.to(model.device, non_blocking=True) for tensor in drawn_with))
        )
    return latents
