"""Images for records: stored files as they are, everything else as PNG, and the slices of volumes."""

import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from unimedvl.processing.dicom_series_unimedvl import DicomSeries
from unimedvl.processing.dicom_unimedvl import DicomFile
from unimedvl.processing.medical_formats_unimedvl import open_image, opened
from unimedvl.processing.nifti_unimedvl import NiftiVolume
from unimedvl.processing.pixel_windows_unimedvl import square_pixels
from unimedvl.processing.stored_values_unimedvl import (
    TIFF_SIGNATURES,
    DeepTiff,
    has_deep_colors,
    load_page,
    netpbm_values,
    raw_mode,
    stored_values,
)
from unimedvl.processing.view_unimedvl import ARRAY_PLANES, View

from ..schema import RecordImage
from ..task_images import encoded_image, upright_image, view_entry
from .image_names import image_name

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
# PNG and JPEG files go into records byte by byte.
STORED_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
# No scanner's slices are thicker than `MOST_STRETCHED` pixels are wide; a damaged header may say so.
MOST_STRETCHED = 100
# In masks of these formats every value has a seam of others around it.
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
LEAST_LOSSY_STEP = 64
# A slice is used if at least this share of it is brighter than a tenth of the volume's range.
LEAST_CONTENT = 0.05
DEFAULT_VIEW = View()


def file_image(path: Path, root: Path, view: View = DEFAULT_VIEW) -> RecordImage:
    """The image in a file, its path relative to `root`.

    PNG and JPEG files keep their bytes but for comments and EXIF, which may name a patient, and become an upright PNG
    where EXIF says that they lie; every other format, DICOM included, becomes PNG, its gray levels chosen by
    the file or by `view`, which its record remembers.

    Raises:
        ValueError: one line, for a file that is missing or no image.
    """
    name, content = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name, _file_bytes(path)
    image = bytes_image(content, name, view)
    return image if content.startswith(STORED_SIGNATURES) else dataclasses.replace(image, view=view_entry(name, view))


def _file_bytes(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:  # also a name that no file can have
        raise ValueError(f"{path.as_posix()[:200]}: expected an image, found a problem: {error.strerror}.") from error
    raise ValueError(f"{path}: expected an image, found no such file.")


def file_frames(path: Path, root: Path, view: View = DEFAULT_VIEW) -> Iterator[tuple[str, RecordImage, View]]:
    """All frames of a DICOM file: names, images, and views that show them anew.

    A file of one frame has the file's name, others `#` and the frame's number, from 0, behind it.

    Raises:
        ValueError: one line, for a file that is no DICOM image.
    """
    content, name = _file_bytes(path), path.relative_to(root).as_posix()
    with _readable(name):
        file = None if content.startswith(STORED_SIGNATURES) else _dicom_file(content)
    if file is None or file.frames == 1:
        yield name, bytes_image(content, name, view), view
        return
    for frame in range(file.frames):
        place, frame_view = f"{name}#{frame}", dataclasses.replace(view, frame=frame)
        with _readable(place):
            image = encoded_image(open_image(file, frame_view), place)
        yield place, image, frame_view


def _dicom_file(content: bytes) -> DicomFile | None:
    with opened(content) as file:
        return file if isinstance(file, DicomFile) else None


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Name the file in what a reader says about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: expected an image, found a problem: {error}") from error


class SeriesReader:
    """The DICOM files of folders, seen as slices of their series where a folder holds one that can be read."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._series: DicomSeries | None = None

    def images(self, path: Path, root: Path, view: View) -> Iterator[tuple[str, RecordImage, str, View]]:
        """The images of one file: names, images, and the source and the view that show them anew.

        Raises:
            ValueError: one line, for a file that is no DICOM image.
        """
        series, name = self._series_of(path.parent), path.relative_to(root).as_posix()
        if series is not None and path in series.paths:
            slice_view = dataclasses.replace(view, slice_index=series.paths.index(path))
            try:
                image = encoded_image(open_image(series, slice_view), name)
            # Of this file, or of another whose values count for this one's gray levels.
            except ValueError:
                pass
            else:
                yield name, image, path.parent.relative_to(root).as_posix(), slice_view
                return
        # Files that cannot be read as a series are volumes of their own.
        for place, image, frame_view in file_frames(path, root, view):
            yield place, image, name, frame_view

    def _series_of(self, folder: Path) -> DicomSeries | None:
        if folder != self._folder:
            self._folder = folder
            try:
                self._series = DicomSeries(folder)
            # Several series, or a file that cannot be read; it is named where it is read itself.
            except ValueError:
                self._series = None
        return self._series


def named_image(folder: Path, name: str) -> RecordImage:
    """The image that a row of a table names, below its folder; see `image_names` for the spellings of a name.

    Raises:
        ValueError: one line, for a name that leads out of the folder, a missing file or no image.
    """
    return file_image(folder / image_name(folder, name), folder)


def bytes_image(content: bytes, name: str, view: View = DEFAULT_VIEW) -> RecordImage:
    """The image of an image file's content; see `file_image`."""
    if content.startswith(STORED_SIGNATURES):
        return upright_image(content, name)
    with _readable(name):
        return encoded_image(open_image(content, view), name)


def read_levels(path: Path, known: Sequence[int] = ()) -> np.ndarray:
    """The stored values of a mask file, (H, W) or (H, W, 3), integers, without any windowing and without transparency.

    Args:
        known: the values that a mask has besides 0, if they are to be distinguished. In a file of a lossy format every
            pixel gets the nearest of them; without any, more than half of the range counts as 255.

    Raises:
        ValueError: one line, for a file that is missing or no image, or a lossy one whose values are too close.
    """
    try:
        levels, lossy = _stored_levels(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: expected a mask image, found no such file.") from error
    # PIL's decoders raise anything for a damaged file, an error of its own for one that claims to be gigantic.
    except Exception as error:
        problem = "no known format" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise ValueError(f"{path}: expected a mask image, found a problem: {problem}.") from error
    if not lossy or levels.dtype == bool:
        return levels
    steps = np.array(sorted({0, *known} if known else {0, 255}))
    if np.diff(steps).min(initial=255) < LEAST_LOSSY_STEP:
        raise ValueError(
            f"{path}: expected values at least {LEAST_LOSSY_STEP} apart in a mask of a lossy format, found classes of "
            f"{', '.join(map(str, known))}: save the masks as PNG from their originals."
        )
    return steps.astype(np.int32)[np.searchsorted((steps[1:] + steps[:-1]) / 2, levels)]


def _stored_levels(path: Path) -> tuple[np.ndarray, bool]:
    """The values of a mask file, and whether its format is lossy."""
    content = path.read_bytes()
    plain = netpbm_values(content)
    if plain is not None:
        return plain[0], False
    try:
        opened = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[:4] not in TIFF_SIGNATURES:
            raise
        return DeepTiff(io.BytesIO(content), "the file").values(), False
    with opened:
        raw = raw_mode(opened)
        if has_deep_colors(raw):
            raise ValueError("it stores colors of 16 bits; save it as a label map of one channel")
        if opened.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            raise ValueError("it is stored lying, with its orientation in EXIF; save it upright")
        lossy = opened.format in LOSSY_FORMATS or opened.info.get("compression") == "jpeg"
        # Color spaces with offsets or inks have no zero that means background.
        load_page(opened)
        if opened.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            return np.asarray(opened.convert("RGB")), lossy
        levels, _ = stored_values(opened, raw)
        if opened.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
            levels = levels[..., :3] if levels.shape[-1] == 4 else levels[..., 0]
        return levels, lossy


@dataclass(frozen=True)
class Volume:
    """A scan as slices in radiological display.

    Attributes:
        scan: the file.
        plane: of the slices, as `View.plane` names it. The first axial slice is the lowest (feet first).
    """

    scan: NiftiVolume
    plane: str

    @property
    def voxels(self) -> np.ndarray:
        """(slices, rows, columns), in the file's units."""
        return self.scan.slices(self.plane)

    def view(self, index: int, view: View = DEFAULT_VIEW) -> View:
        """The view that shows a slice."""
        return dataclasses.replace(view, plane=self.plane, slice_index=index)

    def content_slices(self, view: View = DEFAULT_VIEW) -> Iterator[int]:
        """Indices of the slices that show more than background."""
        black, white = self.scan.black_white(view)
        threshold = black + 0.1 * (white - black)
        for index, plane in enumerate(self.voxels):
            if np.mean(plane > threshold) >= LEAST_CONTENT:
                yield index

    def image(self, index: int, name: str, view: View = DEFAULT_VIEW) -> RecordImage:
        """A slice as 8-bit PNG with square pixels."""
        return encoded_image(open_image(self.scan, self.view(index, view)), name)

    def marked(self, index: int, values: Sequence[int] = ()) -> np.ndarray:
        """Where a slice has one of the label values, by default any but 0: (height, width) bool, as `image` is.

        Values are compared as the file has them: label numbers go beyond 255.
        """
        plane = self.voxels[index]
        inside = np.isin(plane, list(values)) if values else np.nan_to_num(plane) != 0
        rows, columns = self.scan.spacing(self.plane)
        image = Image.fromarray(inside.astype(np.uint8))
        return np.asarray(square_pixels(image, columns, rows, resample=Image.Resampling.NEAREST)) == 1


def _check_gzip(path: Path) -> None:
    """Unpack a file to its end, where its checksum is; a reader that stops after the voxels never gets there."""
    with gzip.open(path) as stream:
        while stream.read(1 << 20):
            pass


def read_volume(path: Path, slice_axis: int | None = None) -> Volume:
    """A NIfTI file as axial slices: anterior at the top, the patient's right at the left.

    Args:
        path: `.nii` or `.nii.gz`, 3-D.
        slice_axis: None takes the orientation from the header; an axis of the array takes the slices as they lie in
            the file, for sets whose headers can not be trusted.

    Raises:
        ValueError: one line, for a file that is missing, damaged or not 3-D.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a NIfTI volume, found no such file.")
    plane = "axial" if slice_axis is None else ARRAY_PLANES[slice_axis]
    try:
        if path.suffix == ".gz":
            _check_gzip(path)
        with opened(path) as scan:
            if not isinstance(scan, NiftiVolume) or scan.is_color:
                raise ValueError("it holds no volume of gray levels.")
            if scan.frames > 1:
                raise ValueError(f"it has {scan.frames} frames; save one volume with three axes.")
            # Read whole, so that the file need not stay open.
            if not np.isfinite(scan.voxels()).any():
                raise ValueError("no voxel is a finite number.")
            height, width = scan.spacing(plane)
    # gzip raises errors of three kinds.
    except (ValueError, OSError, EOFError, zlib.error) as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}: expected a NIfTI volume, found a problem: {problem}.") from None
    if max(height, width) > MOST_STRETCHED * min(height, width):
        raise ValueError(f"{path}: expected voxels of like height and width, found {height:g} and {width:g} mm.")
    return Volume(scan, plane)
