"""Checks and grey-level windows shared by the readers of medical formats."""

import math
from typing import Any

import numpy as np
from PIL import Image

# The reference refuses larger pictures (UniMedVL data_utils: 20 megapixels).
MAX_IMAGE_PIXELS = 20_000_000
# Beyond this the resize leaves a strip one patch high, in which nothing can be seen.
MAX_ASPECT_RATIO = 200


def check_image_size(width: int, height: int, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Raise ValueError for sizes (pixels) that are empty, larger than `max_pixels`, or absurdly elongated."""
    if width < 1 or height < 1:
        raise ValueError(f"The image is empty ({width} x {height} pixels): pass one with at least one pixel.")
    if width * height > max_pixels:
        raise ValueError(
            f"The image has {width} x {height} pixels, more than the limit of {max_pixels}: downscale or crop it, or "
            "raise the limit (max_pixels of load_medical_image, max_image_pixels of the image processor)."
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"The image of {width} x {height} pixels is more than {MAX_ASPECT_RATIO} times longer than wide: crop it."
        )


def checked_window(window: Any) -> tuple[float, float] | None:
    """(center, width) as floats, or None. Raises ValueError unless it is two finite numbers with a positive width."""
    if window is None:
        return None
    try:
        center, width = (float(value) for value in window)
    except (TypeError, ValueError):
        raise ValueError(f"window={window!r}: pass (center, width) as two numbers, for example (40, 400).") from None
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise ValueError(f"window={window!r}: pass finite numbers and a width above 0.")
    return center, width


def checked_percentiles(percentiles: Any) -> tuple[float, float]:
    """(low, high) in 0..100 as floats. Raises ValueError unless low < high."""
    try:
        low, high = (float(value) for value in percentiles)
    except (TypeError, ValueError):
        raise ValueError(f"percentiles={percentiles!r}: pass two numbers, for example (0.5, 99.5).") from None
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles={percentiles!r}: pass 0 <= low < high <= 100.")
    return low, high


def checked_index(index: Any, count: int, name: str, default: int) -> int:
    """`default` for None, else `index` itself if it is one of 0..count-1. Raises ValueError otherwise."""
    if index is None:
        return default
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < count:
        raise ValueError(f"{name}={index!r}: choose a whole number from 0 to {count - 1}.")
    return int(index)


def window_to_uint8(
    values: np.ndarray,
    window: tuple[float, float] | None,
    percentiles: tuple[float, float],
    ignored: np.ndarray | None = None,
) -> np.ndarray:
    """Map numbers of any real dtype and shape linearly to uint8 0..255, rounding half to even.

    The range is `center - width / 2 .. center + width / 2` of `window`, or else the two `percentiles` of the finite
    values outside `ignored` (a bool array of the same shape). Where those coincide it is minimum to maximum, and a
    constant image becomes 0. Values outside the range and infinities are clipped; NaN becomes 0. Raises ValueError if
    no value is finite.
    """
    values = values.astype(np.float64)
    counted = np.isfinite(values)
    if not counted.any():
        raise ValueError("The image holds no finite value (all NaN or infinite): check how it was exported.")
    if window is not None:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    else:
        if ignored is not None and (counted & ~ignored).any():
            counted &= ~ignored
        low, high = np.percentile(values[counted], percentiles)
        if low == high:
            low, high = values[counted].min(), values[counted].max()
        if low == high:
            return np.zeros(values.shape, dtype=np.uint8)
    levels = (np.clip(values, low, high) - low) / (high - low)
    return np.rint(np.nan_to_num(levels) * 255).astype(np.uint8)


def picture_from_uint8(array: np.ndarray) -> Image.Image:
    """PIL picture of an (H, W) or (H, W, 1|2|3|4) uint8 array."""
    assert array.dtype == np.uint8
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))
