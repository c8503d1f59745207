"""Arrays and tensors as 8-bit images."""

import math
import os
import sys
import tokenize
from typing import Any

import numpy as np
from PIL import Image

from .pixel_windows_unimedvl import check_image_size, checked_index, image_from_uint8, values_to_uint8
from .view_unimedvl import View


def is_tensor(source: Any) -> bool:
    """Whether it is a torch tensor; who has none need not wait for torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def read_npy(stream: Any, what: str) -> np.ndarray:
    """Read a .npy file, without running code and without allocating more than it holds.

    Raises:
        ValueError: one sentence that calls the file `what`.
    """
    broken = f"{what} is a damaged .npy file or holds Python objects: save a numeric array with numpy.save again."
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        # numpy allocates what the header promises before it reads.
        if math.prod(shape) * dtype.itemsize > stream.seek(0, os.SEEK_END):
            raise ValueError(broken)
        stream.seek(0)
        # Object arrays are pickles.
        return np.load(stream, allow_pickle=False)
    # numpy parses the header as Python source.
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, tokenize.TokenError, OverflowError, MemoryError):
        raise ValueError(broken) from None


class ArrayImage:
    """An array or tensor as an image; a last axis of 1, 3 or 4 is taken for channels, else a first one is.

    Masked elements are not counted and become black.

    Args:
        array: (H, W), (H, W, 1|3|4) or (1|3|4, H, W), perhaps with trailing axes of one.
        white: the number that is white where no window says otherwise; by default 255 for uint8.
    """

    def __init__(self, array: Any, white: int | None = None):
        self._array, self._white = array, white

    def image(self, view: View) -> Image.Image:
        """The array in 8 bits.

        Raises:
            ValueError: one sentence, for a type or a shape that is no image's.
        """
        view.refuse_slice()
        checked_index(view.frame, 1, "frame", default=0)
        array = _numpy_array(self._array)
        hidden = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
        array = np.ma.getdata(array)
        if hidden is not None:
            array, hidden = _channels_last(array), _channels_last(hidden)
        else:
            array = _channels_last(array)
        check_image_size(array.shape[1], array.shape[0], view.max_pixels)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if view.window is None and self._white is not None:
            levels = np.rint(np.minimum(array / self._white, 1) * 255).astype(np.uint8)
        elif view.window is not None or array.dtype != np.uint8:
            levels = values_to_uint8(array, view.black_white([array if hidden is None else array[~hidden]]))
        else:
            levels = array
        return image_from_uint8(levels if hidden is None else np.where(hidden, np.uint8(0), levels))


def _numpy_array(array: Any) -> np.ndarray:
    """The numbers of an array or tensor on the CPU.

    Raises:
        ValueError: for anything but real numbers.
    """
    dtype = array.dtype
    if is_tensor(array):
        if array.is_floating_point() and array.element_size() < 4:
            array = array.float()
        try:
            array = array.detach().cpu().resolve_conj().resolve_neg().numpy()
        # Sparse, quantized and meta tensors, and types that numpy does not have.
        except (TypeError, RuntimeError, NotImplementedError):
            raise ValueError(
                f"An image tensor can not be of type {dtype}, {array.layout}: pass a dense one."
            ) from None
    if array.dtype.kind not in "buif":
        raise ValueError(f"An image array can not be of type {dtype}: pass real numbers, best uint8.")
    return array


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C).

    Raises:
        ValueError: for any other shape.
    """
    shape = array.shape
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"An image array can not have the shape {tuple(shape)}: pass (H, W), (H, W, 3) or (3, H, W), "
            "one slice of a volume at a time."
        )
    return array
