"""The one entry point for images: DICOM, NIfTI, 16-bit and float images, arrays, URLs."""

import base64
import binascii
import io
import math
import os
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from .dicom_encodings_unimedvl import HEADER_BYTES, is_dicom
from .dicom_series_unimedvl import DicomSeries, dicom_paths
from .dicom_unimedvl import DicomFile
from .nifti_unimedvl import NiftiVolume, nifti_version, unpacked_header
from .pixel_windows_unimedvl import (
    MAX_IMAGE_PIXELS,
    check_image_size,
    check_volume_size,
    checked_index,
    image_from_uint8,
    values_to_uint8,
)
from .view_unimedvl import View

# Formats PIL decodes by itself; others (EPS, FPX, ...) start programs or carry no medical images.
IMAGE_FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM", "AVIF")
READABLE = "a PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, PNM, DICOM, NIfTI or .npy file"
GRAY_BEYOND_8_BITS = ("I", "F")
EXIF_ORIENTATION = 0x0112
MAX_DOWNLOAD_BYTES = 2**28
DOWNLOAD_TIMEOUT_SECONDS = 30
DEFAULT_VIEW = View()


class Opened(Protocol):
    """A source whose images `open_image` shows without opening it anew."""

    def image(self, view: View) -> Image.Image: ...


def open_image(source: Any, view: View = DEFAULT_VIEW) -> Image.Image:
    """An 8-bit PIL image of `source`, upright, with square pixels and windowed for display.

    Everything that this package shows a model, and everything that it makes records of, is opened here.

    8-bit images and uint8 arrays keep their levels (and an opened image its mode) unless the view has a window; EXIF
    orientation is applied. 16-bit, 32-bit and float images are windowed, never clipped: by the view's window, else by
    what a DICOM file states, else by percentiles of the whole volume (all slices of a NIfTI volume's frame, all files
    of a DICOM series, all frames of a DICOM file, all pages of a TIFF that have this one's size and type) or, on
    request, of the slice. PIL reads only the upper 8 bits of 16-bit color images, which are taken as they come.

    Args:
        source: a path; a folder that holds one DICOM series; bytes or a binary file object holding a file; a
            `data:image/...;base64,` string; a PIL image; a numpy array or torch tensor (H, W), (H, W, 1|3|4) or
            (1|3|4, H, W); a source that `opened` holds open. Files are recognized by content.
        view: what to show of it.

    Returns:
        The image; a PIL image for which nothing has to be done is returned itself.

    Raises:
        ValueError: one sentence naming the remedy, for anything that it can not show.
    """
    if isinstance(source, NiftiVolume | DicomFile | DicomSeries):
        return source.image(view)
    with opened(source, allow_url=view.allow_url) as volume:
        return volume.image(view)


def load_medical_image(
    source: Any,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    plane: str | None = None,
    slice_index: int | None = None,
    percentiles: tuple[float, float] = DEFAULT_VIEW.percentiles,
    percentiles_of: str = DEFAULT_VIEW.percentiles_of,
    max_pixels: int = MAX_IMAGE_PIXELS,
    allow_url: bool = False,
) -> Image.Image:
    """`open_image` with the fields of its `View` as keywords.

    Args:
        source: whatever `open_image` takes.
        window: (center, width) in the image's own units, for example (40, 400) for soft tissue in a CT.
        frame: of a multi-frame DICOM (middle by default), a 4-D NIfTI (required), a TIFF or GIF (first by default).
        plane: of a NIfTI volume: "axial" (default), "coronal" or "sagittal".
        slice_index: of a NIfTI volume or DICOM series, from 0; the middle one by default.
        percentiles: the gray levels that become black and white where neither a window nor 8-bit levels are given.
        percentiles_of: "volume" or "slice": what the percentiles are taken of.
        max_pixels: larger images are refused.
        allow_url: also fetch http(s) URLs, at most 256 MiB each, and read them like files. Off by default.

    Returns:
        An 8-bit PIL image, upright and windowed for display.

    Raises:
        ValueError: one sentence naming the remedy, for anything that it can not show.
    """
    return open_image(
        source, View(window, frame, plane, slice_index, percentiles, percentiles_of, max_pixels, allow_url)
    )


@contextmanager
def opened(source: Any, *, allow_url: bool = False) -> Iterator[Opened]:
    """Hold a source open, so that `open_image` shows many of its slices and reads it once.

    Args:
        source: whatever `open_image` takes.
        allow_url: also fetch http(s) URLs.

    Raises:
        ValueError: one sentence naming the remedy, for a source that is no image.
    """
    if isinstance(source, Image.Image):
        yield _Pages(source)
        return
    if isinstance(source, np.ndarray) or _is_tensor(source):
        yield _Array(source)
        return
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
            if not dicom_paths(name):
                raise ValueError(f"{name!r} is a directory: pass one image file, or a folder with one DICOM series.")
            yield DicomSeries(name)
            return
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
            f"An image can not be a {type(source).__name__}: pass a path, bytes, a PIL image, an array or a tensor."
        )
    with stream:
        volume = _from_stream(stream, name)
        try:
            yield volume
        finally:
            if isinstance(volume, _Pages):
                volume.close()


def _is_tensor(source: Any) -> bool:
    """Whether it is a torch tensor; who has none need not wait for torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _fetched(url: str) -> bytes:
    """The bytes behind an http(s) URL."""
    from huggingface_hub import get_session

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


def _from_stream(stream: Any, name: str) -> Opened:
    what = repr(name) if name else "The image"
    start = stream.read(HEADER_BYTES)
    stream.seek(0)
    if not start:
        raise ValueError(f"{what} is empty: pass {READABLE}.")
    is_gzip = start[:2] == b"\x1f\x8b"
    header = unpacked_header(stream, is_gzip)
    if nifti_version(header) is not None:
        return NiftiVolume(stream, header, is_gzip)
    if is_gzip or start[:4] == b"PK\x03\x04":
        raise ValueError(f"{what} is an archive: unpack it and pass {READABLE}.")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(f"{what} is a Python pickle, which can run code when loaded: save it as a PNG or .npy.")
    if start[:6] == b"\x93NUMPY":
        return _Array(_read_npy(stream, what))
    if is_dicom(start):
        return DicomFile(stream)
    Image.init()
    known = [kind for kind in IMAGE_FORMATS if kind in Image.OPEN]
    with _decoding(what):
        return _Pages(Image.open(stream, formats=known), what)


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


class _Pages:
    """A PIL image with its pages. One that was opened here, from a file called `what`, is not handed out itself."""

    def __init__(self, image: Image.Image, what: str = ""):
        self._image, self._what = image, what

    def close(self) -> None:
        self._image.close()

    def image(self, view: View) -> Image.Image:
        """A page decoded, upright and in 8 bits."""
        view.refuse_slice()
        shown = self._page(self._image, view, self._what or "The image")
        # A copy, because an opened image needs its file again whenever its frames are counted.
        return shown.copy() if self._what else shown

    def _page(self, image: Image.Image, view: View, what: str) -> Image.Image:
        check_image_size(*image.size, view.max_pixels)
        with _decoding(what):
            frames = 1 if view.frame is None else getattr(image, "n_frames", 1)
        if chosen := checked_index(view.frame, frames, "frame", default=0):
            with _decoding(what):
                image.seek(chosen)
            check_image_size(*image.size, view.max_pixels)
        with _decoding(what):
            image.load()
        is_deep = image.mode in GRAY_BEYOND_8_BITS or image.mode.startswith("I;16")
        black_white = view.black_white(_deep_pages(image, view, what)) if is_deep or view.window else None
        with _decoding(what):
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
        if black_white is None:
            return image
        if image.mode[0] not in "LIF" and image.mode not in ("RGB", "RGBA"):
            image = image.convert("RGB")
        array = np.asarray(image)
        if image.mode in ("RGBA", "LA"):
            levels = values_to_uint8(array[..., :-1], black_white)
            return image_from_uint8(np.concatenate([levels, array[..., -1:]], axis=-1))
        return image_from_uint8(values_to_uint8(array, black_white))


def _deep_pages(image: Image.Image, view: View, what: str) -> Iterator[np.ndarray]:
    """The pages whose values count for the percentiles of the present one, which is the present one afterwards."""
    shown, size, mode = image.tell(), image.size, image.mode
    with _decoding(what):
        pages = _page_count(image) if view.percentiles_of == "volume" else 1
        image.load()
    if pages == 1:
        yield np.asarray(image)
        return
    check_volume_size(pages * size[0] * size[1])
    for page in range(pages):
        with _decoding(what):
            image.seek(page)
            is_alike = (image.size, image.mode) == (size, mode)
            values = np.array(image) if is_alike else None
        if values is not None:
            yield values
    with _decoding(what):
        image.seek(shown)
        image.load()


def _page_count(image: Image.Image) -> int:
    """The pages that can be read of an image somebody opened: one, if its file is closed again."""
    shown = image.tell()
    try:
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            image.seek((shown + 1) % pages)
            image.seek(shown)
        return pages
    # What PIL raises for each operation that needs the file.
    except ValueError:
        return 1


class _Array:
    """An array or tensor as an image; a last axis of 1, 3 or 4 is taken for channels, else a first one is."""

    def __init__(self, array: Any):
        self._array = array

    def image(self, view: View) -> Image.Image:
        view.refuse_slice()
        checked_index(view.frame, 1, "frame", default=0)
        array = self._array
        if _is_tensor(array):
            array = array.detach().cpu()
            array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
        if array.dtype.kind not in "buif":
            raise ValueError(f"An image array can not be of type {array.dtype}: pass real numbers, best uint8.")
        if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
            array = np.moveaxis(array, 0, 2)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
            raise ValueError(
                f"An image array can not have the shape {tuple(array.shape)}: pass (H, W), (H, W, 3) or (3, H, W), "
                "one slice of a volume at a time."
            )
        check_image_size(array.shape[1], array.shape[0], view.max_pixels)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if view.window is not None or array.dtype != np.uint8:
            array = values_to_uint8(array, view.black_white([array]))
        return image_from_uint8(array)
