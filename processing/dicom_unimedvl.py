"""DICOM to 8-bit pictures. Only the tags that describe pixels are ever read, so no patient tag can leak."""

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from .pixel_windows_unimedvl import check_image_size, checked_index, picture_from_uint8, window_to_uint8

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
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelData",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
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


def is_dicom(header: bytes, name: str) -> bool:
    """Whether the first bytes of a file, or its name, announce DICOM."""
    # Old files lack the preamble and start with group 2 or 8 of the data set.
    bare = header[:2] in (b"\x02\x00", b"\x08\x00") and name.lower().endswith((".dcm", ".dicom"))
    return header[128:132] == b"DICM" or bare


@contextmanager
def _no_patient_text() -> Iterator[None]:
    """Silence pydicom while it reads: its warnings, log lines and exceptions quote the values of tags."""
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def frame_count(content: bytes) -> int:
    """Pictures in a DICOM file; 1 for anything that states no number, also what is no DICOM file."""
    try:
        pydicom = importlib.import_module("pydicom")
        with _no_patient_text():
            # pydicom inflates such files without a limit.
            if _transfer_syntax(io.BytesIO(content), pydicom) == DEFLATED_TRANSFER_SYNTAX:
                return 1
            dataset = pydicom.dcmread(
                io.BytesIO(content), force=True, stop_before_pixels=True, specific_tags=["NumberOfFrames"]
            )
            return max(int(dataset.get("NumberOfFrames") or 1), 1)
    # Whatever is wrong is told where the picture is read; the parser's own words may quote tags.
    except Exception:
        return 1


def read_dicom(
    stream: Any,
    window: tuple[float, float] | None,
    frame: int | None,
    percentiles: tuple[float, float],
    max_pixels: int,
) -> Image.Image:
    """One frame of a DICOM file as an 8-bit "L" or "RGB" picture.

    `stream` is a binary file object. Multi-frame files give their middle frame unless `frame` names one. Grey levels:
    modality LUT or rescale, then `window` (center, width in those units, LINEAR_EXACT), else the file's VOI LUT, else
    the first of its windows by its VOI LUT function, else 8-bit levels as they are, else `percentiles` of the frame
    outside the pixel padding value. A `window` holds for each channel of a colour picture.
    MONOCHROME1 is inverted; palettes and YBR become RGB. Overlays are not drawn.
    Warns if the file declares burned-in annotation. Raises ValueError; no message quotes a tag.
    """
    try:
        pydicom = importlib.import_module("pydicom")
        pixels = importlib.import_module("pydicom.pixels")
    except ImportError:
        raise ValueError('DICOM files need pydicom: pip install "unimedvl[medical]".') from None
    if stream.seek(0, io.SEEK_END) > MAX_FILE_BYTES:
        raise ValueError("The DICOM file is larger than 2 GiB: split its frames into several files.")
    stream.seek(0)
    content = io.BytesIO(stream.read())
    broken = "The DICOM file is truncated or damaged: export it again, or check it with dciodvfy."
    try:
        with _no_patient_text():
            deflated = _transfer_syntax(content, pydicom) == DEFLATED_TRANSFER_SYNTAX
            dataset = None if deflated else pydicom.dcmread(content, force=True, specific_tags=PIXEL_TAGS)
            described = dataset is not None and all(name in dataset for name in ("Rows", "Columns"))
            size = (int(dataset.Columns), int(dataset.Rows)) if described else (0, 0)
    # Any exception of the parser may quote tags: none may pass, whatever its type.
    except Exception:
        raise ValueError(broken) from None
    if deflated:
        # pydicom inflates such files without a limit.
        raise ValueError("The DICOM file is deflated as a whole: convert it with dcmconv +te first.")
    if not described or not any(f"{kind}PixelData" in dataset for kind in ("", "Float", "DoubleFloat")):
        raise ValueError("The DICOM file holds no picture: pass an image object, not a report, a plan or a directory.")
    check_image_size(*size, max_pixels)
    try:
        with _no_patient_text():
            count = max(int(dataset.get("NumberOfFrames") or 1), 1)
            burned_in = str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
            syntax = pydicom.uid.UID(dataset.file_meta.get("TransferSyntaxUID", IMPLICIT_LITTLE_ENDIAN))
            dataset.file_meta.TransferSyntaxUID = syntax
            decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    except Exception:
        raise ValueError(broken) from None
    if decoder is None or not decoder.is_available:
        raise ValueError(
            "The DICOM file is compressed in a way no installed decoder reads: pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it with gdcmconv --raw."
        )
    index = checked_index(frame, count, "frame", default=count // 2)
    if burned_in:
        warnings.warn(
            "The DICOM file declares burned-in annotation: its pixels may show who the patient is.", stacklevel=2
        )
    try:
        with _no_patient_text():
            array, properties = decoder.as_array(dataset, index=index)
            kind = str(properties["photometric_interpretation"])
            if kind == "PALETTE COLOR":
                array = pixels.apply_color_lut(array, dataset)
                levels = _colour_levels(array, 16 if array.dtype == np.uint16 else 8, window)
            elif array.ndim == 3:
                levels = _colour_levels(array, int(dataset.BitsStored), window)
            else:
                levels = _grey_levels(array, dataset, index, window, percentiles)
    except Exception:
        raise ValueError(broken) from None
    if kind == "MONOCHROME1":
        levels = 255 - levels
    return picture_from_uint8(levels)


def _transfer_syntax(content: io.BytesIO, pydicom: Any) -> str | None:
    """The transfer syntax the file's meta information states, read without the data set behind it."""
    if content.getbuffer()[128:132] != b"DICM":
        return None
    content.seek(132)
    meta = pydicom.filereader.read_dataset(content, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    content.seek(0)
    return meta.get("TransferSyntaxUID")


def _colour_levels(array: np.ndarray, bits_stored: int, window: tuple[float, float] | None) -> np.ndarray:
    """(H, W, 3) colours of `bits_stored` bits as uint8; a `window` counts in those bits."""
    if window is not None:
        return window_to_uint8(array, window, (0, 100))
    return (array >> max(bits_stored - 8, 0)).astype(np.uint8)


def _functional_group(dataset: Any, index: int, name: str) -> Any:
    """The item of a functional group sequence that holds for frame `index` of an enhanced object, or the data set
    itself, where older objects keep the same tags."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*frames[index : index + 1], *shared]:
        if group.get(name):
            return getattr(group, name)[0]
    return dataset


def _grey_levels(
    array: np.ndarray,
    dataset: Any,
    index: int,
    window: tuple[float, float] | None,
    percentiles: tuple[float, float],
) -> np.ndarray:
    """(H, W) stored values to uint8 levels, before the inversion of MONOCHROME1."""
    values = array
    transformation = _functional_group(dataset, index, "PixelValueTransformationSequence")
    if dataset.get("ModalityLUTSequence"):
        values = _looked_up(array, dataset.ModalityLUTSequence[0])
    elif "RescaleSlope" in transformation and "RescaleIntercept" in transformation:
        slope, intercept = float(transformation.RescaleSlope), float(transformation.RescaleIntercept)
        if (slope, intercept) != (1.0, 0.0):
            values = array * slope + intercept
    if window is not None:
        return window_to_uint8(values, window, percentiles)
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        looked_up = _looked_up(np.rint(values).astype(np.int64), item)
        return np.rint(looked_up / (2.0 ** int(item.LUTDescriptor[2]) - 1) * 255).astype(np.uint8)
    voi = _functional_group(dataset, index, "FrameVOILUTSequence")
    if voi.get("WindowCenter") is not None and voi.get("WindowWidth") is not None:
        center, width = (float(np.atleast_1d(voi[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        function = str(voi.get("VOILUTFunction") or "LINEAR").upper()
        # The functions of the standard, part 3, C.11.2.1.2 and C.11.2.1.3.
        if function == "SIGMOID" and width > 0:
            levels = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))
            return np.rint(levels * 255).astype(np.uint8)
        if function == "LINEAR_EXACT" and width > 0:
            return window_to_uint8(values, (center, width), percentiles)
        if width > 1:
            return window_to_uint8(values, (center - 0.5, width - 1), percentiles)
    if array.dtype == np.uint8 and values is array and int(dataset.BitsStored) == 8:
        return array
    ignored = None
    if dataset.get("PixelPaddingValue") is not None:
        ends = [int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))]
        ignored = (array >= min(ends)) & (array <= max(ends))
    return window_to_uint8(values, None, percentiles, ignored)


def _looked_up(values: np.ndarray, item: Any) -> np.ndarray:
    """Values through a modality or VOI LUT item; those outside its range take its first or last entry."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype="<u2" if bits > 8 or len(data) >= 2 * (count or 2**16) else np.uint8)
    else:
        table = np.atleast_1d(np.asarray(data, dtype=np.int64))
    return table[np.clip(values.astype(np.int64) - first, 0, min(count or 2**16, len(table)) - 1)]
