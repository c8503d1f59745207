"""DICOM to 8-bit images. Only tags of pixels and of their place are ever read, so no patient tag can leak."""

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from .pixel_windows_unimedvl import (
    check_image_size,
    check_volume_size,
    checked_index,
    image_from_uint8,
    square_pixels,
    usable_spacing,
    values_to_uint8,
)
from .view_unimedvl import View

# Everything that decides what the pixels look like, and nothing else: pydicom skips all other elements.
PIXEL_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "BluePaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor",
    "BurnedInAnnotation",
    "Columns",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "GreenPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor",
    "HighBit",
    "ImagerPixelSpacing",
    "ModalityLUTSequence",
    "NominalScannedPixelSpacing",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelAspectRatio",
    "PixelData",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PixelSpacing",
    "PlanarConfiguration",
    "RedPaletteColorLookupTableData",
    "RedPaletteColorLookupTableDescriptor",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SamplesPerPixel",
    "SegmentedBluePaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
]
DEFLATED_TRANSFER_SYNTAX = "1.2.840.10008.1.2.1.99"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
MAX_FILE_BYTES = 2**31
BROKEN = "The DICOM file is truncated or damaged: export it again, or check it with dciodvfy."
# pydicom inflates such files without a limit.
DEFLATED = "The DICOM file is deflated as a whole: convert it with dcmconv +te first."


def is_dicom(header: bytes, name: str) -> bool:
    """Whether the first bytes of a file, or its name, announce DICOM."""
    # Old files lack the preamble and start with group 2 or 8 of the data set.
    bare = header[:2] in (b"\x02\x00", b"\x08\x00") and name.lower().endswith((".dcm", ".dicom"))
    return header[128:132] == b"DICM" or bare


@contextmanager
def no_patient_text() -> Iterator[None]:
    """Silence pydicom while it reads: its warnings, log lines and exceptions quote the values of tags."""
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


class DicomFile:
    """A DICOM file in memory, whose frames are decoded as they are asked for.

    Args:
        stream: a binary file object, read to its end.

    Attributes:
        size: (columns, rows) of a frame, in stored pixels.
        frames: number of frames, at least 1.

    Raises:
        ValueError: one sentence that quotes no tag, for a file that is damaged or holds no readable image.
    """

    def __init__(self, stream: Any):
        pydicom, self._pixels = dicom_libraries()
        self._new_dataset = pydicom.Dataset
        if stream.seek(0, io.SEEK_END) > MAX_FILE_BYTES:
            raise ValueError("The DICOM file is larger than 2 GiB: split its frames into several files.")
        stream.seek(0)
        content = io.BytesIO(stream.read())
        try:
            with no_patient_text():
                deflated = transfer_syntax(content, pydicom) == DEFLATED_TRANSFER_SYNTAX
                dataset: Any = None if deflated else pydicom.dcmread(content, force=True, specific_tags=PIXEL_TAGS)
                described = dataset is not None and all(name in dataset for name in ("Rows", "Columns"))
                self.size = (int(dataset.Columns), int(dataset.Rows)) if described else (0, 0)
        # Any exception of the parser may quote tags: none may pass, whatever its type.
        except Exception:
            raise ValueError(BROKEN) from None
        if deflated:
            raise ValueError(DEFLATED)
        if not described or not any(f"{kind}PixelData" in dataset for kind in ("", "Float", "DoubleFloat")):
            raise ValueError(
                "The DICOM file holds no image: pass an image object, not a report, a plan or a directory."
            )
        try:
            with no_patient_text():
                self.frames = max(int(dataset.get("NumberOfFrames") or 1), 1)
                self._burned_in = str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
                syntax = pydicom.uid.UID(dataset.file_meta.get("TransferSyntaxUID", IMPLICIT_LITTLE_ENDIAN))
                dataset.file_meta.TransferSyntaxUID = syntax
                decoder = self._pixels.get_decoder(syntax)
        except NotImplementedError:
            decoder = None
        except Exception:
            raise ValueError(BROKEN) from None
        if decoder is None or not decoder.is_available:
            raise ValueError(
                "The DICOM file is compressed in a way no installed decoder reads: pip install pylibjpeg "
                "pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it with gdcmconv --raw."
            )
        self._dataset, self._decoder = dataset, decoder
        self._ranges: dict[tuple[float, float], tuple[float, float]] = {}

    def image(self, view: View, series_range: Callable[[View], tuple[float, float]] | None = None) -> Image.Image:
        """One frame as an 8-bit "L" or "RGB" image with square pixels, the middle one by default.

        Gray levels: modality LUT or rescale, then the view's window (in those units, LINEAR_EXACT), else the file's
        VOI LUT, else the first of its windows by its VOI LUT function, else 8-bit levels as they are, else percentiles
        outside the pixel padding value, of all frames (or whatever `series_range` makes black and white in the series
        that the file belongs to) or of this one. A window holds for each channel of a color image. MONOCHROME1 is
        inverted; palettes and YBR become RGB. Overlays are not drawn. Warns if the file declares burned-in annotation.
        (DICOM part 3, C.7.6.3 and C.11.)

        Args:
            view: what to show; it may choose no slice unless `series_range` is given.
            series_range: black and white of the series for a view, see `black_white`.

        Raises:
            ValueError: one sentence that quotes no tag, for a frame that does not exist or can not be decoded.
        """
        if series_range is None:
            view.refuse_slice()
        check_image_size(*self.size, view.max_pixels)
        index = checked_index(view.frame, self.frames, "frame", default=self.frames // 2)
        levels: np.ndarray | None
        if self._burned_in:
            warnings.warn(
                "The DICOM file declares burned-in annotation: its pixels may show who the patient is.", stacklevel=2
            )
        try:
            with no_patient_text():
                array, properties = self._decoder.as_array(self._dataset, index=index)
                kind = str(properties["photometric_interpretation"])
                if kind == "PALETTE COLOR":
                    array = self._pixels.apply_color_lut(array, self._dataset)
                    levels = _color_levels(array, 16 if array.dtype == np.uint16 else 8, view)
                elif array.ndim == 3:
                    levels = _color_levels(array, int(self._dataset.BitsStored), view)
                else:
                    values = self._values(array, index)
                    levels = self._stated_levels(array, values, index, view)
                padding = self._padding(array)
                row_spacing, column_spacing = self._spacing(index)
        except Exception:
            raise ValueError(BROKEN) from None
        if levels is None:
            if view.percentiles_of == "slice":
                black_white = counted_range([(values, padding)], view)
            else:
                black_white = (series_range or self.black_white)(view)
            levels = values_to_uint8(values, black_white)
        if kind == "MONOCHROME1":
            levels = 255 - levels
        return square_pixels(image_from_uint8(levels), column_spacing, row_spacing, view.max_pixels)

    def black_white(self, view: View) -> tuple[float, float]:
        """Count all frames for the values that their percentiles make black and white.

        Raises:
            ValueError: one sentence, for damaged frames or too many values.
        """
        if view.percentiles not in self._ranges:
            check_volume_size(self.frames * self.size[0] * self.size[1])
            self._ranges[view.percentiles] = counted_range(self.counted_values(view), view)
        return self._ranges[view.percentiles]

    def counted_values(self, view: View) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Decode every frame after the modality LUT, (H, W), and where it is padded (None: nowhere).

        Raises:
            ValueError: one sentence that quotes no tag, for a frame that can not be decoded.
        """
        check_image_size(*self.size, view.max_pixels)
        for index in range(self.frames):
            try:
                with no_patient_text():
                    array, _ = self._decoder.as_array(self._dataset, index=index)
                    yielded = self._values(array, index), self._padding(array)
            except Exception:
                raise ValueError(BROKEN) from None
            if array.ndim == 2:
                yield yielded

    def _group(self, index: int, name: str) -> Any:
        """The item of a functional group sequence that holds for a frame of an enhanced object, or the data set
        itself, where older objects keep the same tags. pydicom leaves functional groups to its callers."""
        frames = self._dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = self._dataset.get("SharedFunctionalGroupsSequence") or []
        for group in [*frames[index : index + 1], *shared]:
            if group.get(name):
                return getattr(group, name)[0]
        return self._dataset

    def _values(self, array: np.ndarray, index: int) -> np.ndarray:
        """Stored values in the file's units; `array` itself where nothing changes."""
        if self._dataset.get("ModalityLUTSequence"):
            return _looked_up(array, self._dataset.ModalityLUTSequence[0])
        group = self._group(index, "PixelValueTransformationSequence")
        slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
        if slope is None or intercept is None or (float(slope), float(intercept)) == (1.0, 0.0):
            return array
        return self._pixels.apply_modality_lut(array, group)

    def _stated_levels(self, array: np.ndarray, values: np.ndarray, index: int, view: View) -> np.ndarray | None:
        """(H, W) uint8 levels by the view's window or by what the file states, or None where neither says any."""
        if view.window is not None:
            return values_to_uint8(values, view.black_white(()))
        if self._dataset.get("VOILUTSequence"):
            item = self._dataset.VOILUTSequence[0]
            looked_up = _looked_up(np.rint(values).astype(np.int64), item)
            return np.rint(looked_up / (2.0 ** int(item.LUTDescriptor[2]) - 1) * 255).astype(np.uint8)
        voi = self._group(index, "FrameVOILUTSequence")
        if voi.get("WindowCenter") is not None and voi.get("WindowWidth") is not None:
            function = str(voi.get("VOILUTFunction") or "LINEAR").upper()
            function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
            width = float(np.atleast_1d(voi["WindowWidth"].value)[0])
            if width >= 1 or (function != "LINEAR" and width > 0):
                return self._windowed(values, voi, function)
        if array.dtype == np.uint8 and values is array and int(self._dataset.BitsStored) == 8:
            return array
        return None

    def _windowed(self, values: np.ndarray, voi: Any, function: str) -> np.ndarray:
        """Values through the first window of a file. pydicom's own output range is that of the stored bits, so it is
        given 8 unsigned ones."""
        window = self._new_dataset()
        window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
        window.WindowCenter, window.WindowWidth = voi.WindowCenter, voi.WindowWidth
        window.VOILUTFunction = function
        levels = np.nan_to_num(self._pixels.apply_windowing(values, window))
        # Halves that lost their last bit in the division are rounded like halves.
        return np.rint(levels.round(9)).astype(np.uint8)

    def _padding(self, array: np.ndarray) -> np.ndarray | None:
        """Where stored values are padding, or None."""
        value = self._dataset.get("PixelPaddingValue")
        if value is None:
            return None
        ends = [int(value), int(self._dataset.get("PixelPaddingRangeLimit", value))]
        return (array >= min(ends)) & (array <= max(ends))

    def _spacing(self, index: int) -> tuple[float, float]:
        """Distances between the rows and between the columns, or their ratio as two numbers; 1, 1 if not stated."""
        group = self._group(index, "PixelMeasuresSequence")
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
            try:
                row, column = (float(value) for value in group.get(name))
            # The tag is missing, or holds anything but two numbers.
            except (TypeError, ValueError, OverflowError):
                continue
            if row == usable_spacing(row) and column == usable_spacing(column):
                return row, column
        return 1.0, 1.0


def dicom_libraries() -> tuple[Any, Any]:
    """Import pydicom and pydicom.pixels.

    Raises:
        ValueError: where they are not installed.
    """
    try:
        return importlib.import_module("pydicom"), importlib.import_module("pydicom.pixels")
    except ImportError:
        raise ValueError('DICOM files need pydicom: pip install "unimedvl[medical]".') from None


def transfer_syntax(stream: Any, pydicom: Any) -> str | None:
    """Read the transfer syntax of a file's meta information, without the data set behind it.

    Args:
        stream: the file, at its start, where it is left.
        pydicom: the module.

    Returns:
        The UID, or None for a file without meta information.
    """
    if stream.read(132)[128:] != b"DICM":
        stream.seek(0)
        return None
    meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    stream.seek(0)
    return meta.get("TransferSyntaxUID")


def _color_levels(array: np.ndarray, bits_stored: int, view: View) -> np.ndarray:
    """(H, W, 3) colors of `bits_stored` bits as uint8; a window counts in those bits."""
    if view.window is not None:
        return values_to_uint8(array, view.black_white(()))
    return (array >> max(bits_stored - 8, 0)).astype(np.uint8)


def counted_range(frames: Iterable[tuple[np.ndarray, np.ndarray | None]], view: View) -> tuple[float, float]:
    """Find what becomes black and white of several frames; padding counts only if there is nothing else.

    Args:
        frames: values (H, W) and where they are padding, as `DicomFile.counted_values` yields them.
        view: its window, else its percentiles decide.

    Raises:
        ValueError: if no value is finite.
    """
    values, counted = [], []
    for frame, padding in frames:
        values.append(frame)
        counted.append(frame if padding is None else frame[~padding])
    return view.black_white(counted if any(np.isfinite(part).any() for part in counted) else values)


def _looked_up(values: np.ndarray, item: Any) -> np.ndarray:
    """Values through a modality or VOI LUT item; those outside its range take its first or last entry.

    pydicom's `apply_modality_lut` and `apply_voi` count in the type of the table or of the image, in which larger
    values wrap around, and refuse tables of bytes in an OW element.
    """
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype="<u2" if bits > 8 or len(data) >= 2 * (count or 2**16) else np.uint8)
    else:
        table = np.atleast_1d(np.asarray(data, dtype=np.int64))
    return table[np.clip(values.astype(np.int64) - first, 0, min(count or 2**16, len(table)) - 1)]
