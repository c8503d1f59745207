"""Overlap of a generated mask with the true one: Dice, IoU, 95 % Hausdorff distance.

Read-out rule: the mask of an image is its bright pixels, where the mean of the channels is above 127.5 (nearer to
white than to black); a mask of another size is resized to the reference's without interpolation.
"""

from collections.abc import Sequence
from typing import Any

import numpy
from PIL import Image
from scipy import ndimage

THRESHOLD = 127.5
Mask = Image.Image | numpy.ndarray


def read_mask(image: Mask, size: tuple[int, int] | None = None) -> numpy.ndarray:
    """The mask of an image, bool (height, width).

    Args:
        image: an image, levels (height, width) or (height, width, 3) in [0, 255], or a bool mask.
        size: (height, width) to resize to, without interpolation.

    Raises:
        ValueError: for NaN or infinite levels.
    """
    pixels = numpy.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype.kind == "f" and not numpy.isfinite(pixels).all():
        raise ValueError("the mask holds NaN or infinite values: repair it before scoring.")
    if pixels.ndim == 3:
        pixels = pixels.astype(numpy.float64).mean(axis=-1)
    mask = pixels if pixels.dtype == bool else pixels > THRESHOLD
    if size is not None and mask.shape != tuple(size):
        small = Image.fromarray(mask.astype(numpy.uint8))
        mask = numpy.asarray(small.resize((size[1], size[0]), Image.Resampling.NEAREST)).astype(bool)
    return mask


def read_masks(prediction: Mask, reference: Mask) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Both masks by the read-out rule, bool of the reference's (height, width)."""
    wanted = read_mask(reference)
    return read_mask(prediction, wanted.shape), wanted


def dice(prediction: Mask, reference: Mask) -> float:
    """Overlap of two masks (Dice 1945): 2 |A and B| / (|A| + |B|).

    Args:
        prediction: the generated mask, as `read_mask` takes it.
        reference: the true mask, whose size counts.

    Returns:
        The overlap in [0, 1]; 1 where both masks are empty.
    """
    given, wanted = read_masks(prediction, reference)
    sizes = int(given.sum()) + int(wanted.sum())
    return 2 * int((given & wanted).sum()) / sizes if sizes else 1.0


def iou(prediction: Mask, reference: Mask) -> float:
    """Intersection over union of two masks (Jaccard 1912): |A and B| / |A or B|.

    Args:
        prediction: the generated mask, as `read_mask` takes it.
        reference: the true mask, whose size counts.

    Returns:
        The overlap in [0, 1]; 1 where both masks are empty.
    """
    given, wanted = read_masks(prediction, reference)
    union = int((given | wanted).sum())
    return int((given & wanted).sum()) / union if union else 1.0


def hausdorff_95(prediction: Mask, reference: Mask) -> float:
    """The larger of the two 95th percentiles of the distances from each surface pixel to the other surface.

    It is the Hausdorff distance (Huttenlocher et al. 1993) with percentiles in the place of maxima. A surface pixel
    has a neighbor outside, and what lies beyond the image's border counts as outside.

    Args:
        prediction: the generated mask, as `read_mask` takes it.
        reference: the true mask, whose size counts.

    Returns:
        The distance in pixels of the reference; 0 where both masks are empty, the image's diagonal where one is.
    """
    given, wanted = read_masks(prediction, reference)
    if not given.any() and not wanted.any():
        return 0.0
    if not given.any() or not wanted.any():
        return float(numpy.hypot(*wanted.shape))
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (given, wanted)]
    distances = [ndimage.distance_transform_edt(~surface) for surface in surfaces]
    there = numpy.percentile(distances[1][surfaces[0]], 95)
    back = numpy.percentile(distances[0][surfaces[1]], 95)
    return float(max(there, back))


def mask_scores(prediction: Mask, reference: Mask) -> dict[str, float]:
    """`dice`, `iou` and `hd95` (pixels) of one pair, by the read-out rule."""
    pair = read_masks(prediction, reference)
    return {"dice": dice(*pair), "iou": iou(*pair), "hd95": hausdorff_95(*pair)}


def segmentation(predictions: Sequence[Mask], references: Sequence[Mask]) -> dict[str, Any]:
    """Overlap of generated masks with the true ones: Dice, IoU, 95 % Hausdorff distance.

    Read-out rule: an image is a mask of its bright pixels, where the mean of the channels is above 127.5 (nearer to
    white than to black); a mask of another size is resized to the reference's without interpolation.

    * dice = 2 |A and B| / (|A| + |B|), iou = |A and B| / |A or B|; both 1 where both masks are empty.
    * hd95: the larger of the two 95th percentiles of the distances, in pixels of the reference, from each surface
      pixel to the other surface; 0 where both masks are empty, the image's diagonal where one is.

    Args:
        predictions: generated masks.
        references: true masks.

    Returns:
        means over images of `dice`, `iou` (in [0, 1]) and `hd95` (pixels), `empty_references` and `count`.

    Raises:
        ValueError: without a mask, or for NaN or infinite levels.

    Source:
        Huttenlocher, Klanderman and Rucklidge 1993, "Comparing images using the Hausdorff distance", IEEE TPAMI 15(9);
        scipy's `scipy.ndimage`.
    """
    if not predictions:
        raise ValueError("there is nothing to score: pass at least one mask.")
    rows = [mask_scores(*pair) for pair in zip(predictions, references, strict=True)]
    empty = sum(not read_mask(reference).any() for reference in references)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means | {"empty_references": empty, "count": len(rows)}
