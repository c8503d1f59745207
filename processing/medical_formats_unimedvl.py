"""The one entry point for images: DICOM, NIfTI, 16-bit and float images, arrays, URLs."""

import base64
import binascii
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from .array_images_unimedvl import ArrayImage, is_tensor, read_npy
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
from .stored_values_unimedvl import (
    EXIF_ORIENTATION,
    TIFF_SIGNATURES,
    DeepTiff,
    load_page,
    netpbm_values,
    raw_mode,
    stored_values,
    upright,
)
from .view_unimedvl import View

# Formats PIL decodes by itself; others (EPS, FPX, ...) start programs or carry no medical images.
IMAGE_FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM", "AVIF")
READABLE = "a PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, PNM, DICOM, NIfTI or .npy file"
GRAY_BEYOND_8_BITS = ("I", "F")
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
    request, of the slice. A window counts in the values that the file stores, but in the upper 8 bits of 16-bit colors
    of PNG and TIFF files, of which PIL reads no more.

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
    if isinstance(source, np.ndarray) or is_tensor(source):
        yield ArrayImage(source)
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
        try:
            stream: Any = open(name, "rb")
        except OSError as error:
            raise ValueError(f"{name!r} can not be opened ({error.strerror}): check its permissions.") from None
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
    with _decoding(what):
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
        return ArrayImage(read_npy(stream, what))
    if is_dicom(start):
        return DicomFile(stream)
    if start[:1] == b"P":
        with _decoding(what):
            values_white = netpbm_values(stream.read())
        stream.seek(0)
        if values_white is not None:
            values, white = values_white
            # Deep gray levels are windowed like those of every other format.
            return ArrayImage(values, None if values.ndim == 2 and white > 255 else white)
    Image.init()
    known = [kind for kind in IMAGE_FORMATS if kind in Image.OPEN]
    with _decoding(what):
        try:
            return _Pages(Image.open(stream, formats=known), what)
        except Image.UnidentifiedImageError:
            if start[:4] not in TIFF_SIGNATURES:
                raise
    stream.seek(0)
    return DeepTiff(stream, what)


class _Pages:
    """A PIL image with its pages. One that was opened here, from a file called `what`, is not handed out itself."""

    def __init__(self, image: Image.Image, what: str = ""):
        self._image, self._what = image, what
        with _decoding(what or "The image"):
            self._raw = raw_mode(image)

    @property
    def frames(self) -> int:
        """Number of pages of a TIFF, GIF or the like, at least 1."""
        with _decoding(self._what or "The image"):
            return _page_count(self._image)

    @property
    def is_deep(self) -> bool:
        """Whether it holds more than 8 bits of gray, which a window can choose from."""
        return self._image.mode in GRAY_BEYOND_8_BITS or self._image.mode.startswith("I;16")

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
            load_page(image)
            is_deep = image.mode in GRAY_BEYOND_8_BITS or image.mode.startswith("I;16")
            # Bytes with a sign are no levels.
            is_deep = is_deep or (image.mode == "L" and stored_values(image, self._raw)[0].dtype.kind == "i")
        black_white = view.black_white(_deep_pages(image, self._raw, view, what)) if is_deep or view.window else None
        with _decoding(what):
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            if black_white is None:
                return image if orientation == 1 else ImageOps.exif_transpose(image)
            if image.mode[0] not in "LIF" and image.mode not in ("RGB", "RGBA"):
                image = image.convert("RGB")
            values, is_inverted = stored_values(image, self._raw)
        colors = values[..., :-1] if image.mode in ("RGBA", "LA") else values
        levels = values_to_uint8(colors, black_white)
        levels = 255 - levels if is_inverted else levels
        if colors is not values:
            levels = np.concatenate([levels, values[..., -1:]], axis=-1)
        return upright(image_from_uint8(levels), orientation)


def _deep_pages(image: Image.Image, raw: str, view: View, what: str) -> Iterator[np.ndarray]:
    """The pages whose values count for the percentiles of the present one, which is the present one afterwards."""
    shown, size, mode = image.tell(), image.size, image.mode
    with _decoding(what):
        pages = _page_count(image) if view.percentiles_of == "volume" else 1
        load_page(image)
    if pages == 1:
        yield stored_values(image, raw)[0]
        return
    check_volume_size(pages * size[0] * size[1], view.max_values)
    for page in range(pages):
        with _decoding(what):
            image.seek(page)
            # A page that lies is turned as it is loaded; others need not be.
            if image.size in (size, size[::-1]) and image.mode == mode:
                load_page(image)
            values = stored_values(image, raw)[0].copy() if (image.size, image.mode) == (size, mode) else None
        if values is not None:
            yield values
    with _decoding(what):
        image.seek(shown)
        load_page(image)


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
