"""Model outputs as images and class maps."""

from typing import Any

import numpy as np
import torch
from PIL import Image


def generated(output: Any, name: str) -> Any:
    """`output.name` or `output[name]` where generate returned an object, else `output`."""
    if isinstance(output, dict):
        return output[name]
    return output if isinstance(output, torch.Tensor) else getattr(output, name, output)


def decoded(tokenizer: Any, ids: Any, **options: Any) -> list[str]:
    """Decode token ids (B, S), (S,) or a list of such rows.

    Args:
        tokenizer: decodes each row.
        ids: a tensor, an array or lists.
        **options: arguments of the tokenizer's `decode`.

    Raises:
        ValueError: for pixels.
    """
    if isinstance(ids, torch.Tensor) and ids.is_floating_point():
        raise ValueError("These are pixels, not token ids: pass generation_mode='image'.")
    if isinstance(ids, torch.Tensor | np.ndarray):
        ids = ids.tolist()
    rows = ids if ids and not isinstance(ids[0], int) else [ids]
    return [tokenizer.decode(row, **options) for row in rows]


def are_images(images: Any) -> bool:
    """Whether this is a PIL image or a non-empty list of them."""
    return isinstance(images, Image.Image) or (
        isinstance(images, list | tuple) and bool(images) and all(isinstance(image, Image.Image) for image in images)
    )


def images_from_pixels(pixels: Any) -> list[Image.Image]:
    """Convert float pixels in [-1, 1] to PIL RGB images.

    The level is truncated, not rounded, as in the BAGEL reference.

    Args:
        pixels: (N, 3, H, W), (3, H, W) or a list of (3, H, W).

    Raises:
        ValueError: for other shapes and for non-finite values.
    """
    if isinstance(pixels, torch.Tensor) and pixels.ndim == 3:
        pixels = [pixels]
    if not isinstance(pixels, torch.Tensor | list | tuple):
        raise ValueError(f"Images can not be a {type(pixels).__name__}: pass what generate returned in image mode.")
    images = []
    for image in pixels:
        is_float = isinstance(image, torch.Tensor) and image.is_floating_point()
        if not is_float or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError("Images must be float tensors (3, H, W): pass what generate returned in image mode.")
        if not image.isfinite().all():
            raise ValueError("The image holds NaN or infinite values: generate it in float32 or bfloat16.")
        levels = (image.detach().float().cpu() * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
        images.append(Image.fromarray(levels.to(torch.uint8).numpy()))
    return images


def class_maps_from_images(
    images: Image.Image | list[Image.Image],
    num_classes: int,
    palette: list | None,
    size: Any,
) -> list[torch.Tensor]:
    """Read PIL images as class maps by the rule of `UniMedVLProcessor.post_process_masks`.

    Args:
        images: one image or several.
        num_classes, palette, size: as there.

    Returns:
        int64 (H, W) for each image.

    Raises:
        ValueError: for an argument out of range.
    """
    if palette is None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 1 <= num_classes <= 255:
            raise ValueError(f"num_classes={num_classes!r}: pass the number of classes besides background, 1 to 255.")
        colors = np.array([[round(255 * index / num_classes)] for index in range(num_classes + 1)])
    else:
        colors = np.array(palette)
        if colors.ndim != 2 or colors.shape[1] != 3 or not 2 <= len(colors) <= 256 or colors.dtype.kind not in "iu":
            raise ValueError("palette must list 2 to 256 (R, G, B) colors of whole numbers, the background first.")
    images = [images] if isinstance(images, Image.Image) else list(images)
    is_one_size = size is None or all(isinstance(side, int | np.integer) for side in size)
    sizes = [size] * len(images) if is_one_size else list(size)
    if len(sizes) != len(images):
        raise ValueError(f"{len(sizes)} sizes for {len(images)} images: pass one (height, width), or one per image.")
    for target in sizes:
        if target is not None and (len(target) != 2 or not all(side >= 1 for side in target)):
            raise ValueError(f"size={target!r}: pass (height, width) in pixels, both at least 1.")
    masks = []
    for image, target in zip(images, sizes, strict=True):
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
        if palette is None:
            pixels = pixels.mean(axis=-1, keepdims=True)
        # One class at a time keeps the memory at one image. Strictly nearer, so that the earlier class wins a tie.
        nearest = np.zeros(pixels.shape[:2], dtype=np.uint8)
        distance = np.full(pixels.shape[:2], np.inf, dtype=np.float32)
        for index, color in enumerate(colors):
            other = np.square(pixels - color.astype(np.float32)).sum(axis=-1)
            nearest[other < distance] = index
            distance = np.minimum(distance, other)
        if target is not None:
            height, width = target
            nearest = np.array(Image.fromarray(nearest).resize((width, height), Image.Resampling.NEAREST))
        masks.append(torch.from_numpy(nearest).long())
    return masks
