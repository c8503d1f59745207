"""The networks: a convolutional one that reads an image and a question, and a U-Net.

Shape legend: N images, C channels, H and W pixels, K answers or masks, B buckets of words.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ..text_neighbors import pieces

BUCKETS = 2048


def word_buckets(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Buckets of the words and word pairs of texts, and where each text begins, for `nn.EmbeddingBag`."""
    rows = [[1 + zlib.crc32(piece.encode()) % (BUCKETS - 1) for piece in pieces(text)] or [0] for text in texts]
    lengths = torch.tensor([0, *(len(row) for row in rows[:-1])])
    return torch.tensor([number for row in rows for number in row]), lengths.cumsum(0)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
    )


class AnswerNetwork(nn.Module):
    """Image and question to one of the training answers."""

    def __init__(self, num_answers: int, widths: Sequence[int] = (16, 32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, stride=2, padding=1)]
        for before, after in pairwise(widths):
            layers += [_block(before, after), nn.MaxPool2d(2)]
        self.image = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3))
        self.question = nn.EmbeddingBag(BUCKETS, 64, mode="mean")
        self.head = nn.Sequential(nn.Linear(4 * widths[-1] + 64, 256), nn.SiLU(), nn.Linear(256, num_answers))

    def forward(self, pixels_NCHW: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Float pixels in [-1, 1] and questions to logits (N, K)."""
        asked = self.question(*word_buckets(texts))
        return self.head(torch.cat([self.image(pixels_NCHW), asked], dim=1))


class UNet(nn.Module):
    """Three levels; `residual` adds the result to the input, which then is where training starts."""

    def __init__(self, num_outputs: int, residual: bool, width: int = 16):
        super().__init__()
        self.residual = residual
        self.down = nn.ModuleList([_block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)])
        self.up = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.out = nn.Conv2d(width, num_outputs, 1)
        if residual:
            nn.init.zeros_(self.out.weight)
            assert self.out.bias is not None
            nn.init.zeros_(self.out.bias)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Float pixels in [-1, 1], sides divisible by 4, to (N, K, H, W)."""
        kept, hidden = [], pixels_NCHW
        for level, block in enumerate(self.down):
            hidden = block(hidden if level == 0 else nn.functional.max_pool2d(hidden, 2))
            kept.append(hidden)
        for block, skipped in zip(self.up, reversed(kept[:-1]), strict=True):
            hidden = block(torch.cat([nn.functional.interpolate(hidden, scale_factor=2.0), skipped], dim=1))
        made = self.out(hidden)
        return pixels_NCHW + made if self.residual else made
