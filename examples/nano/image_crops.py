"""Images of the records as one tensor, and crops of them made where the tensor is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image

from .prepare import image_of, is_image_request, work_records

MASK = "mask"  # in the place of a modality


@dataclass
class Images:
    """`pixels` uint8 (N, 3, canvas, canvas) with each image in the upper left and its last row and column repeated
    beside it, their `sizes` float32 (N, 2) as (height, width), and their modalities, `MASK` for rendered masks."""

    pixels: torch.Tensor
    sizes: torch.Tensor
    modalities: list[str]

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device."""
        return Images(self.pixels.to(device), self.sizes.to(device), self.modalities)

    def chosen(self, index: Sequence[int]) -> "Images":
        """Some of the images."""
        return Images(self.pixels[list(index)], self.sizes[list(index)], [self.modalities[i] for i in index])

    def places(self, masks: bool) -> list[int]:
        """Where the masks are, or all other images."""
        return [place for place, modality in enumerate(self.modalities) if (modality == MASK) == masks]

    def rarity(self, mask_share: float) -> torch.Tensor:
        """How often to draw each image (N,): a modality by the square root of its images, masks so often of all."""
        counts = Counter(self.modalities)
        drawn = torch.tensor([counts[modality] ** -0.5 for modality in self.modalities])
        masks = torch.tensor([modality == MASK for modality in self.modalities])
        if masks.any() and not masks.all():
            drawn[masks] *= mask_share / (1 - mask_share) * drawn[~masks].sum() / drawn[masks].sum()
        return drawn


def stack_images(images: Sequence[Image.Image], modalities: Sequence[str]) -> Images:
    """RGB images on canvases of the longest side among them."""
    canvas = max(max(image.size) for image in images)
    pixels = torch.empty(len(images), 3, canvas, canvas, dtype=torch.uint8)
    for place, image in enumerate(images):
        # Bicubic samples near an edge reach beyond it.
        beside = ((0, canvas - image.height), (0, canvas - image.width), (0, 0))
        filled = numpy.pad(numpy.asarray(image), beside, mode="edge")
        pixels[place] = torch.from_numpy(filled).permute(2, 0, 1)
    sizes = torch.tensor([(image.height, image.width) for image in images]).float()
    return Images(pixels, sizes, list(modalities))


def read_images(work: Path, split: str) -> Images:
    """The images of the records and their rendered segmentation masks.

    Raises:
        ValueError: where there is no image.
    """
    images, modalities = [], []
    for record in work_records(work, split):
        mask = record.sub_task_type == "segmentation"
        if mask or record.sub_task_type in ("cross_modal", "virtual_staining") or is_image_request(record):
            images.append(image_of(record))
            modalities.append(MASK if mask else record.modality)
    if set(modalities) <= {MASK}:
        raise ValueError(f"{work} holds no image of its {split} part: build more records.")
    return stack_images(images, modalities)


def random_crops(
    images: Images, index: torch.Tensor, shape: tuple[int, int], side: int, generator: torch.Generator
) -> torch.Tensor:
    """Crops (N, 3, *shape) in [-1, 1] where the images are, mirrored half of the time.

    A crop covers 70-100 % of the rectangle of `shape` (height, width) in the image with a longer side of `side`
    pixels, or in the smallest one that holds it.

    Args:
        generator: on the processor, so that a seed draws the same crops everywhere.
    """
    drawn = torch.rand(4, len(index), generator=generator).to(images.pixels.device)
    sizes = images.sizes[index]
    window = torch.tensor(shape, device=sizes.device)
    zoom = torch.minimum(sizes.amax(dim=1) / side, (sizes / window).amin(dim=1)) * (0.7 + 0.3 * drawn[0])
    extent = zoom[:, None] * window
    center = extent / 2 + (sizes - extent) * drawn[1:3].T
    mirror = torch.where(drawn[3] < 0.5, -1.0, 1.0)
    canvas = images.pixels.shape[-1]
    theta = torch.zeros(len(index), 2, 3, device=sizes.device)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * extent[:, 1] / canvas, extent[:, 0] / canvas
    theta[:, :, 2] = center.flip(1) * 2 / canvas - 1
    grid = F.affine_grid(theta, [len(index), 3, *shape], align_corners=False)
    pixels = images.pixels[index].float() / 127.5 - 1.0
    crops = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return crops.clamp(-1, 1)


def center_squares(images: Images, side: int) -> torch.Tensor:
    """The central squares of all images at `side` pixels, uint8 (N, 3, side, side), resized as PIL's bicubic."""
    squares = []
    for pixels, size in zip(images.pixels, images.sizes.int().tolist(), strict=True):
        short = min(size)
        top, left = (size[0] - short) // 2, (size[1] - short) // 2
        square = pixels[None, :, top : top + short, left : left + short]
        squares.append(F.interpolate(square, (side, side), mode="bicubic", antialias=True))
    return torch.cat(squares)
