"""Random views of the records' images: crops, turns and mirror images in other light.

Every draw comes from a generator on the processor, so that a device changes no view.

Shape legend: N images, H and W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .model import SIDE
from .record_images import CANVAS, RecordImages


@dataclass(frozen=True)
class Augmentation:
    """How much views differ from their images.

    Attributes:
        smallest, largest: sides of the views, in longer sides of the images.
        turn: greatest rotation, in radians.
        texture: whether views are also blurred, sharpened, made noisy and changed in their gamma.
        inverted: share of views whose gray levels are inverted.
    """

    smallest: float = 0.6
    largest: float = 1.05
    turn: float = 0.25
    texture: bool = True
    inverted: float = 0.0


def views(originals: RecordImages, index: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Square views (N, 3, SIDE, SIDE) in [-1, 1]: random ones, or with no generator the central squares."""
    shorter = originals.sizes[index].min(dim=1).values
    theta = _placed(originals, index, shorter, generator, 0.7, 1.0, 0.2)
    images = _sampled(originals.pixels[index].float() / 127.5 - 1.0, theta, SIDE, "border")
    return images if generator is None else _lit(images, generator)


def random_views(
    originals: RecordImages,
    index: torch.Tensor,
    generator: torch.Generator,
    augmentation: Augmentation,
    side: int = SIDE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (N, 3, side, side) in [-1, 1] of whole images or parts of them, black beside the images, and where they
    lie: (N, 2, 3), from places in the view to places on the canvas, both in [-1, 1]."""
    longer = originals.sizes[index].max(dim=1).values
    theta = _placed(
        originals, index, longer, generator, augmentation.smallest, augmentation.largest, augmentation.turn
    )
    images = _sampled(originals.pixels[index].float() / 255, theta, side, "zeros") * 2 - 1
    images = _lit(images, generator)
    return (_textured(images, generator, augmentation) if augmentation.texture else images), theta


def mask_views(masks: torch.Tensor, theta: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Masks, uint8 (N, CANVAS, CANVAS), as views (N, side, side) in [0, 1] at the places of `random_views`."""
    return _sampled(masks.float()[:, None] / 255, theta, side, "zeros")[:, 0]


def map_views(maps: torch.Tensor, theta: torch.Tensor, cells: int, span: float = 1.0) -> torch.Tensor:
    """Maps over the canvas, (N, channels, h, w), as views (N, channels, cells, cells).

    Args:
        span: side of the maps in sides of the canvas, where they reach beyond it on all sides.
    """
    return _sampled(maps, theta / span, cells, "border")


def cells_inside(images: RecordImages, index: torch.Tensor, theta: torch.Tensor, cells: int) -> torch.Tensor:
    """Which cells of views have their centers on the image, bool (N, cells * cells)."""
    grid = F.affine_grid(theta, [len(index), 1, cells, cells], align_corners=False)
    place = (grid + 1) / 2 * CANVAS
    extent = images.sizes[index].flip(1)[:, None, None]
    return ((place >= 0) & (place < extent)).all(dim=-1).flatten(1)


def _uniform(count: int, generator: torch.Generator | None, low: float, high: float) -> torch.Tensor:
    if generator is None:
        return torch.full((count,), (low + high) / 2)
    return torch.rand(count, generator=generator) * (high - low) + low


def _sampled(maps: torch.Tensor, theta: torch.Tensor, side: int, beside: str) -> torch.Tensor:
    grid = F.affine_grid(theta, [len(maps), maps.shape[1], side, side], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode=beside, align_corners=False)


def _placed(
    images: RecordImages,
    index: torch.Tensor,
    side: torch.Tensor,
    generator: torch.Generator | None,
    smallest: float,
    largest: float,
    turn: float,
) -> torch.Tensor:
    """Where squares of `smallest` to `largest` times `side` canvas pixels lie, for `affine_grid`."""
    device, count, place = side.device, len(index), index.cpu()

    def uniform(low: float, high: float) -> torch.Tensor:
        return _uniform(count, generator, low, high).to(device)

    side = side * (uniform(smallest, largest) if generator else 1.0)
    sizes = images.sizes[index]
    center = sizes / 2 + (sizes - side[:, None]) * torch.stack([uniform(-0.5, 0.5), uniform(-0.5, 0.5)], dim=1)
    angle = uniform(-turn, turn)
    mirror = torch.ones(count, device=device)
    if generator is not None:
        mirror = torch.where(images.mirrored[place].to(device) & (uniform(0, 1) < 0.5), -1.0, mirror)
        angle = angle + images.turned[place].to(device) * (uniform(0, 4).floor() * math.pi / 2)
    cosine, sine = angle.cos() * side / CANVAS, angle.sin() * side / CANVAS
    offset = center * 2 / CANVAS - 1
    return torch.stack(
        [
            torch.stack([cosine * mirror, -sine, offset[:, 1]], 1),
            torch.stack([sine * mirror, cosine, offset[:, 0]], 1),
        ],
        dim=1,
    )


def _lit(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images in [-1, 1] in other light."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return _uniform(len(images), generator, low, high).to(images.device)

    light = (images + 1) / 2
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    light = (light - mean) * uniform(0.75, 1.25)[:, None, None, None] + mean
    gains = torch.stack([uniform(0.95, 1.05) for _ in range(3)], dim=1) * uniform(0.8, 1.2)[:, None]
    return (light * gains[:, :, None, None]).clamp(0, 1) * 2 - 1


def _textured(images: torch.Tensor, generator: torch.Generator, augmentation: Augmentation) -> torch.Tensor:
    """Images in [-1, 1] blurred or sharpened, with noise, another gamma, or gray levels inverted."""
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> torch.Tensor:
        return _uniform(count, generator, low, high).to(device)[:, None, None, None]

    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = images + uniform(-0.5, 1.0) * (blurred - images)
    light = ((images + 1) / 2).clamp(1e-4, 1) ** uniform(-0.35, 0.35).exp()
    # One draw of noise serves all images, each with its own amplitude and sign.
    noise = torch.randn(images.shape[-2:], generator=generator).to(device)
    light = light + noise * uniform(-0.04, 0.04)
    light = torch.where(uniform(0, 1) < augmentation.inverted, 1 - light, light)
    return light.clamp(0, 1) * 2 - 1
