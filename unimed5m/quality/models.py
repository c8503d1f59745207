"""Alignment models by path: what the command line and the cluster workers load."""

from dataclasses import dataclass
from pathlib import Path

from unimedvl.utils.digests import hash_ends

from .alignment import CAPTIONS, Alignment, AlignmentModels, Captioner, ImageTextEncoder

NEAREST = "nearest"


@dataclass(frozen=True)
class ModelPaths:
    """Which models score; calling it loads them.

    Attributes:
        text_encoder: sentence encoder (E5-large-v2, MiniLM).
        image_text_encoder: dual encoder (MedSigLIP) or a folder that `train_scorer` wrote.
        captioner: image-text-to-text model (MedGemma, UniMedVL); `nearest` takes the texts of the nearest training
            images, from the `train_scorer` folder.
        device: of the transformers models.
        trust_remote_code: whether the captioner's own code may run; UniMedVL needs it.
        max_new_tokens: longest caption.
        dtype: of the captioner; the encoders run in float32.
        text_prefix: before every text that the sentence encoder sees; None takes what its name asks for.
    """

    text_encoder: str
    image_text_encoder: str
    captioner: str = NEAREST
    device: str = "cpu"
    trust_remote_code: bool = False
    max_new_tokens: int = 64
    dtype: str = "float32"
    text_prefix: str | None = None

    def __call__(self) -> AlignmentModels:
        # Torch and transformers are only loaded where scores are computed.
        from .encoders import (
            TransformersCaptioner,
            TransformersImageTextEncoder,
            TransformersTextEncoder,
            text_prefix,
        )
        from .scorer import CompactScorer, RetrievalCaptioner

        captioner: Captioner
        if self.captioner == NEAREST:
            captioner = RetrievalCaptioner.load(self.image_text_encoder)
        else:
            captioner = TransformersCaptioner(
                self.captioner,
                max_new_tokens=self.max_new_tokens,
                device=self.device,
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
            )
        prefix = text_prefix(self.text_encoder) if self.text_prefix is None else self.text_prefix
        image_text_encoder: ImageTextEncoder
        if is_compact_scorer(self.image_text_encoder):
            image_text_encoder = CompactScorer.load(self.image_text_encoder)
        else:
            image_text_encoder = TransformersImageTextEncoder(self.image_text_encoder, device=self.device)
        return AlignmentModels(
            captioner, TransformersTextEncoder(self.text_encoder, prefix, device=self.device), image_text_encoder
        )

    def describe(self) -> str:
        """Paths with a digest of the weights, so that scores of other weights are never taken for these."""
        paths = (self.captioner, self.text_encoder, self.image_text_encoder)
        names = ", ".join(f"{path} [{ends_digest(path)}]" for path in paths)
        return f"{names}, {self.max_new_tokens} tokens, {self.dtype}, prefix {self.text_prefix!r}"


def is_compact_scorer(path: str) -> bool:
    """Whether a folder holds what `train_scorer` writes."""
    return (Path(path) / "neighbors.npy").is_file()


def ends_digest(path: str) -> str:
    """A digest of what a folder's files hold at their ends; the name for a Hub id."""
    if not Path(path).is_dir():
        return path
    return hash_ends(sorted(file for file in Path(path).iterdir() if file.is_file()))[:12]


def alignment_with(paths: ModelPaths, captions: int = CAPTIONS) -> Alignment:
    """The alignment measure with these models, loaded once in every process that scores."""
    return Alignment(paths, paths.describe(), captions)
