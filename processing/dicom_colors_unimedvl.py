"""Colors of DICOM files as RGB, and the color spaces that are refused by their names."""

from typing import Any

import numpy as np

from .pixel_windows_unimedvl import values_to_uint8
from .view_unimedvl import View

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
CONVERTED = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422")
# Decoders of JPEG 2000 give RGB for them. They are no way to store pixels that are not compressed.
COMPRESSED_ONLY = ("YBR_ICT", "YBR_RCT")
REFUSED = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_420", "XYB", *COMPRESSED_ONLY)
# Luma and chroma of RGB (DICOM part 3, C.7.6.3.1.2): rows of Y, CB, CR, and their offsets, for 8 bits.
YBR_FULL = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
YBR_PARTIAL = np.array([[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]])
FULL_OFFSETS, PARTIAL_OFFSETS = (0, 128, 128), (16, 128, 128)


def check_color_space(color_space: str, *, is_decoded: bool = False) -> None:
    """Refuse color spaces that are not shown rightly.

    Args:
        color_space: photometric interpretation of a file, or of a frame that was decoded.
        is_decoded: which of the two.

    Raises:
        ValueError: one sentence, which names the color space only if the standard does.
    """
    if color_space in (*MONOCHROME, PALETTE, *CONVERTED) or (color_space in COMPRESSED_ONLY and not is_decoded):
        return
    if color_space in REFUSED:
        raise ValueError(
            f"The colors of the DICOM file are stored as {color_space}, which is not converted here: convert the file "
            "to RGB first, for example with dcmj2pnm of DCMTK."
        )
    raise ValueError(
        "The DICOM file states a photometric interpretation that the standard does not know: export it again as "
        "MONOCHROME2 or RGB."
    )


def rgb_of(array: np.ndarray, color_space: str, bits: int, pixels: Any) -> np.ndarray:
    """(H, W, 3) unsigned integers of `bits` bits as RGB of the same bits.

    Args:
        array: what a decoder gave.
        color_space: one of `CONVERTED`.
        bits: stored bits of a sample.
        pixels: the module pydicom.pixels.
    """
    if color_space == "RGB":
        return array
    if color_space != "YBR_PARTIAL_422" and bits == 8 and array.dtype == np.uint8:
        return pixels.convert_color_space(array, "YBR_FULL", "RGB")
    # pydicom counts in 8 bits and converts no partial range.
    partial = color_space == "YBR_PARTIAL_422"
    offsets = np.array(PARTIAL_OFFSETS if partial else FULL_OFFSETS) * 2.0 ** (bits - 8)
    colors = (array - offsets) @ np.linalg.inv(YBR_PARTIAL if partial else YBR_FULL).T
    return np.rint(np.clip(colors, 0, 2**bits - 1)).astype(array.dtype)


def color_levels(array: np.ndarray, bits: int, view: View) -> np.ndarray:
    """(H, W, 3) colors of `bits` bits as uint8; a window counts in those bits."""
    if view.window is not None:
        return values_to_uint8(array, view.black_white(()))
    if bits < 8:
        return np.rint(array * (255 / (2**bits - 1))).astype(np.uint8)
    return (array >> (bits - 8)).astype(np.uint8)
