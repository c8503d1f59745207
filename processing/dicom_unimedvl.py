"""DICOM to 8-bit images. Only tags of pixels and of their place are ever read, so no patient tag can leak."""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from typing import Any

import numpy as np
from PIL import Image

from .dicom_colors_unimedvl import MONOCHROME, PALETTE, check_color_space, color_levels, rgb_of
from .dicom_encodings_unimedvl import (
    BROKEN,
    DEFLATED,
    DEFLATED_TRANSFER_SYNTAX,
    dataset_syntax,
    dicom_libraries,
    may_be_undecodable,
    transfer_syntax,
    undecodable,
)
from .dicom_tables_unimedvl import LookupTable, lookup_table, palette
from .pixel_windows_unimedvl import (
    check_image_size,
    check_volume_size,
    checked_index,
    image_from_uint8,
    no_patient_text,
    square_pixels,
    usable_spacing,
    values_to_uint8,
    voi_levels,
)
from .view_unimedvl import View

# Everything that decides what the pixels look like, and nothing else: pydicom skips all other elements.
PIXEL_TAGS = """
    BitsAllocated BitsStored BluePaletteColorLookupTableData BluePaletteColorLookupTableDescriptor
    BurnedInAnnotation Columns DoseGridScaling DoubleFloatPixelData DoubleFloatPixelPaddingRangeLimit
    DoubleFloatPixelPaddingValue ExtendedOffsetTable ExtendedOffsetTableLengths FloatPixelData
    FloatPixelPaddingRangeLimit FloatPixelPaddingValue GreenPaletteColorLookupTableData
    GreenPaletteColorLookupTableDescriptor HighBit ImagerPixelSpacing ModalityLUTSequence
    NominalScannedPixelSpacing NumberOfFrames PerFrameFunctionalGroupsSequence PhotometricInterpretation
    PixelAspectRatio PixelData PixelPaddingRangeLimit PixelPaddingValue PixelRepresentation PixelSpacing
    PlanarConfiguration RedPaletteColorLookupTableData RedPaletteColorLookupTableDescriptor RescaleIntercept
    RescaleSlope Rows SamplesPerPixel SegmentedBluePaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SharedFunctionalGroupsSequence VOILUTFunction VOILUTSequence WindowCenter WindowWidth
""".split()
MAX_FILE_BYTES = 2**31
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Where a frame of an enhanced object states what older objects state in the data set itself.
TRANSFORMATION, VOI, MEASURES = "PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"


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
        pydicom, pixels = dicom_libraries()
        if stream.seek(0, io.SEEK_END) > MAX_FILE_BYTES:
            raise ValueError("The DICOM file is larger than 2 GiB: split its frames into several files.")
        stream.seek(0)
        content = io.BytesIO(stream.read())
        try:
            with no_patient_text():
                deflated = transfer_syntax(content, pydicom) == DEFLATED_TRANSFER_SYNTAX
                dataset: Any = None if deflated else pydicom.dcmread(content, force=True, specific_tags=PIXEL_TAGS)
                # What is present and empty counts as absent.
                for tag in [] if deflated else [element.tag for element in dataset if element.is_empty]:
                    del dataset[tag]
                described = dataset is not None and all(name in dataset for name in ("Rows", "Columns"))
                self.size = (int(dataset.Columns), int(dataset.Rows)) if described else (0, 0)
        # Any exception of the parser may quote tags: none may pass, whatever its type.
        except Exception:
            raise ValueError(BROKEN) from None
        if deflated:
            raise ValueError(DEFLATED)
        if not described or not any(name in dataset for name in PIXEL_KEYWORDS):
            raise ValueError(
                "The DICOM file holds no image: pass an image object, not a report, a plan or a directory."
            )
        try:
            with no_patient_text():
                self.frames = max(int(dataset.get("NumberOfFrames", 1)), 1)
                self._burned_in = str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
                self._syntax = dataset_syntax(dataset, pydicom)
                dataset.file_meta.TransferSyntaxUID = self._syntax
                self._color_space = str(dataset.PhotometricInterpretation).strip().upper().replace("_COLOR", " COLOR")
                dataset.PhotometricInterpretation = self._color_space
        except Exception:
            raise ValueError(BROKEN) from None
        check_color_space(self._color_space)
        try:
            with no_patient_text():
                self._decoder = pixels.get_decoder(self._syntax)
                available = self._decoder.is_available
        except NotImplementedError:
            available = False
        if not available:
            raise ValueError(undecodable(self._syntax))
        try:
            with no_patient_text():
                self._options, self._shift = _decoding_options(dataset, self._syntax, self._color_space)
        except Exception:
            raise ValueError(BROKEN) from None
        self._dataset, self._pixels, self._get_frame = dataset, pixels, pydicom.encaps.get_frame
        self._ranges: dict[tuple[float, float], tuple[float, float]] = {}

    def image(self, view: View, series_range: Callable[[View], tuple[float, float]] | None = None) -> Image.Image:
        """One frame as an 8-bit "L" or "RGB" image with square pixels, the middle one by default.

        Gray levels: modality LUT, rescale or dose grid scaling, then the view's window (in those units, LINEAR_EXACT),
        else the file's VOI LUT, else the first of its windows by its VOI LUT function, else 8-bit levels as they are,
        else percentiles outside the pixel padding value, of all frames (or whatever `series_range` makes black and
        white in the series that the file belongs to) or of this one. A window holds for each channel of a color image.
        MONOCHROME1 is inverted; palettes and YBR become RGB. Overlays are not drawn. Warns if the file declares
        burned-in annotation. (DICOM part 3, C.7.6.3, C.8.8.3 and C.11.)

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
        if self._burned_in:
            warnings.warn(
                "The DICOM file declares burned-in annotation: its pixels may show who the patient is.", stacklevel=2
            )
        array, color_space = self._decoded(index)
        levels: np.ndarray | None
        try:
            with no_patient_text():
                if self._color_space == PALETTE:
                    tables = palette(self._dataset, self._is_signed, self._syntax)
                    array = np.stack([table.look_up(array) for table in tables], axis=-1)
                    levels = color_levels(array, max(table.bits for table in tables), view)
                elif self._color_space not in MONOCHROME:
                    bits = int(self._dataset.BitsStored)
                    unsigned = array.view(array.dtype.str.replace("i", "u"))
                    levels = color_levels(rgb_of(unsigned, color_space, bits, self._pixels), bits, view)
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
        if self._color_space == "MONOCHROME1":
            levels = 255 - levels
        return square_pixels(image_from_uint8(levels), column_spacing, row_spacing, view.max_pixels)

    def black_white(self, view: View) -> tuple[float, float]:
        """Count all frames for the values that their percentiles make black and white.

        Raises:
            ValueError: one sentence, for damaged frames or too many values.
        """
        if view.percentiles not in self._ranges:
            check_volume_size(self.frames * self.size[0] * self.size[1], view.max_values)
            self._ranges[view.percentiles] = counted_range(self.counted_values(view), view)
        return self._ranges[view.percentiles]

    def counted_values(self, view: View) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Decode every gray frame after the modality LUT, (H, W), and where it is padded (None: nowhere).

        Raises:
            ValueError: one sentence that quotes no tag, for a frame that can not be decoded.
        """
        check_image_size(*self.size, view.max_pixels)
        for index in range(self.frames if self._color_space in MONOCHROME else 0):
            array, _ = self._decoded(index)
            try:
                with no_patient_text():
                    yielded = self._values(array, index), self._padding(array)
            except Exception:
                raise ValueError(BROKEN) from None
            yield yielded

    def _decoded(self, index: int) -> tuple[np.ndarray, str]:
        """Stored values of a frame, (H, W) or (H, W, 3), and the color space that they are in.

        Raises:
            ValueError: one sentence that quotes no tag, for a frame that is damaged or that nothing here decodes.
        """
        try:
            with no_patient_text():
                array, properties = self._decoder.as_array(self._dataset, index=index, raw=True, **self._options)
                if array.ndim != (2 if self._color_space in (*MONOCHROME, PALETTE) else 3):
                    raise ValueError("as many samples as the color space does not have")
        except Exception:
            raise ValueError(self._failure(index)) from None
        color_space = str(properties["photometric_interpretation"])
        # It was unpacked under another name, see `_decoding_options`.
        if self._color_space == "YBR_PARTIAL_422" and color_space != "RGB":
            color_space = self._color_space
        check_color_space(color_space, is_decoded=True)
        return array.astype(array.dtype.newbyteorder("=")) >> self._shift if self._shift else array, color_space

    def _failure(self, index: int) -> str:
        """The sentence on a frame that could not be decoded."""
        if self._syntax.is_encapsulated:
            try:
                with no_patient_text():
                    frame = self._get_frame(self._dataset.PixelData, index, number_of_frames=self.frames)
                if may_be_undecodable(self._syntax, frame):
                    return undecodable(self._syntax)
            # The frames themselves are damaged.
            except Exception:
                return BROKEN
        return BROKEN

    def _places(self, index: int, name: str) -> Iterator[Any]:
        """Where a frame may state something: the item of a functional group sequence that holds for it in an enhanced
        object, then the data set itself. pydicom leaves functional groups to its callers."""
        frames = self._dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = self._dataset.get("SharedFunctionalGroupsSequence") or []
        for group in [*frames[index : index + 1], *shared]:
            if group.get(name):
                yield group[name].value[0]
        yield self._dataset

    @property
    def _is_signed(self) -> bool:
        """Whether stored values are signed."""
        return "PixelData" not in self._dataset or self._dataset.PixelRepresentation == 1

    def _table(self, place: Any, name: str, is_signed: bool) -> LookupTable | None:
        """The first table of a sequence."""
        for item in (place.get(name) or [])[:1]:
            return lookup_table(item, is_signed, self._syntax)
        return None

    def _modality_table(self, index: int) -> LookupTable | None:
        tables = (
            self._table(place, "ModalityLUTSequence", self._is_signed) for place in self._places(index, TRANSFORMATION)
        )
        return next((table for table in tables if table is not None), None)

    def _scaling(self, index: int) -> tuple[float, float]:
        """Slope and intercept from stored values to the file's units; both have to be stated."""
        dose = _number(self._dataset, "DoseGridScaling")
        if dose:
            return dose, 0.0
        for place in self._places(index, TRANSFORMATION):
            slope, intercept = _number(place, "RescaleSlope"), _number(place, "RescaleIntercept")
            if slope and intercept is not None:
                return slope, intercept
        return 1.0, 0.0

    def _values(self, array: np.ndarray, index: int) -> np.ndarray:
        """Stored values in the file's units; `array` itself where nothing changes."""
        table = self._modality_table(index)
        if table is not None:
            return table.look_up(array)
        slope, intercept = self._scaling(index)
        return array if (slope, intercept) == (1.0, 0.0) else array.astype(np.float64) * slope + intercept

    def _may_be_negative(self, index: int) -> bool:
        """Whether the input of a VOI LUT may be: its descriptor is signed then (DICOM part 3, C.11.2.1.1)."""
        if self._modality_table(index) is not None:
            return False
        if "PixelData" not in self._dataset:
            return True
        slope, intercept = self._scaling(index)
        return min(end * slope + intercept for end in self._stored_range()) < 0

    def _stored_range(self) -> tuple[int, int]:
        """The least and the largest number that the stored bits hold."""
        count = 2 ** int(self._dataset.BitsStored)
        return (-count // 2, count // 2 - 1) if self._is_signed else (0, count - 1)

    def _stated_levels(self, array: np.ndarray, values: np.ndarray, index: int, view: View) -> np.ndarray | None:
        """(H, W) uint8 levels by the view's window or by what the file states, or None where neither says any."""
        if view.window is not None:
            return values_to_uint8(values, view.black_white(()))
        for place in self._places(index, VOI):
            table = self._table(place, "VOILUTSequence", self._may_be_negative(index))
            if table is not None:
                shares = np.minimum(table.look_up(values) / (2.0**table.bits - 1), 1)
                return np.rint(shares * 255).astype(np.uint8)
            function = str(place.get("VOILUTFunction") or "LINEAR").strip().upper()
            for center, width in _windows(place):
                # The limits of the standard; what is beyond them is no window.
                if width >= 1 or (width > 0 and function in ("LINEAR_EXACT", "SIGMOID")):
                    return voi_levels(values, center, width, function)
        if array.dtype == np.uint8 and values is array and int(self._dataset.BitsStored) == 8:
            return array
        return None

    def _padding(self, array: np.ndarray) -> np.ndarray | None:
        """Where stored values are padding, or None."""
        kind = next(name for name in PIXEL_KEYWORDS if name in self._dataset).removesuffix("PixelData")
        value = self._dataset.get(f"{kind}PixelPaddingValue")
        if value is None:
            return None
        ends = [value, self._dataset.get(f"{kind}PixelPaddingRangeLimit", value)]
        if not kind:
            ends = [_by_bits(int(end), *self._stored_range()) for end in ends]
            if None in ends:
                return None
        return (array >= min(ends)) & (array <= max(ends))

    def _spacing(self, index: int) -> tuple[float, float]:
        """Distances between the rows and between the columns, or their ratio as two numbers; 1, 1 if not stated."""
        for place in self._places(index, MEASURES):
            for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
                try:
                    row, column = (float(value) for value in place.get(name))
                # The tag is missing, or holds anything but two numbers.
                except (TypeError, ValueError, OverflowError):
                    continue
                if row == usable_spacing(row) and column == usable_spacing(column):
                    return row, column
        return 1.0, 1.0


def _decoding_options(dataset: Any, syntax: Any, color_space: str) -> tuple[dict[str, Any], int]:
    """Options of pydicom's decoder, and by how many bits what it gives has to be shifted down."""
    options: dict[str, Any] = {}
    shift = 0
    # Codestreams of JPEG have no unused bits. pydicom takes the stored bits for the lowest, wherever they are.
    if "PixelData" in dataset and "HighBit" in dataset and (not syntax.is_encapsulated or syntax == RLE_LOSSLESS):
        high, stored, allocated = (int(dataset[name].value) for name in ("HighBit", "BitsStored", "BitsAllocated"))
        if stored - 1 < high < allocated:
            options["bits_stored"], shift = high + 1, high + 1 - stored
    # It is packed like the full range, which alone pydicom unpacks.
    if color_space == "YBR_PARTIAL_422" and not syntax.is_encapsulated:
        options["photometric_interpretation"] = "YBR_FULL_422"
    return options, shift


def _number(dataset: Any, name: str) -> float | None:
    """A number that a data set states, or None where it states none that is finite."""
    value = dataset.get(name)
    number = math.nan if value is None or value == "" else float(value)
    return number if math.isfinite(number) else None


def _by_bits(number: int, low: int, high: int) -> int | None:
    """The stored value from `low` to `high` that has the bits of a 16-bit number, or None if there is none.

    Files state paddings unsigned where stored values are signed, and the reverse.
    """
    count = high - low + 1
    as_signed = (number + 2**15) % 2**16 - 2**15
    # Bits beyond the stored ones may only repeat the sign.
    if not low <= number <= high and as_signed >> (count.bit_length() - 1) not in (0, -1):
        return None
    return (number - low) % count + low


def _windows(place: Any) -> list[tuple[float, float]]:
    """The windows that a data set states, (center, width)."""
    stated = (place.get(name) for name in ("WindowCenter", "WindowWidth"))
    columns = [value if isinstance(value, MutableSequence) else [value] for value in stated]
    pairs = [pair for pair in zip(*columns, strict=False) if not {None, ""} & set(pair)]
    windows = [(float(center), float(width)) for center, width in pairs]
    return [window for window in windows if all(map(math.isfinite, window))]


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
