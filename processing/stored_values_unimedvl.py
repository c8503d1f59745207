"""The values that image files store, where PIL scales, inverts, wraps or does not read them."""

import importlib
import re
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from .pixel_windows_unimedvl import (
    check_image_size,
    check_volume_size,
    checked_index,
    image_from_uint8,
    no_patient_text,
    values_to_uint8,
)
from .view_unimedvl import View

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXIF_ORIENTATION = 0x0112
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 258, 262, 277, 339
UNSIGNED, SIGNED = 1, 2
# Raw modes of PIL for gray levels of fewer than 8 bits, which it spreads over 0 to 255.
RAW_BITS = {"L;2": 2, "L;4": 4}
START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
_JPEG_2000_BITS = re.compile(r"J2K;(\d+)(S?)")
NATIVE_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NETPBM = re.compile(rb"P([2356])" + (_SPACE + rb"(\d{1,10})") * 3 + rb"\s")
# Headers of Netpbm may have comments of any length, those of JPEG 2000 boxes; more than this is none.
MAX_HEADER = 2**16


def raw_mode(image: Image.Image) -> str:
    """How the values of an image file lie in it, as PIL calls it, or "" for an image that is loaded already.

    PIL has no names for the bits of JPEG 2000: they are "J2K;12" for 12 bits and "J2K;12S" where they are signed.
    """
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    if image.format != "JPEG2000" or image.mode not in ("L", "I;16") or image.fp is None:
        return _raw_mode(image.tile[0])
    position = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(MAX_HEADER)
    image.fp.seek(position)
    # Bits of the first component, in the segment that says the size (ISO 15444-1, A.5.1).
    start = head.find(START_OF_CODESTREAM) + len(START_OF_CODESTREAM) + 38
    code = head[start] if START_OF_CODESTREAM in head and start < len(head) else 0
    return f"J2K;{(code & 0x7F) + 1}{'S' * (code >> 7)}"


def _raw_mode(tile: Any) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def load_page(image: Image.Image) -> None:
    """Load the present page of an image.

    libtiff gives numbers in the order of the machine, where PIL expects those of a compressed big-endian file.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.tile = [_in_native_order(tile) if tile.codec_name == "libtiff" else tile for tile in image.tile]
    image.load()


def _in_native_order(tile: Any) -> Any:
    raw = _raw_mode(tile)
    return tile._replace(args=(NATIVE_MODES.get(raw, raw), *tile.args[1:]))


def stored_values(image: Image.Image, raw: str) -> tuple[np.ndarray, bool]:
    """The values of a page as its file stores them.

    Args:
        image: loaded.
        raw: its `raw_mode` before that.

    Returns:
        (H, W) or (H, W, C) numbers, and whether 0 is white among them.
    """
    array = np.asarray(image)
    if bits_sign := _JPEG_2000_BITS.fullmatch(raw):
        return _unspread(array, int(bits_sign[1]), is_signed=bits_sign[2] == "S"), False
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return (array // (255 // (2 ** RAW_BITS[raw] - 1)) if raw in RAW_BITS else array), False
    if image.tag_v2.get(SAMPLES_PER_PIXEL, 1) != 1 or image.tag_v2.get(PHOTOMETRIC) not in (0, 1):
        return array, False
    is_inverted = image.tag_v2.get(PHOTOMETRIC) == 0
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0]
    kind = image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0]
    # One bit says black or white, not a number.
    if image.mode == "1":
        return array, False
    # PIL turns white to 255 in this mode alone.
    if is_inverted and image.mode == "L":
        array = ~array
    if image.mode == "L" and bits < 8:
        array = array // (255 // (2**bits - 1))
    elif image.mode == "L" and kind == SIGNED:
        array = array.view(np.int8)
    elif image.mode == "I" and bits == 32 and kind == UNSIGNED:
        array = array.view(np.uint32)
    return array, is_inverted


def _unspread(array: np.ndarray, bits: int, is_signed: bool) -> np.ndarray:
    """Values of JPEG 2000 that PIL moved to the top of 8 or 16 bits, signed ones from 0 on."""
    values = array >> max(8 * array.dtype.itemsize - bits, 0)
    return values.astype(np.int32) - 2 ** (bits - 1) if is_signed else values


def has_deep_colors(raw: str) -> bool:
    """Whether a `raw_mode` is one of colors of 16 bits, of which PIL keeps the upper 8."""
    return ";16" in raw and not raw.startswith("I")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned as the EXIF orientation of its file says."""
    image.getexif()[EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def netpbm_values(content: bytes) -> tuple[np.ndarray, int] | None:
    """The values of a PGM or PPM file, (H, W) or (H, W, 3), and the one that is white.

    PIL spreads them over 0 to 255 or 65535, and keeps 8 bits of colors.

    Returns:
        None for anything else, and for files whose white is 255, which PIL reads as they are.

    Raises:
        ValueError: for a damaged file.
    """
    header = _NETPBM.match(content, 0, MAX_HEADER)
    if header is None:
        return None
    kind, width, height, white = (int(number) for number in header.groups())
    if white == 255 or not 0 < white < 2**16:
        return None
    channels = 3 if kind in (3, 6) else 1
    count, start = width * height * channels, header.end()
    dtype = np.dtype(np.uint8 if white < 256 else ">u2")
    if kind in (2, 3):
        numbers = re.sub(rb"#[^\r\n]*", b"", content[start:]).split(maxsplit=count)[:count]
        if any(len(number) > 5 or not number.isdigit() for number in numbers):
            raise ValueError("a number of a plain PGM or PPM file that is none")
        values = np.array([int(number) for number in numbers], dtype=np.int64)
        if values.max(initial=0) > white:
            raise ValueError("a number above the largest that the file states")
        values = values.astype(dtype)
    else:
        values = np.frombuffer(
            content, dtype, count=min(count, (len(content) - start) // dtype.itemsize), offset=start
        )
    if len(values) < count:
        raise ValueError("fewer numbers than pixels")
    return values.reshape((height, width) if channels == 1 else (height, width, 3)).astype(
        dtype.newbyteorder("=")
    ), white


class DeepTiff:
    """A TIFF of gray levels or colors that PIL has no mode for, as floats of 16 and 64 bits and integers of 64.

    Args:
        stream: the file; it must stay open.
        what: what to call it in messages.

    Raises:
        ValueError: one sentence, where tifffile is missing or can not read it either.
    """

    def __init__(self, stream: Any, what: str):
        try:
            tifffile = importlib.import_module("tifffile")
        except ImportError:
            raise ValueError(
                f"{what} is a TIFF with values that Pillow does not read, for example float16, float64 or 64-bit "
                'integers: pip install "unimedvl[medical]", or save it as uint8, uint16 or float32.'
            ) from None
        self._what = what
        try:
            with no_patient_text("tifffile"):
                # Read at once: it raises as it walks on.
                self._pages = list(tifffile.TiffFile(stream).pages)
                kinds = tifffile.PHOTOMETRIC
                self._kinds = (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB)
                known = self._is_known(self._pages[0])
        # tifffile raises anything for a damaged file.
        except Exception as error:
            raise ValueError(f"{what} is truncated or damaged ({type(error).__name__}): export it again.") from None
        if not known:
            raise ValueError(
                f"{what} is a TIFF that is not read here: pass one of gray levels or RGB, each number an integer or a "
                "float of 8 to 64 bits."
            )

    def _is_known(self, page: Any) -> bool:
        # In a damaged file they may be several numbers each.
        counts = page.imagewidth, page.imagelength, page.bitspersample, page.planarconfig
        known = page.dtype is not None and page.dtype.kind in "iuf" and page.photometric in self._kinds
        return known and all(isinstance(count, int) for count in counts)

    def image(self, view: View) -> Image.Image:
        """A page as an 8-bit image."""
        view.refuse_slice()
        page = self._pages[checked_index(view.frame, len(self._pages), "frame", default=0)]
        if not self._is_known(page):
            raise ValueError(f"The page of {self._what} holds no gray levels and no colors: choose another frame.")
        values = self.values(page, view.max_pixels)
        if view.window is None and page.dtype == np.uint8:
            # Levels, as in the files that PIL reads.
            black_white: tuple[float, float] = (0, 2**page.bitspersample - 1)
        elif view.percentiles_of == "slice" or view.window is not None:
            black_white = view.black_white([values])
        else:
            pages = [other for other in self._pages if (other.shape, other.dtype) == (page.shape, page.dtype)]
            check_volume_size(len(pages) * values.size, view.max_values)
            black_white = view.black_white(self.values(other, view.max_pixels) for other in pages)
        levels = values_to_uint8(values, black_white)
        if page.photometric == self._kinds[0]:
            levels = 255 - levels
        tag = page.tags.get(EXIF_ORIENTATION)
        orientation = getattr(tag, "value", 1)
        return upright(image_from_uint8(levels), int(orientation) if isinstance(orientation, int) else 1)

    def values(self, page: Any = None, max_pixels: int | None = None) -> np.ndarray:
        """The values of a page, the first by default, as the file stores them: (H, W) or (H, W, 3).

        Args:
            page: of tifffile.
            max_pixels: larger ones are refused.

        Raises:
            ValueError: one sentence, for a page that is too large, damaged or compressed in an unknown way.
        """
        page = self._pages[0] if page is None else page
        limits = () if max_pixels is None else (max_pixels,)
        check_image_size(page.imagewidth, page.imagelength, *limits)
        try:
            with no_patient_text("tifffile"):
                values = page.asarray()
        except Exception as error:
            if "imagecodecs" in str(error):
                raise ValueError(f"{self._what} is compressed in a way that needs pip install imagecodecs.") from None
            raise ValueError(
                f"{self._what} is truncated or damaged ({type(error).__name__}): export it again."
            ) from None
        # Channels may lie in planes of their own, and those behind the colors are no colors.
        values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 and values.ndim == 3 else values
        values = values[..., :3] if page.photometric == self._kinds[2] else values
        if values.shape not in ((page.imagelength, page.imagewidth), (page.imagelength, page.imagewidth, 3)):
            raise ValueError(f"{self._what} has pages of an unusual shape: save its pages as gray levels or RGB.")
        return values
