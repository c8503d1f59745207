"""Overlap of a generated mask with the true one: Dice, IoU, 95 % Hausdorff distance."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy
from PIL import Image
from scipy import ndimage

THRESHOLD = 127.5

DESCRIPTION = """Overlap of masks. Read-out rule: a generated picture is a mask of its bright pixels, where the mean of
the channels is above 127.5 (nearer to white than to black); a mask of another size is resized to the reference's
without interpolation; the reference is read by the same threshold.
dice = 2|A and B| / (|A| + |B|), iou = |A and B| / |A or B|; both 1 where both masks are empty.
hd95: the larger of the two 95th percentiles of the distances, in pixels of the reference, from each surface pixel to
the other surface; 0 where both masks are empty, the picture's diagonal where one is."""
INPUTS = """
Args:
    predictions (list of images), references (list of images).
Returns:
    means over pictures of dice, iou (in [0, 1]) and hd95 (pixels), `empty_references` and `count`.
"""
CITATION = """@article{huttenlocher1993hausdorff, title={Comparing images using the Hausdorff distance},
author={Huttenlocher, Daniel and others}, journal={IEEE TPAMI}, year={1993}}"""


def read_mask(image: Image.Image | numpy.ndarray, size: tuple[int, int] | None = None) -> numpy.ndarray:
    """The mask of a picture, bool (height, width).

    Args:
        image: a picture, levels (height, width) or (height, width, 3) in 0 to 255, or a bool mask.
        size: (height, width) to resize to, without interpolation.
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


def mask_scores(prediction: Any, reference: Any) -> dict[str, float]:
    """Dice, IoU and 95 % Hausdorff distance of one pair, by the read-out rule."""
    wanted = read_mask(reference)
    given = read_mask(prediction, wanted.shape)
    both, sizes = int((given & wanted).sum()), int(given.sum()) + int(wanted.sum())
    dice = 1.0 if sizes == 0 else 2 * both / sizes
    iou = 1.0 if sizes == 0 else both / (sizes - both)
    return {"dice": dice, "iou": iou, "hd95": hausdorff_95(given, wanted)}


def hausdorff_95(given: numpy.ndarray, wanted: numpy.ndarray) -> float:
    """The 95 % Hausdorff distance of two bool masks of one shape, in pixels."""
    if not given.any() and not wanted.any():
        return 0.0
    if not given.any() or not wanted.any():
        return float(numpy.hypot(*wanted.shape))
    surfaces = [_surface(mask) for mask in (given, wanted)]
    distances = [ndimage.distance_transform_edt(~surface) for surface in surfaces]
    there = numpy.percentile(distances[1][surfaces[0]], 95)
    back = numpy.percentile(distances[0][surfaces[1]], 95)
    return float(max(there, back))


def _surface(mask: numpy.ndarray) -> numpy.ndarray:
    """Pixels of a mask with a neighbour outside, the picture's border counting as outside."""
    return mask & ~ndimage.binary_erosion(mask)


class SegmentationOverlap(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        picture = datasets.Image()
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": picture, "references": picture}),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/ndimage.html"],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        if not predictions:
            raise ValueError("there is nothing to score: pass at least one mask.")
        rows = [mask_scores(*pair) for pair in zip(predictions, references, strict=True)]
        empty = sum(not read_mask(reference).any() for reference in references)
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return means | {"empty_references": empty, "count": len(rows)}
