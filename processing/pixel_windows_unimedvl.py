"""Checks and gray-level windows shared by the readers of medical formats."""

import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

# The reference refuses larger images (UniMedVL data_utils: 20 megapixels).
MAX_IMAGE_PIXELS = 20_000_000
# Beyond this the resize leaves a strip one patch high, in which nothing can be seen.
MAX_ASPECT_RATIO = 200
# Values of several slices that are sorted together: 2 GiB as float64.
MAX_VOLUME_VALUES = 2**28
NOTHING_FINITE = "The image holds no finite value (all NaN or infinite): check how it was exported."


class TooManyPixels(ValueError):
    """An image is larger than a limit.

    Args:
        width, height: its size in pixels.
        max_pixels: the limit.
    """

    def __init__(self, width: int, height: int, max_pixels: int):
        super().__init__(
            f"The image has {width} x {height} pixels, more than the limit of {max_pixels}: downscale or crop it, or "
            "raise the limit (max_pixels of load_medical_image, max_image_pixels of the image processor)."
        )
        self.width, self.height = width, height


@contextmanager
def no_patient_text(library: str = "pydicom") -> Iterator[None]:
    """Silence a library while it reads a file: its warnings and log lines quote what the file says."""
    logger = logging.getLogger(library)
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def check_image_size(width: int, height: int, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Refuse sizes (in pixels) that are empty, larger than `max_pixels`, or absurdly elongated.

    Raises:
        TooManyPixels: for a size beyond the limit.
        ValueError: for the other ones.
    """
    if width < 1 or height < 1:
        raise ValueError(f"The image is empty ({width} x {height} pixels): pass one with at least one pixel.")
    if width * height > max_pixels:
        raise TooManyPixels(width, height, max_pixels)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"The image of {width} x {height} pixels is more than {MAX_ASPECT_RATIO} times longer than wide: crop it."
        )


def check_volume_size(values: int, max_values: int | None = None) -> None:
    """Refuse more values than are sorted together for their percentiles.

    Args:
        values: how many there are.
        max_values: a limit below `MAX_VOLUME_VALUES`, which holds by default.

    Raises:
        ValueError: for more.
    """
    limit = min(MAX_VOLUME_VALUES if max_values is None else max_values, MAX_VOLUME_VALUES)
    if values > limit:
        raise ValueError(
            f"The slices hold {values} values together, more than the {limit} whose percentiles are taken: pass a "
            "window, or percentiles_of='slice'."
        )


def checked_window(window: Any) -> tuple[float, float] | None:
    """Check a window: (center, width) as floats, or None.

    Raises:
        ValueError: unless it is two finite numbers with a positive width.
    """
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
    """Check percentiles: (low, high) in 0..100 as floats.

    Raises:
        ValueError: unless they are two numbers with low < high.
    """
    try:
        low, high = (float(value) for value in percentiles)
    except (TypeError, ValueError):
        raise ValueError(f"percentiles={percentiles!r}: pass two numbers, for example (0.5, 99.5).") from None
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles={percentiles!r}: pass 0 <= low < high <= 100.")
    return low, high


def checked_index(index: Any, count: int, name: str, default: int) -> int:
    """Check an index: `default` for None, else `index` itself.

    Args:
        index: what the caller chose.
        count: how many there are.
        name: the argument, for the message.
        default: what None means.

    Raises:
        ValueError: unless the index is one of 0..count-1.
    """
    if index is None:
        return default
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < count:
        raise ValueError(f"{name}={index!r}: choose a whole number from 0 to {count - 1}.")
    return int(index)


def value_range(chunks: Iterable[np.ndarray], percentiles: tuple[float, float]) -> tuple[float, float]:
    """The two `percentiles` of all finite values in arrays of any real dtype; minimum and maximum where they coincide.

    The numbers become black and white. They are equal for a constant image.

    Raises:
        ValueError: if no value is finite.
    """
    parts = [chunk[np.isfinite(chunk)] if chunk.dtype.kind == "f" else chunk.ravel() for chunk in chunks]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not values.size:
        raise ValueError(NOTHING_FINITE)
    # numpy interpolates in the array's own type, in which the difference of two values may overflow.
    if values.dtype.kind == "i" or values.dtype == np.float16:
        values = values.astype(f"{values.dtype.kind}{min(2 * values.dtype.itemsize, 8)}")
    # Sorted in place, where it is a copy.
    is_copy = len(parts) > 1 or values.dtype.kind in "if"
    low, high = (float(value) for value in np.percentile(values, percentiles, overwrite_input=is_copy))
    if low == high:
        low, high = float(values.min()), float(values.max())
    return low, high


def values_to_uint8(values: np.ndarray, black_white: tuple[float, float]) -> np.ndarray:
    """Map numbers of any real dtype and shape linearly to uint8 0..255, rounding half to even.

    Values outside the range `black_white` and infinities are clipped; NaN becomes 0. Numbers are compared as float64,
    which does not distinguish all whole numbers beyond 2 ** 53.

    Raises:
        ValueError: if no value is finite.
    """
    low, high = black_white
    # Signaling NaNs, which damaged files hold.
    with np.errstate(invalid="ignore"):
        values = values.astype(np.float64)
    if not np.isfinite(values).any():
        raise ValueError(NOTHING_FINITE)
    if low == high:
        return np.zeros(values.shape, dtype=np.uint8)
    levels = (np.clip(values, low, high) - low) / (high - low)
    return np.rint(np.nan_to_num(levels) * 255).astype(np.uint8)


def voi_levels(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Map numbers of any real dtype and shape to uint8 by a window of DICOM (part 3, C.11.2.1.2 and C.11.2.1.3).

    NaN becomes 0. pydicom's `apply_windowing` gives the range of the stored bits instead of that of the display.

    Args:
        values: in the units of the window.
        center: of the window.
        width: of the window; above 0, and at least 1 for LINEAR.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID"; what the standard does not know is LINEAR.
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        # Beyond 700 the exponential has no float64, and no level that differs.
        shares = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    else:
        if function != "LINEAR_EXACT":
            center, width = center - 0.5, width - 1
        if width == 0:
            shares = (values > center).astype(np.float64)
        else:
            shares = np.clip((values - center) / width + 0.5, 0, 1)
    # Halves that lost their last bit in the division are rounded like halves.
    return np.rint((np.nan_to_num(shares) * 255).round(9)).astype(np.uint8)


def square_pixels(
    image: Image.Image,
    column_spacing: float,
    row_spacing: float,
    max_pixels: int = MAX_IMAGE_PIXELS,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Give an image square pixels of the finer of its two spacings.

    A difference below 1 % is left alone: it is that of every scanner's "square" pixels.

    Args:
        image: with pixels of any aspect.
        column_spacing, row_spacing: distances between columns and between rows, in any one unit.
        max_pixels: larger results are refused.
        resample: the filter.

    Raises:
        ValueError: if the result is too large or too elongated.
    """
    finer = min(column_spacing, row_spacing)
    if max(column_spacing, row_spacing) / finer < 1.01:
        return image
    width, height = round(image.width * column_spacing / finer), round(image.height * row_spacing / finer)
    check_image_size(width, height, max_pixels)
    return image.resize((width, height), resample)


def usable_spacing(value: Any) -> float:
    """A spacing, or 1.0 for what is none: not finite or not above 0."""
    spacing = float(value)
    return spacing if math.isfinite(spacing) and spacing > 0 else 1.0


def image_from_uint8(array: np.ndarray) -> Image.Image:
    """PIL image of an (H, W) or (H, W, 1|2|3|4) uint8 array."""
    assert array.dtype == np.uint8
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an 8-bit image to RGB as the reference does.

    RGBA or a transparent color is pasted on white, the rest is PIL's conversion (which drops the alpha of "LA").

    Raises:
        ValueError: for a LAB image.
    """
    if image.mode == "RGBA" or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new(mode="RGB", size=image.size, color=(255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return white
    if image.mode == "LAB":
        raise ValueError("LAB images can not be converted to RGB: save the image as an RGB PNG first.")
    return image.convert("RGB")
