"""Pictures for records: stored files as they are, everything else as PNG, and the slices of volumes."""

import gzip
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from unimedvl.processing.dicom_unimedvl import frame_count

from ..schema import Picture
from ..task_images import image_picture, medical_image, upright_picture

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
# PNG and JPEG files go into records byte by byte.
STORED_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
# No scanner's slices are thicker than so many pixels are wide; a damaged header may say so.
MOST_STRETCHED = 100
# In masks of these formats every value has a seam of others around it.
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
LEAST_LOSSY_STEP = 64
# A slice is used if at least this share of it is brighter than a tenth of the volume's range.
LEAST_CONTENT = 0.05


def file_picture(path: Path, root: Path, window: tuple[float, float] | None = None) -> Picture:
    """The picture in a file, its path relative to `root`.

    PNG and JPEG files keep their bytes but for comments and EXIF, which may name a patient, and become an upright PNG
    where EXIF says that they lie; every other format, DICOM included, becomes PNG, its grey levels chosen by
    the file or by `window`, (center, width).

    Raises:
        ValueError: one line, for a file that is missing or no image.
    """
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return bytes_picture(_file_bytes(path), name, window)


def _file_bytes(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:  # also a name that no file can have
        raise ValueError(f"{path.as_posix()[:200]}: expected an image, found a problem: {error.strerror}.") from error
    raise ValueError(f"{path}: expected an image, found no such file.")


def file_frames(
    path: Path, root: Path, window: tuple[float, float] | None = None
) -> Iterator[tuple[int | None, Picture]]:
    """All frames of a DICOM file with their numbers, from 0; a file of one frame gives it with None.

    Raises:
        ValueError: one line, for a file that is no DICOM image.
    """
    content, name = _file_bytes(path), path.relative_to(root).as_posix()
    count = frame_count(content)
    if count == 1:
        yield None, bytes_picture(content, name, window)
        return
    for frame in range(count):
        try:
            picture = medical_image(content, window=window, frame=frame)
        except ValueError as error:
            raise ValueError(f"{name}: expected an image in frame {frame}, found a problem: {error}") from error
        yield frame, image_picture(picture, f"{name}#{frame}")


def named_picture(folder: Path, name: str) -> Picture:
    """The picture that a row of a table names, below its folder; a leading slash is dropped, as the authors do.

    Raises:
        ValueError: one line, for a name that leads out of the folder, a missing file or no image.
    """
    path = folder / name.lstrip("/")
    if ".." in path.relative_to(folder).parts:
        raise ValueError(f"{name}: expected an image below {folder}, found a name that leads out of it.")
    return file_picture(path, folder)


def bytes_picture(content: bytes, name: str, window: tuple[float, float] | None = None) -> Picture:
    """The picture of an image file's content; see `file_picture`."""
    if content.startswith(STORED_SIGNATURES):
        return upright_picture(content, name)
    try:
        picture = medical_image(content, window=window)
    except ValueError as error:
        raise ValueError(f"{name}: expected an image, found a problem: {error}") from error
    return image_picture(picture, name)


def read_levels(path: Path, known: Sequence[int] = ()) -> np.ndarray:
    """The stored values of a mask file, (H, W) or (H, W, 3), integers, without any windowing and without transparency.

    Args:
        known: the values that a mask has besides 0, if they are to be told apart. In a file of a lossy format every
            pixel gets the nearest of them; without any, more than half of the range counts as 255.

    Raises:
        ValueError: one line, for a file that is missing or no picture, or a lossy one whose values are too close.
    """
    try:
        with Image.open(path) as opened:
            lossy = opened.format in LOSSY_FORMATS or opened.info.get("compression") == "jpeg"
            # Colour spaces with offsets or inks have no zero that means background.
            if opened.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                raise ValueError("it is stored lying, with its orientation in EXIF; save it upright")
            levels = np.asarray(
                opened if opened.mode not in ("CMYK", "YCbCr", "LAB", "HSV") else opened.convert("RGB")
            )
            if opened.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
                levels = levels[..., :3] if levels.shape[-1] == 4 else levels[..., 0]
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


@dataclass(frozen=True)
class Volume:
    """A scan as slices in radiological display.

    Attributes:
        voxels: (slices, rows, columns), in the file's units. The first slice is the lowest (feet first).
        spacing: millimetres between rows and between columns.
    """

    voxels: np.ndarray
    spacing: tuple[float, float]

    def content_slices(self, levels: tuple[float, float]) -> Iterator[int]:
        """Indices of the slices that show more than background."""
        threshold = levels[0] + 0.1 * (levels[1] - levels[0])
        for index, plane in enumerate(self.voxels):
            if np.mean(plane > threshold) >= LEAST_CONTENT:
                yield index

    def levels(self, window: tuple[float, float] | None, percentiles: tuple[float, float] = (0.5, 99.5)) -> Any:
        """The values that become black and white: those of a (center, width) window, else the volume's percentiles."""
        if window is not None:
            return window[0] - window[1] / 2, window[0] + window[1] / 2
        low, high = np.percentile(self.voxels, percentiles)
        return float(low), float(high)

    def picture(self, index: int, levels: tuple[float, float], name: str) -> Picture:
        """A slice as 8-bit PNG with square pixels."""
        low, high = levels
        grey = np.clip((self.voxels[index].astype(np.float64) - low) / max(high - low, 1e-12), 0.0, 1.0)
        return image_picture(self._square(Image.fromarray(np.rint(grey * 255).astype(np.uint8)), False), name)

    def marked(self, index: int, values: Sequence[int] = ()) -> np.ndarray:
        """Where a slice has one of the label values, by default any but 0: (height, width) bool, as `picture` is.

        Values are compared as the file has them: label numbers go beyond 255.
        """
        plane = self.voxels[index]
        inside = np.isin(plane, list(values)) if values else np.nan_to_num(plane) != 0
        return np.asarray(self._square(Image.fromarray(inside.astype(np.uint8)), True)) == 1

    def _square(self, picture: Image.Image, labels: bool) -> Image.Image:
        rows, columns = self.spacing
        finer = min(rows, columns)
        # The voxels of the two directions differ by less than one per cent in every scanner's "square" pixels.
        if max(rows, columns) < 1.01 * finer:
            return picture
        size = (round(picture.width * columns / finer), round(picture.height * rows / finer))
        return picture.resize(size, Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC)


def _check_gzip(path: Path) -> None:
    """Unpack a file to its end, where its checksum stands; a reader that stops after the voxels never gets there."""
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
    try:
        nibabel = importlib.import_module("nibabel")
    except ImportError:
        raise ValueError('NIfTI files need nibabel: pip install "unimedvl[medical]".') from None
    try:
        if path.suffix == ".gz":
            _check_gzip(path)
        image = nibabel.load(path)
        if slice_axis is None:
            image = nibabel.as_closest_canonical(image)
        voxels = np.asarray(image.dataobj)
    # Of a damaged header nibabel may make anything: sizes beyond memory, axes that do not exist, unknown types.
    except Exception as error:
        raise ValueError(
            f"{path}: expected a NIfTI volume, found a problem: {' '.join(str(error).split())}."
        ) from None
    if voxels.ndim != 3:
        raise ValueError(f"{path}: expected a volume with three axes, found the shape {voxels.shape}.")
    spacing = [float(zoom) if np.isfinite(zoom) and zoom > 0 else 1.0 for zoom in image.header.get_zooms()]
    rows, columns = (1, 0) if slice_axis is None else [axis for axis in range(3) if axis != slice_axis]
    height, width = spacing[rows], spacing[columns]
    if max(height, width) > MOST_STRETCHED * min(height, width):
        raise ValueError(f"{path}: expected voxels of like height and width, found {height:g} and {width:g} mm.")
    if slice_axis is None:
        # From right, anterior, superior to rows that start in front and columns that start at the patient's right.
        return Volume(voxels[::-1, ::-1].transpose(2, 1, 0), (height, width))
    return Volume(np.moveaxis(voxels, slice_axis, 0), (height, width))
