"""Colors and transfer syntaxes of DICOM files: converted, decoded, or refused by their names."""

import importlib.util
import warnings

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.processing.medical_files import PATIENT, make_dicom, read_dicom_file, write_dicom
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

JPEG_XL = "1.2.840.10008.1.2.4.110"
RAMP = np.arange(600, dtype=np.int16).reshape(20, 30) - 300


def levels(source, **options) -> np.ndarray:
    return np.asarray(load_medical_image(source, **options))


# --------------------------------------------------------------------------------------------------- F4: colors


@pytest.mark.parametrize("name", ["HSV", "ARGB", "CMYK", "YBR_PARTIAL_420", "XYB", "YBR_RCT", "YBR_ICT"])
def test_f4_other_color_spaces_are_refused_by_name(name):
    data = read_dicom_file(make_dicom(np.zeros((4, 6, 3), np.uint8), PhotometricInterpretation=name))
    if name in ("ARGB", "CMYK"):
        data.SamplesPerPixel, data.PixelData = 4, bytes(4 * 6 * 4)
    with pytest.raises(ValueError, match=name):
        load_medical_image(write_dicom(data))


def test_f4_what_is_no_color_space_is_refused_without_quoting_it():
    for array in (np.zeros((4, 6, 3), np.uint8), RAMP):
        with pytest.raises(ValueError, match="photometric interpretation") as error:
            load_medical_image(make_dicom(array, PhotometricInterpretation=PATIENT.upper()))
        assert "DOE^" not in str(error.value).upper()


def test_f4_the_partial_range_becomes_the_full_one():
    # Black, white and the primaries by the standard's own numbers (part 3, C.7.6.3.1.2).
    matrix = np.array([[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]])
    colors = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 100, 200]])
    stored = np.rint(colors @ matrix.T + [16, 128, 128]).astype(np.uint8)
    # Rows of two pixels of one color, as their chroma is shared.
    packed = np.array([[y, y, blue, red] for y, blue, red in stored], dtype=np.uint8)
    data = read_dicom_file(make_dicom(np.zeros((6, 2, 3), np.uint8), PhotometricInterpretation="YBR_PARTIAL_422"))
    data.PixelData = packed.tobytes()
    shown = levels(write_dicom(data)).astype(int)
    assert np.abs(shown - colors[:, None]).max() <= 2


# --------------------------------------------------------------------------------------- F5: transfer syntaxes


def compressed(syntax: str, frame: bytes) -> bytes:
    data = read_dicom_file(make_dicom(RAMP, BitsStored=12, HighBit=11))
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    # pydicom does not write syntaxes that it does not know.
    data.file_meta.TransferSyntaxUID = HTJ2KLossless if syntax == JPEG_XL else syntax
    return write_dicom(data).replace(HTJ2KLossless.encode(), syntax.encode())


@pytest.mark.skipif(importlib.util.find_spec("pylibjpeg") is not None, reason="pylibjpeg reads all of them")
@pytest.mark.parametrize(
    "syntax, name, package",
    [
        (JPEGExtended12Bit, "JPEG Extended", "pylibjpeg-libjpeg"),
        (JPEGBaseline8Bit, "JPEG Baseline", "pylibjpeg-libjpeg"),
        (JPEG2000Lossless, "JPEG 2000", "pylibjpeg-openjpeg"),
        (JPEGLSLossless, "JPEG-LS", "pylibjpeg-libjpeg"),
        (MPEG4HP41, "MPEG-4", "gdcmconv"),
        (JPEG_XL, "JPEG XL", "gdcmconv"),
        (HTJ2KLossless, "High-Throughput JPEG 2000", "pylibjpeg-openjpeg"),
    ],
)
def test_f5_the_syntax_and_the_package_that_decodes_it_are_named(syntax, name, package):
    with pytest.raises(ValueError, match=name) as error:
        load_medical_image(compressed(syntax, b"\xff\xd8 a codestream of no known kind \xff\xd9"))
    assert package in str(error.value) and str(syntax) in str(error.value) and "damaged" not in str(error.value)


def test_f5_a_damaged_frame_is_no_unknown_syntax():
    for syntax in (JPEGExtended12Bit, JPEG2000Lossless, RLELossless):
        with pytest.raises(ValueError, match="damaged"):
            load_medical_image(compressed(syntax, b"\xff\xd8 a codestream that breaks off "))


def test_f5_a_private_syntax_is_not_quoted():
    for uid in (b"1.2.840.10008.9.9.9", b"1.2.DOE^JANE", b"1.3.6.1.4.1.4711.1\0", b"1.2.840.4711.1\0"):
        content = make_dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", uid.ljust(20, b"\0"))
        with warnings.catch_warnings(), pytest.raises(ValueError) as error:
            warnings.simplefilter("error")
            load_medical_image(content)
        assert uid.rstrip(b"\0").decode() not in str(error.value)
