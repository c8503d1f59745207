"""Slices of NIfTI volumes as 8-bit pictures."""

import gzip
import importlib
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from .pixel_windows_unimedvl import check_image_size, checked_index, picture_from_uint8, window_to_uint8

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
# A header that promises more is refused before anything is decompressed.
MAX_VOLUME_BYTES = 2**31
MAX_HEADER_BYTES = 2**24


def nifti_version(header: bytes) -> int | None:
    """1 or 2 if the first 348 bytes of an unpacked file are a single-file NIfTI header, else None."""
    if header[344:348] == b"ni1\0":
        raise ValueError("The file is half of a NIfTI pair (.hdr and .img): save the volume as one .nii.gz file.")
    if header[344:348] == b"n+1\0":
        return 1
    return 2 if header[4:8] == b"n+2\0" else None


def unpacked_header(stream: Any, is_gzip: bool) -> bytes:
    """The first 540 bytes, decompressed, without reading further; `stream` is left at its start."""
    if not is_gzip:
        header = stream.read(540)
        stream.seek(0)
        return header
    try:
        # zlib stops at 540 bytes of output, whatever the stream would expand to.
        return zlib.decompressobj(wbits=31).decompress(stream.read(65536), 540)
    except zlib.error:
        raise ValueError("The gzip file is damaged: compress it again.") from None
    finally:
        stream.seek(0)


def read_nifti(
    stream: Any,
    header_bytes: bytes,
    is_gzip: bool,
    window: tuple[float, float] | None,
    frame: int | None,
    plane: str | None,
    slice_index: int | None,
    percentiles: tuple[float, float],
    max_pixels: int,
) -> Image.Image:
    """One slice of a NIfTI volume (`.nii` or `.nii.gz`) as an 8-bit picture in radiological display.

    The volume is taken to its closest RAS+ orientation. `plane` is "axial" (default), "coronal" or "sagittal" (for a
    volume one voxel thick: across that axis); `slice_index` counts from the patient's left, posterior or inferior end
    and is the middle one by default. Axial: anterior at the top; coronal and sagittal: superior at the top; the
    patient's right, or in sagittal slices anterior, is at the left. Voxels are made square by bicubic interpolation to
    the finer spacing. 4-D volumes need `frame`. Grey levels: `window` (center, width), else `percentiles` of the
    slice. Raises ValueError.
    """
    try:
        nifti = importlib.import_module("nibabel.nifti1")
        nifti2 = importlib.import_module("nibabel.nifti2")
        arrayproxy = importlib.import_module("nibabel.arrayproxy")
        imageglobals = importlib.import_module("nibabel.imageglobals")
        orientations = importlib.import_module("nibabel.orientations")
        spatialimages = importlib.import_module("nibabel.spatialimages")
    except ImportError:
        raise ValueError('NIfTI files need nibabel: pip install "unimedvl[medical]".') from None
    broken = "The NIfTI file is truncated or damaged: export it again."
    classes = {1: nifti.Nifti1Header, 2: nifti2.Nifti2Header}
    header_class = classes[nifti_version(header_bytes)]
    try:
        # Its log would add lines about the header to the one sentence below.
        with imageglobals.LoggingOutputSuppressor():
            header = header_class(header_bytes[: header_class.template_dtype.itemsize])
        shape = tuple(int(side) for side in header.get_data_shape())
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        affine = header.get_best_affine()
        zooms = tuple(float(zoom) for zoom in header.get_zooms()[:3])
    except (spatialimages.HeaderDataError, ValueError, OverflowError, struct.error):
        raise ValueError(broken) from None
    shape = _checked_shape(shape, dtype, offset)
    frames = math.prod(shape[3:])
    if frames > 1 and frame is None:
        raise ValueError(f"The NIfTI volume has {frames} frames: choose one with frame=0 to {frames - 1}.")
    frame = checked_index(frame, frames, "frame", default=0)

    orientation = orientations.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        raise ValueError("The NIfTI header has no valid orientation: set its sform, for example with nibabel.")
    thin = [axis for axis in range(3) if shape[axis] == 1]
    if plane is None:
        plane = list(PLANES)[int(orientation[thin[0], 0])] if len(thin) == 1 else "axial"
    if plane not in PLANES:
        raise ValueError(f"plane={plane!r}: choose 'axial', 'coronal' or 'sagittal'.")
    across = int(np.flatnonzero(orientation[:, 0] == PLANES[plane])[0])
    # The two axes of the picture, in the order left-right, posterior-anterior, inferior-superior.
    columns, rows = sorted({0, 1, 2} - {across}, key=lambda axis: orientation[axis, 0])
    check_image_size(shape[columns], shape[rows], max_pixels)
    chosen = checked_index(slice_index, shape[across], "slice_index", default=shape[across] // 2)
    selection: list[Any] = [slice(None)] * 3
    selection[across] = chosen if orientation[across, 1] > 0 else shape[across] - 1 - chosen

    unpacked = gzip.GzipFile(fileobj=stream) if is_gzip else stream
    slope, intercept = header.get_slope_inter()
    specification = (
        (*shape[:3], frames),
        dtype,
        offset,
        1.0 if slope is None else slope,
        0.0 if intercept is None else intercept,
    )
    try:
        array = np.asarray(arrayproxy.ArrayProxy(unpacked, specification, mmap=False)[(*selection, frame)])
    except (OSError, EOFError, ValueError, zlib.error, io.UnsupportedOperation):
        raise ValueError(broken) from None
    if columns > rows:
        array = array.swapaxes(0, 1)
    # Now (columns, rows) in file order. Where the file already runs towards the left, posterior or inferior side of
    # the patient it is in display order; the other axes are reversed.
    array = array[:: -1 if orientation[columns, 1] > 0 else 1, :: -1 if orientation[rows, 1] > 0 else 1].swapaxes(0, 1)
    if array.dtype.fields:
        levels = np.stack([array[name] for name in ("R", "G", "B")], axis=-1)
    else:
        levels = window_to_uint8(array, window, percentiles)
    picture = picture_from_uint8(levels)
    zooms = tuple(zoom if math.isfinite(zoom) and zoom > 0 else 1.0 for zoom in (*zooms, 1.0, 1.0))
    return _square_pixels(picture, zooms[columns], zooms[rows], max_pixels)


def _checked_shape(shape: tuple[int, ...], dtype: np.dtype, offset: int) -> tuple[int, ...]:
    """The shape with at least three axes. Raises ValueError for what can not be shown or is suspiciously large."""
    if not 1 < len(shape) or min(shape) < 1:
        raise ValueError(f"The NIfTI volume has the shape {shape}: pass one with at least two axes and no empty one.")
    if not ({"R", "G", "B"} <= dtype.fields.keys() if dtype.fields else dtype.kind in "buif"):
        raise ValueError(f"The NIfTI volume is of type {dtype}: save it (or its magnitude) as float32 first.")
    if math.prod(shape) * dtype.itemsize > MAX_VOLUME_BYTES or not 0 <= offset <= MAX_HEADER_BYTES:
        raise ValueError(
            f"The NIfTI header promises {math.prod(shape) * dtype.itemsize} bytes of voxels after {offset} bytes of "
            f"header, more than the limits of {MAX_VOLUME_BYTES} and {MAX_HEADER_BYTES}: save the part you need first."
        )
    return shape + (1,) * (3 - len(shape))


def _square_pixels(picture: Image.Image, column_spacing: float, row_spacing: float, max_pixels: int) -> Image.Image:
    """The picture with square pixels; a difference below 1 % is left alone."""
    finer = min(column_spacing, row_spacing)
    width, height = round(picture.width * column_spacing / finer), round(picture.height * row_spacing / finer)
    if max(column_spacing, row_spacing) / finer < 1.01:
        return picture
    check_image_size(width, height, max_pixels)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
