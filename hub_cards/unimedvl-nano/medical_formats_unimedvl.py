"""Load a picture from whatever a medical image comes in: DICOM, NIfTI, 16-bit and float images, arrays."""

import base64
import binascii
import io
import math
import os
import re
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps

from .dicom_unimedvl import is_dicom, read_dicom
from .nifti_unimedvl import nifti_version, read_nifti, unpacked_header
from .pixel_windows_unimedvl import (
    MAX_IMAGE_PIXELS,
    check_image_size,
    checked_index,
    checked_percentiles,
    checked_window,
    picture_from_uint8,
    window_to_uint8,
)

# Formats PIL decodes by itself; others (EPS, FPX, ...) start programs or carry no medical pictures.
PICTURE_FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM", "AVIF")
READABLE = "a PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, PNM, DICOM, NIfTI or .npy file"
GREY_BEYOND_8_BITS = ("I", "F")
EXIF_ORIENTATION = 0x0112
MAX_DOWNLOAD_BYTES = 2**28
DOWNLOAD_TIMEOUT_SECONDS = 30


def load_medical_image(
    source: Any,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    plane: str | None = None,
    slice_index: int | None = None,
    percentiles: tuple[float, float] = (0.5, 99.5),
    max_pixels: int = MAX_IMAGE_PIXELS,
    allow_url: bool = False,
) -> Image.Image:
    """An 8-bit PIL picture of `source`, upright and windowed for display.

    source: a path; bytes or a binary file object holding a file; a `data:image/...;base64,` string; a PIL picture; a
      numpy array or torch tensor (H, W), (H, W, 1|3|4) or (1|3|4, H, W). Files are recognised by content.
    window: (center, width) in the image's own units, e.g. (40, 400) for soft tissue in a CT.
    frame: of a multi-frame DICOM (middle by default), a 4-D NIfTI (required), a TIFF or GIF (first by default).
    plane, slice_index: of a NIfTI volume; see `read_nifti` for orientation and defaults.
    percentiles: the grey levels that become black and white where neither a window nor 8-bit levels are given.
    max_pixels: larger pictures are refused.
    allow_url: also fetch http(s) URLs, at most 256 MiB each, and read them like files. Off by default.

    8-bit pictures and uint8 arrays keep their levels (and an opened picture its mode) unless `window` is given; EXIF
    orientation is applied. 16-bit, 32-bit and float images are windowed, never clipped. PIL reads only the upper 8
    bits of 16-bit colour pictures, which are taken as they come.
    Raises ValueError, one sentence naming the remedy, for anything it can not show.
    """
    window, percentiles = checked_window(window), checked_percentiles(percentiles)
    if isinstance(source, Image.Image):
        _refuse_volume_options(plane, slice_index)
        return _finished(source, window, frame, percentiles, max_pixels)
    if isinstance(source, np.ndarray | torch.Tensor):
        _refuse_volume_options(plane, slice_index)
        checked_index(frame, 1, "frame", default=0)
        return _from_array(source, window, percentiles, max_pixels)
    if isinstance(source, str) and (data := re.match(r"data:image/[\w.+-]+;base64,", source)):
        try:
            source = base64.b64decode(source[data.end() :], validate=True)
        except binascii.Error:
            raise ValueError("The data: string is not valid base64: encode the file again.") from None
    if isinstance(source, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source):
        if not (allow_url and source.startswith(("http://", "https://"))):
            raise ValueError(f"{source!r} is a URL: download it and pass the file, or pass allow_url=True.")
        source = _fetched(source)

    name = ""
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if os.path.isdir(name):
            raise ValueError(f"{name!r} is a directory: pass one image file.")
        if not os.path.isfile(name):
            raise ValueError(f"{name!r} is not a file: check the path.")
        stream: Any = open(name, "rb")
    elif isinstance(source, bytes | bytearray | memoryview):
        stream = io.BytesIO(source)
    elif hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError("The file object gives text: open the image in binary mode ('rb').")
        stream = io.BytesIO(content)
    else:
        raise ValueError(
            f"An image can not be a {type(source).__name__}: pass a path, bytes, a PIL picture, an array or a tensor."
        )
    with stream:
        return _from_stream(stream, name, window, frame, plane, slice_index, percentiles, max_pixels)


def _fetched(url: str) -> bytes:
    """The bytes behind an http(s) URL."""
    content = bytearray()
    try:
        with get_session().stream("GET", url, timeout=DOWNLOAD_TIMEOUT_SECONDS, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_DOWNLOAD_BYTES:
                    break
    # The network stack raises many types; each means the same here.
    except Exception as error:
        raise ValueError(f"{url!r} could not be fetched: download the file and pass its path.") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"{url!r} is larger than {MAX_DOWNLOAD_BYTES >> 20} MiB: download it and pass its path.")
    return bytes(content)


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Turn whatever PIL's decoders, most of them C libraries, raise or warn about into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.UnidentifiedImageError:
        raise ValueError(f"{what} is not an image this package reads: pass {READABLE}.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{what} expands to far too many pixels: downscale or crop it first.") from None
    # A decoder may raise anything for a damaged file.
    except Exception as error:
        raise ValueError(f"{what} is truncated or damaged ({type(error).__name__}): export it again.") from error


def _refuse_volume_options(plane: str | None, slice_index: int | None) -> None:
    if plane is not None or slice_index is not None:
        raise ValueError("plane and slice_index choose a slice of a NIfTI volume: leave them out for a picture.")


def _from_stream(
    stream: Any,
    name: str,
    window: tuple[float, float] | None,
    frame: int | None,
    plane: str | None,
    slice_index: int | None,
    percentiles: tuple[float, float],
    max_pixels: int,
) -> Image.Image:
    what = repr(name) if name else "The image"
    start = stream.read(540)
    stream.seek(0)
    if not start:
        raise ValueError(f"{what} is empty: pass {READABLE}.")
    is_gzip = start[:2] == b"\x1f\x8b"
    header = unpacked_header(stream, is_gzip)
    if nifti_version(header) is not None:
        return read_nifti(stream, header, is_gzip, window, frame, plane, slice_index, percentiles, max_pixels)
    _refuse_volume_options(plane, slice_index)
    if is_gzip or start[:4] == b"PK\x03\x04":
        raise ValueError(f"{what} is an archive: unpack it and pass {READABLE}.")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(f"{what} is a Python pickle, which can run code when loaded: save it as a PNG or .npy.")
    if start[:6] == b"\x93NUMPY":
        checked_index(frame, 1, "frame", default=0)
        return _from_array(_read_npy(stream, what), window, percentiles, max_pixels)
    if is_dicom(start, name):
        return read_dicom(stream, window, frame, percentiles, max_pixels)
    Image.init()
    known = [kind for kind in PICTURE_FORMATS if kind in Image.OPEN]
    with _decoding(what):
        opened = Image.open(stream, formats=known)
    with opened:
        # A copy, because an opened picture needs its file again whenever its frames are counted.
        return _finished(opened, window, frame, percentiles, max_pixels, what).copy()


def _read_npy(stream: Any, what: str) -> np.ndarray:
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


def _finished(
    picture: Image.Image,
    window: tuple[float, float] | None,
    frame: int | None,
    percentiles: tuple[float, float],
    max_pixels: int,
    what: str = "The image",
) -> Image.Image:
    """A PIL picture decoded, upright and in 8 bits; `picture` itself is returned where nothing has to be done."""
    check_image_size(*picture.size, max_pixels)
    with _decoding(what):
        frames = 1 if frame is None else getattr(picture, "n_frames", 1)
    if chosen := checked_index(frame, frames, "frame", default=0):
        with _decoding(what):
            picture.seek(chosen)
        check_image_size(*picture.size, max_pixels)
    with _decoding(what):
        picture.load()
        if picture.getexif().get(EXIF_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
    if window is not None or picture.mode in GREY_BEYOND_8_BITS or picture.mode.startswith("I;16"):
        if picture.mode[0] not in "LIF" and picture.mode not in ("RGB", "RGBA"):
            picture = picture.convert("RGB")
        array = np.asarray(picture)
        if picture.mode in ("RGBA", "LA"):
            levels = window_to_uint8(array[..., :-1], window, percentiles)
            return picture_from_uint8(np.concatenate([levels, array[..., -1:]], axis=-1))
        return picture_from_uint8(window_to_uint8(array, window, percentiles))
    return picture


def _from_array(
    array: np.ndarray | torch.Tensor,
    window: tuple[float, float] | None,
    percentiles: tuple[float, float],
    max_pixels: int,
) -> Image.Image:
    """Picture of an array; a last axis of 1, 3 or 4 is taken for channels, else a first one is."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
    if array.dtype.kind not in "buif":
        raise ValueError(f"An image array can not be of type {array.dtype}: pass real numbers, best uint8.")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"An image array can not have the shape {tuple(array.shape)}: pass (H, W), (H, W, 3) or (3, H, W), one "
            "slice of a volume at a time."
        )
    check_image_size(array.shape[1], array.shape[0], max_pixels)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if window is not None or array.dtype != np.uint8:
        array = window_to_uint8(array, window, percentiles)
    return picture_from_uint8(array)
