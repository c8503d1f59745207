"""What the ViT's pre-training draws its batches from.

Shape legend: N images, C captions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from .probes import FOCUS
from .record_images import UNCAPTIONED, Masks, RecordImages, read_everything
from .teacher_features import TeacherFeatures, soft_captions, teach

SMOOTHING = 0.1  # share of a caption's probability that all captions divide among themselves


@dataclass
class Corpus:
    """The images and masks of both parts of the training split.

    Attributes:
        work: the folder that `prepare` has filled.
        device: where all tensors are.
        names, kinds: captions, and structures that masks show.
        teacher: the teacher's features of the training images.
    """

    work: Path
    device: str
    train: tuple[RecordImages, Masks]
    held_out: tuple[RecordImages, Masks]
    names: list[str]
    kinds: list[str]
    teacher: TeacherFeatures | None


def read_corpus(work: Path, teacher: Path | None = None, device: str = "cpu") -> Corpus:
    """Read the records, and the teacher's features from their cache or from the teacher.

    Raises:
        ValueError: if `work` holds no records, or the teacher is needed and not installed.
    """
    names: list[str] = []
    kinds: list[str] = []
    images, masks = read_everything(work, "train", names, kinds)
    held_out, held_out_masks = read_everything(work, "validation", names, kinds)
    return Corpus(
        work,
        device,
        (images.to(device), masks.to(device)),
        (held_out.to(device), held_out_masks.to(device)),
        names,
        kinds,
        teach(images, teacher, device).to(device) if teacher is not None else None,
    )


@dataclass
class Data:
    """What steps draw from, on one device.

    Attributes:
        targets: probabilities of the captions (N, C); zero where an image has none.
        weights: how often to draw each image (N,), on the processor.
    """

    images: RecordImages
    masks: Masks
    targets: torch.Tensor
    weights: torch.Tensor
    teacher: TeacherFeatures | None

    def draw(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of images, half drawn by caption and half by mask, and the places of those masks."""
        by_caption = torch.multinomial(self.weights, batch - batch // 2, replacement=True, generator=generator)
        by_mask = torch.multinomial(self.masks.rarity, batch // 2, replacement=True, generator=generator)
        device = self.images.pixels.device
        by_mask = by_mask.to(device)
        return torch.cat([by_caption.to(device), self.masks.images[by_mask]]), by_mask


def drawing_weights(images: RecordImages, focus: float) -> torch.Tensor:
    """How often to draw each image (N,): by the rarity of its caption, and `focus` times as often from FOCUS."""
    return images.rarity * torch.tensor([focus if source in FOCUS else 1.0 for source in images.sources])


def caption_targets(images: RecordImages, captions: int, teacher: TeacherFeatures | None, soft: float) -> torch.Tensor:
    """Probabilities (N, C): the image's caption and, with the weight `soft`, what the teacher's probes say, both
    smoothed by a tenth; zero where an image has no caption."""
    numbers = images.captions.cpu()
    stated = (numbers != UNCAPTIONED)[:, None]
    targets = F.one_hot(numbers.clamp(min=0), captions).float()
    if soft:
        assert teacher is not None
        targets = (1 - soft) * targets + soft * soft_captions(teacher.pooled, images, captions)
    return (targets * (1 - SMOOTHING) + SMOOTHING / captions) * stated
