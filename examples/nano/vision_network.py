"""The ViT with the heads that teach it and are thrown away afterwards.

Shape legend: N images, P patches, K kept patches, D hidden, C captions, H and W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .model import TABLE_SIDE, VIT_PATCH

DECODER_WIDTH = 96


def patches(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) to rows (N, P, VIT_PATCH * VIT_PATCH * 3), each (py, px, channel)."""
    count, _, height, width = images.shape
    rows, columns = height // VIT_PATCH, width // VIT_PATCH
    split = images.reshape(count, 3, rows, VIT_PATCH, columns, VIT_PATCH).permute(0, 2, 4, 3, 5, 1)
    return split.reshape(count, rows * columns, -1)


def patch_positions(height: int, width: int) -> torch.Tensor:
    """Rows of the position table (P,) of the patches of an image of so many pixels."""
    rows, columns = torch.arange(height // VIT_PATCH), torch.arange(width // VIT_PATCH)
    return (rows[:, None] * TABLE_SIDE + columns[None, :]).flatten()


def kept_patches(inside: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Random patches (N, K) of each image, those that show something of it first.

    Args:
        inside: bool (N, P).
        share: of the patches, in (0, 1].
    """
    count = round(inside.shape[1] * share)
    order = torch.rand(inside.shape, generator=generator).to(inside.device) + (~inside).float()
    return order.argsort(dim=1)[:, :count]


def at(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Of values (N, P, ...) those of the kept patches, (N, K, ...)."""
    return torch.take_along_dim(values, kept[..., None], dim=1)


class PixelDecoder(nn.Module):
    """The pixels of all patches from the features of a few: one transformer layer over features and empty places."""

    def __init__(self, hidden: int):
        super().__init__()
        self.embed = nn.Linear(hidden, DECODER_WIDTH)
        self.empty = nn.Parameter(torch.zeros(DECODER_WIDTH))
        self.positions = nn.Embedding(TABLE_SIDE**2, DECODER_WIDTH)
        self.layer = nn.TransformerEncoderLayer(
            DECODER_WIDTH, 3, 2 * DECODER_WIDTH, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(DECODER_WIDTH, 3 * VIT_PATCH**2)

    def forward(self, features_NKD: torch.Tensor, kept_NK: torch.Tensor, positions_P: torch.Tensor) -> torch.Tensor:
        """Normalized pixels (N, P, VIT_PATCH * VIT_PATCH * 3)."""
        embedded = self.embed(features_NKD)
        filled = self.empty.to(embedded.dtype).expand(len(features_NKD), len(positions_P), -1)
        filled = filled.scatter(1, kept_NK[..., None].expand_as(embedded), embedded)
        return self.out(self.layer(filled + self.positions(positions_P)))


class VisionPretraining(nn.Module):
    """The ViT, scores of captions, maps from features to masks, and projections to a teacher's features.

    Args:
        vit: the nano's ViT.
        captions: number of captions.
        kinds: number of kinds of masks.
        hidden: width between a feature and the pixels of a mask; 0 for a linear map.
        taught: channels of the teacher's maps, and of its pooled features; None for no teacher.
        decoder: whether pixels of dropped patches are predicted.
    """

    def __init__(
        self,
        vit: nn.Module,
        captions: int,
        kinds: int,
        hidden: int = 0,
        taught: tuple[int, int] | None = None,
        decoder: bool = False,
    ):
        super().__init__()
        config: Any = vit.config
        width = config.hidden_size
        self.vit, self.caption_head = vit, nn.Linear(width, captions)
        self.mask_trunk = nn.Sequential(nn.Linear(width, hidden), nn.GELU()) if hidden else nn.Identity()
        self.mask_weight = nn.Parameter(torch.randn(kinds, hidden or width, VIT_PATCH**2) * (hidden or width) ** -0.5)
        self.mask_bias = nn.Parameter(torch.zeros(kinds, VIT_PATCH**2))
        self.projectors = None
        if taught is not None:
            channels, pooled = taught
            spatial = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, channels))
            self.projectors = nn.ModuleList([spatial, nn.Linear(width, pooled)])
        self.decoder = PixelDecoder(width) if decoder else None

    def features(self, images: torch.Tensor, kept_NK: torch.Tensor | None = None) -> torch.Tensor:
        """Features (N, P, D) of images (N, 3, H, W) in [-1, 1], or (N, K, D) of the kept patches alone."""
        vit: Any = self.vit
        rows = patches(images)
        positions = patch_positions(*images.shape[-2:]).to(images.device).expand(len(images), -1)
        if kept_NK is not None:
            rows, positions = at(rows, kept_NK), positions.gather(1, kept_NK)
        # Images of one size need no mask between them: a batch is the ViT's row of one image several times.
        encoded = vit.encoder(vit.embeddings(rows, positions), attention_mask=None).last_hidden_state
        return vit.post_layernorm(encoded)

    def captions(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (N, C) of the captions from features (N, P, D)."""
        return self.caption_head(features.mean(dim=1))

    def masks(self, features: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Scores (N, P, VIT_PATCH**2) of the pixels of patches, from their features and kinds of mask (N,)."""
        return torch.baddbmm(self.mask_bias[kinds][:, None], self.mask_trunk(features), self.mask_weight[kinds])

    def taught(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's features of patches (N, P, channels) and of images (N, pooled), from features (N, P, D)."""
        assert self.projectors is not None
        spatial, pooled = self.projectors
        return spatial(features), pooled(features.mean(dim=1))


def whole_mask(scores: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scores (N, P, VIT_PATCH**2) as images (N, height, width)."""
    rows, columns = height // VIT_PATCH, width // VIT_PATCH
    tiles = scores.reshape(len(scores), rows, columns, VIT_PATCH, VIT_PATCH)
    return tiles.permute(0, 1, 3, 2, 4).reshape(len(scores), height, width)


def mask_patches(masks: torch.Tensor) -> torch.Tensor:
    """Masks (N, H, W) as patches (N, P, VIT_PATCH**2)."""
    count, height, width = masks.shape
    tiles = masks.reshape(count, height // VIT_PATCH, VIT_PATCH, width // VIT_PATCH, VIT_PATCH)
    return tiles.permute(0, 1, 3, 2, 4).reshape(count, -1, VIT_PATCH**2)


def mask_loss(scores: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the pixels plus one minus the soft overlap of each image, means over images (N, P, pixels)."""
    shares = scores.sigmoid()
    overlap = 2 * (shares * masks).sum(dim=(1, 2)) / (shares.sum(dim=(1, 2)) + masks.sum(dim=(1, 2)) + 1.0)
    return F.binary_cross_entropy_with_logits(scores, masks) + (1 - overlap).mean()


def pixel_loss(made: torch.Tensor, rows: torch.Tensor, kept_NK: torch.Tensor) -> torch.Tensor:
    """Squared error of the dropped patches' pixels (N, P, values), each patch normalized by itself.

    He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3 and its normalized targets.
    """
    mean, variance = rows.mean(dim=-1, keepdim=True), rows.var(dim=-1, keepdim=True)
    error = (made - (rows - mean) / (variance + 1e-2).sqrt()).square().mean(dim=-1)
    dropped = torch.ones_like(error).scatter(1, kept_NK, 0.0)
    return (error * dropped).sum() / dropped.sum()


def direction_loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between vectors along the last dimension, the mean over all."""
    return 1 - F.cosine_similarity(made.float(), wanted.float(), dim=-1).mean()


def drop_paths(vit: nn.Module, rate: float) -> None:
    """While training, skip each residual branch of an image at random, the last layer's with probability `rate`.

    Huang et al. 2016, "Deep Networks with Stochastic Depth": the probability grows linearly with depth.
    """
    encoder: Any = vit.encoder
    layers: list[Any] = list(encoder.layers)

    def hook(share: float):
        def skip(module: nn.Module, _: Any, output: Any) -> Any:
            if not module.training:
                return output
            branch = output[0] if isinstance(output, tuple) else output
            stays = (torch.rand(len(branch)) >= share).to(branch) / (1 - share)
            branch = branch * stays[:, None, None]
            return (branch, *output[1:]) if isinstance(output, tuple) else branch

        return skip

    for depth, layer in enumerate(layers, start=1):
        share = rate * depth / len(layers)
        layer.self_attn.register_forward_hook(hook(share))
        layer.mlp.register_forward_hook(hook(share))
