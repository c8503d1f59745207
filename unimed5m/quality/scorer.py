"""A compact image-text scorer for M, small enough to train on a CPU in minutes, and the captioner that goes with it.

Nothing like MedSigLIP is available offline, so M is measured by two small towers trained on the train split: a
convolutional one over 64x64 pixels and a bag of hashed words and word pairs. Train it with `train_scorer`. The loss
ranks the images of a batch for each text and the texts for each image: M is a cosine to compare with other cosines of
the same scorer, not a probability.
"""

import json
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from unimedvl.utils.json_files import read_json

from .encoders import _reproducible

SIDE = 64


def pixels(image: Image.Image) -> numpy.ndarray:
    """RGB uint8 (3, 64, 64)."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return numpy.array(small).transpose(2, 0, 1)


def word_ids(text: str, buckets: int) -> list[int]:
    """Buckets of the words and adjacent word pairs of a text; [0] for a text without words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    pieces = words + [f"{a} {b}" for a, b in pairwise(words)]
    return [1 + zlib.crc32(piece.encode()) % (buckets - 1) for piece in pieces] or [0]


class CompactScorer(nn.Module):
    """Two towers into one space; implements `ImageTextEncoder`."""

    def __init__(self, width: int = 128, buckets: int = 8192, channels: Sequence[int] = (24, 48, 96, 128)) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"width": width, "buckets": buckets, "channels": list(channels)}
        self.name = "compact scorer"
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels[0], 5, stride=2, padding=2),
            nn.GroupNorm(8, channels[0]),
            nn.SiLU(),
        ]
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(), nn.MaxPool2d(2)]
        # No pooling over places: texts name sides.
        places = (SIDE >> len(channels)) ** 2
        layers += [nn.Flatten(), nn.Dropout(0.4), nn.Linear(channels[-1] * places, width)]
        self.image = nn.Sequential(*layers)
        self.text = nn.EmbeddingBag(buckets, width, mode="mean")
        self.project = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(2.3))

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, 64, 64) to unit vectors (N, width)."""
        values = (batch.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
        return nn.functional.normalize(self.image(values), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """N texts to unit vectors (N, width)."""
        ids = [word_ids(text, self.settings["buckets"]) for text in texts]
        offsets = torch.tensor([0, *numpy.cumsum([len(entry) for entry in ids])[:-1].tolist()])
        bag = self.text(torch.tensor([number for entry in ids for number in entry]), offsets)
        return nn.functional.normalize(self.project(torch.nn.functional.silu(bag)), dim=-1)

    def image_vectors(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        """N PIL images to unit vectors, float32 (N, width)."""
        with _reproducible():
            # One by one: a convolution's rounding may follow the batch size.
            return torch.cat([self.encode_images(torch.from_numpy(pixels(image))[None]) for image in images]).numpy()

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        """The cosine of each image with its text, float32 (images,) in [-1, 1]."""
        if not images:
            return numpy.zeros(0, dtype=numpy.float32)
        vectors = self.image_vectors(images)
        with _reproducible():
            return (vectors * self.encode_texts(texts).numpy()).sum(axis=1)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and settings to a folder, which is made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps(self.settings) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "CompactScorer":
        """Read a folder that `save` wrote. Raises ValueError where there is none."""
        folder = Path(folder)
        if not (folder / "model.safetensors").is_file():
            raise ValueError(
                f"expected a trained scorer (model.safetensors) in {folder}; train one with train_scorer."
            )
        scorer = cls(**read_json(folder / "config.json", "train the scorer again"))
        scorer.load_state_dict(load_file(str(folder / "model.safetensors")))
        scorer.name = f"compact scorer {folder}"
        return scorer.eval()


class RetrievalCaptioner:
    """Captions an image with texts of the training images nearest to it in the scorer's image space.

    It replaces a captioning model where none is available. An image never gets its own text: images with the same
    vector are skipped.
    """

    def __init__(self, scorer: CompactScorer, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
        self.scorer, self.vectors, self.texts = scorer, vectors, list(texts)
        self.name = f"nearest of {len(texts)} training texts by {scorer.name}"

    def caption(self, images: Sequence[Image.Image], count: int) -> list[list[str]]:
        """The `count` nearest texts of each image, nearest first."""
        similarity = self.scorer.image_vectors(images) @ self.vectors.T
        similarity[similarity > 0.99999] = -2.0
        order = numpy.argsort(-similarity, axis=1, kind="stable")
        return [[self.texts[place] for place in row[:count]] for row in order]

    def save(self, folder: str | Path) -> None:
        """Write beside the scorer what `load` needs."""
        numpy.save(Path(folder) / "neighbors.npy", self.vectors)
        (Path(folder) / "neighbors.json").write_text(json.dumps(self.texts, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "RetrievalCaptioner":
        """Read what `save` wrote, and the scorer beside it. Raises ValueError where there is no scorer."""
        texts = json.loads((Path(folder) / "neighbors.json").read_text(encoding="utf-8"))
        return cls(CompactScorer.load(folder), numpy.load(Path(folder) / "neighbors.npy"), texts)
