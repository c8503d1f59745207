"""Slices of NIfTI volumes as 8-bit images."""

import gzip
import importlib
import math
import zlib
from typing import Any

import numpy as np
from PIL import Image

from .pixel_windows_unimedvl import (
    check_image_size,
    checked_index,
    image_from_uint8,
    no_patient_text,
    square_pixels,
    usable_spacing,
    values_to_uint8,
)
from .view_unimedvl import ARRAY_PLANES, PLANES, View

BROKEN = "The NIfTI file is truncated or damaged: export it again."
# A header that promises more is refused before anything is decompressed.
MAX_VOLUME_BYTES = 2**31
MAX_HEADER_BYTES = 2**24


def nifti_version(header: bytes) -> int | None:
    """Recognize a single-file NIfTI header in the first 348 bytes of an unpacked file.

    Returns:
        1 or 2, the version of the format; None for anything else.

    Raises:
        ValueError: for one file of a pair.
    """
    if header[344:348] == b"ni1\0":
        raise ValueError("The file is half of a NIfTI pair (.hdr and .img): save the volume as one .nii.gz file.")
    if header[344:348] == b"n+1\0":
        return 1
    return 2 if header[4:8] == b"n+2\0" else None


def unpacked_header(stream: Any, is_gzip: bool) -> bytes:
    """Read the first 540 bytes, decompressed, and no further.

    Args:
        stream: the file, at its start, where it is left.
        is_gzip: whether the file is packed.

    Raises:
        ValueError: for a damaged gzip file.
    """
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


class NiftiVolume:
    """A NIfTI volume (`.nii` or `.nii.gz`) in an open binary file, of which only what is shown is read.

    Args:
        stream: the file; it must stay open.
        header_bytes: its first 540 bytes, unpacked.
        is_gzip: whether the file is packed.

    Attributes:
        shape: voxels along the three axes of the array.
        frames: number of frames, 1 for a 3-D volume.
        is_color: whether voxels are RGB.

    Raises:
        ValueError: one sentence, for a file that is damaged, suspiciously large or holds no real numbers.
    """

    def __init__(self, stream: Any, header_bytes: bytes, is_gzip: bool):
        try:
            nifti = importlib.import_module("nibabel.nifti1")
            nifti2 = importlib.import_module("nibabel.nifti2")
            arrayproxy = importlib.import_module("nibabel.arrayproxy")
            self._orientations = importlib.import_module("nibabel.orientations")
            voxel_sizes = importlib.import_module("nibabel.affines").voxel_sizes
        except ImportError:
            raise ValueError('NIfTI files need nibabel: pip install "unimedvl[medical]".') from None
        version = nifti_version(header_bytes)
        assert version is not None, "only NIfTI headers lead here"
        header_class = {1: nifti.Nifti1Header, 2: nifti2.Nifti2Header}[version]
        try:
            with no_patient_text("nibabel.global"):
                header = header_class(header_bytes[: header_class.template_dtype.itemsize])
            shape = tuple(int(side) for side in header.get_data_shape())
            # Some writers leave the offset out.
            dtype, offset = header.get_data_dtype(), int(header.get_data_offset()) or header.single_vox_offset
            affine = header.get_best_affine()
            # A form that disagrees with the header's own distances holds for both, order and size of the voxels.
            sizes = voxel_sizes(affine) if np.isfinite(affine).all() else np.zeros(3)
            stated = [float(zoom) for zoom in (*header.get_zooms()[:3], 1.0, 1.0)[:3]]
            zooms = [
                size if np.isfinite(size) and size > 0 else zoom for size, zoom in zip(sizes, stated, strict=True)
            ]
            slope, intercept = _scaling(float(header["scl_slope"]), float(header["scl_inter"]), dtype)
            self._orientation = np.full((3, 2), np.nan)
            if np.isfinite(affine).all():
                self._orientation = self._orientations.io_orientation(affine)
        # nibabel raises errors of many kinds for a header that makes no sense.
        except Exception:
            raise ValueError(BROKEN) from None
        full_shape = _checked_shape(shape, dtype, offset)
        self.shape = full_shape[:3]
        self.frames = math.prod(full_shape[3:])
        self.is_color = bool(dtype.fields)
        self._zooms = tuple(usable_spacing(zoom) for zoom in zooms)
        self._proxy = arrayproxy.ArrayProxy(
            gzip.GzipFile(fileobj=stream) if is_gzip else stream,
            ((*self.shape, self.frames), dtype, offset, slope, intercept),
            mmap=False,
        )
        self._voxels: dict[int, np.ndarray] = {}
        self._ranges: dict[tuple, tuple[float, float]] = {}

    def image(self, view: View) -> Image.Image:
        """One slice as an 8-bit image in radiological display.

        The volume is taken to its closest RAS+ orientation. The plane is axial by default (for a volume one voxel
        thick: across that axis); slices count from the patient's left, posterior or inferior end. Axial: anterior at
        the top; coronal and sagittal: superior at the top; the patient's right, or in sagittal slices anterior, is at
        the left. Planes of the array keep its order: its earlier axis runs down. Voxels are made square by bicubic
        interpolation to the finer spacing. 4-D volumes need a frame.

        Raises:
            ValueError: one sentence, for a slice that does not exist or can not be read.
        """
        if self.frames > 1 and view.frame is None:
            raise ValueError(
                f"The NIfTI volume has {self.frames} frames: choose one with frame=0 to {self.frames - 1}."
            )
        frame = checked_index(view.frame, self.frames, "frame", default=0)
        plane = view.plane or self._default_plane()
        across, rows, columns = self._axes(plane)
        check_image_size(self.shape[columns], self.shape[rows], view.max_pixels)
        voxels = math.prod(self.shape[:3])
        # Also a slice of a packed file may take all voxels to read.
        if view.max_values is not None and voxels > view.max_values:
            raise ValueError(
                f"The NIfTI volume holds {voxels} voxels, more than the limit of {view.max_values}: save the part you "
                "need."
            )
        index = checked_index(view.slice_index, self.shape[across], "slice_index", default=self.shape[across] // 2)
        if plane in PLANES and self._orientation[across, 1] < 0:
            index = self.shape[across] - 1 - index
        selection: list[Any] = [slice(None)] * 3
        selection[across] = slice(index, index + 1)
        reads_all = not self.is_color and view.window is None and view.percentiles_of == "volume"
        if reads_all or frame in self._voxels:
            array = self.voxels(frame)[tuple(selection)]
        else:
            array = self._read((*selection, frame))
        array = self._displayed(array, plane)[0]
        if self.is_color:
            levels = np.stack([array[name] for name in ("R", "G", "B")], axis=-1)
        elif view.percentiles_of == "slice":
            levels = values_to_uint8(array, view.black_white([array]))
        else:
            levels = values_to_uint8(array, self.black_white(view, frame))
        return square_pixels(image_from_uint8(levels), self._zooms[columns], self._zooms[rows], view.max_pixels)

    def black_white(self, view: View, frame: int = 0) -> tuple[float, float]:
        """Find the values that become black and white in every slice of a frame.

        Args:
            view: its window, else its percentiles of the whole frame decide.
            frame: from 0.

        Raises:
            ValueError: one sentence, for a damaged file or one without finite values.
        """
        assert view.percentiles_of == "volume"
        key = (frame, view.window, view.percentiles)
        if key not in self._ranges:
            self._ranges[key] = view.black_white(self.voxels(index) for index in (frame,))
        return self._ranges[key]

    def voxels(self, frame: int = 0) -> np.ndarray:
        """All voxels of a frame, in the file's units and order; kept for the next slice."""
        if frame not in self._voxels:
            self._voxels = {frame: self._read((..., frame))}
        return self._voxels[frame]

    def num_slices(self, plane: str) -> int:
        """Count the slices of a plane.

        Raises:
            ValueError: for a plane of the patient where the header has no valid orientation.
        """
        return self.shape[self._axes(plane)[0]]

    def slices(self, plane: str) -> np.ndarray:
        """All slices of a 3-D volume as `image` shows them, before gray levels: (slices, rows, columns)."""
        return self._displayed(self.voxels(), plane)

    def spacing(self, plane: str) -> tuple[float, float]:
        """The distances between the rows and between the columns of a plane's slices, in the file's units."""
        _, rows, columns = self._axes(plane)
        return self._zooms[rows], self._zooms[columns]

    def _read(self, selection: tuple[Any, ...]) -> np.ndarray:
        try:
            return np.asarray(self._proxy[selection])
        # gzip, zlib, nibabel and numpy raise errors of many kinds for damaged files.
        except Exception:
            raise ValueError(BROKEN) from None

    def _check_orientation(self) -> None:
        if np.isnan(self._orientation).any():
            raise ValueError("The NIfTI header has no valid orientation: set its sform, for example with nibabel.")

    def _default_plane(self) -> str:
        self._check_orientation()
        thin = [axis for axis in range(3) if self.shape[axis] == 1]
        return PLANES[int(self._orientation[thin[0], 0])] if len(thin) == 1 else "axial"

    def _axes(self, plane: str) -> tuple[int, int, int]:
        """The axes of the array that run across a plane, along its rows' order and along its columns' order."""
        if plane in ARRAY_PLANES:
            across = ARRAY_PLANES.index(plane)
            rows, columns = sorted({0, 1, 2} - {across})
            return across, rows, columns
        self._check_orientation()
        across = int(np.flatnonzero(self._orientation[:, 0] == PLANES.index(plane))[0])
        columns, rows = sorted({0, 1, 2} - {across}, key=lambda axis: self._orientation[axis, 0])
        return across, rows, columns

    def _displayed(self, voxels: np.ndarray, plane: str) -> np.ndarray:
        """Part of the array with all of its three axes as (slices, rows, columns)."""
        if plane in ARRAY_PLANES:
            return np.moveaxis(voxels, ARRAY_PLANES.index(plane), 0)
        canonical = self._orientations.apply_orientation(voxels, self._orientation)
        # Columns begin at the patient's right or in front, rows in front or at the top.
        return np.moveaxis(canonical, PLANES.index(plane), 0).swapaxes(1, 2)[:, ::-1, ::-1]


def _scaling(slope: float, intercept: float, dtype: np.dtype) -> tuple[float, float]:
    """Slope and intercept of a header, of which a slope of 0 and what is not finite state none; colors have none."""
    if dtype.fields or slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _checked_shape(shape: tuple[int, ...], dtype: np.dtype, offset: int) -> tuple[int, ...]:
    """Check a header's shape and give it at least three axes.

    Raises:
        ValueError: for what can not be shown or is suspiciously large.
    """
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
