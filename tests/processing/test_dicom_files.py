"""DICOM files as scanners and planning systems write them: tables, windows, padding, colors, doses, bare files."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from tests.processing.generated_dicom import Scan, Table, encoded
from tests.processing.medical_files import make_dicom, read_dicom_file, write_dicom
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
RAMP = np.arange(600, dtype=np.int16).reshape(20, 30) - 300
PALETTE = {"Red": [0, 80, 160, 255], "Green": [255, 0, 80, 160], "Blue": [7, 8, 9, 10]}


def levels(source, **options) -> np.ndarray:
    return np.asarray(load_medical_image(source, **options))


def windowed(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def by_percentiles(values, counted=None):
    low, high = np.percentile(values if counted is None else counted, (0.5, 99.5))
    return windowed(values.astype(float), low, high)


def in_syntax(content: bytes, syntax: str) -> bytes:
    """A file of gray levels in another transfer syntax."""
    original = read_dicom_file(content)
    array = original.pixel_array
    # A data set that was never written takes the encoding of its meta information.
    data = Dataset()
    data.file_meta = original.file_meta
    data.update(original)
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        data.PixelData = array.astype(array.dtype.newbyteorder(">")).tobytes()
    data["PixelData"].VR = "OW"
    return write_dicom(data)


# ------------------------------------------------------------------------------------------ F1: lookup tables


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("packing", ["words", "bytes"])
@pytest.mark.parametrize("bits", [8, 16])
def test_f1_palettes_in_every_packing_and_byte_order(syntax, packing, bits):
    scale = 1 if bits == 8 else 257
    tables = tuple(Table(0, bits, tuple(level * scale for level in row)) for row in PALETTE.values())
    scan = Scan("PALETTE COLOR", (5, 6), 8, 8, 7, False, 3, palettes=tables)
    indices = np.clip(scan.values(), 0, 3)
    expected = np.stack([np.array(row)[indices] for row in PALETTE.values()], axis=-1)
    assert len(np.unique(indices)) > 2
    assert np.array_equal(levels(encoded(scan, syntax, packing)), expected)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_f1_a_voi_table_after_a_rescale_starts_below_zero(syntax):
    # Stored values are unsigned: only the rescale makes the first value of the table a signed one.
    table = Table(-100, 8, (0, 50, 100, 255))
    scan = Scan("MONOCHROME2", (1, 6), 16, 16, 15, False, 0, rescale=(1, -1024), voi=table)
    data = read_dicom_file(encoded(scan, ExplicitVRLittleEndian, "numbers"))
    data.PixelData = np.array([0, 924, 925, 926, 927, 2000], dtype=np.uint16).tobytes()
    content = in_syntax(write_dicom(data), syntax)
    assert levels(content).tolist() == [[0, 0, 50, 100, 255, 255]]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_f1_a_voi_table_after_a_rescale_to_positive_values_starts_high(syntax):
    # Stored values are signed: the rescale makes the first value of the table an unsigned one.
    table = Table(40000, 8, tuple(range(256)))
    scan = Scan("MONOCHROME2", (1, 6), 16, 16, 15, True, 0, rescale=(1, 32768), voi=table)
    data = read_dicom_file(encoded(scan, ExplicitVRLittleEndian, "numbers"))
    data.PixelData = np.array([-32768, 7231, 7232, 7300, 7400, 7500], dtype=np.int16).tobytes()
    content = in_syntax(write_dicom(data), syntax)
    assert levels(content).tolist() == [[0, 0, 0, 68, 168, 255]]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_f1_the_first_value_of_a_modality_table_has_the_sign_of_stored_values(signed, syntax):
    item = Dataset()
    # 65500, or -36.
    item.add_new("LUTDescriptor", "US", [4, 65500, 16])
    item.add_new("LUTData", "US", [0, 100, 200, 300])
    item.ModalityLUTType = "US"
    array = np.array([[-36, -35, -34, -33, 0, 5]], dtype=np.int16)
    content = make_dicom(array if signed else array.view(np.uint16), ModalityLUTSequence=[item])
    expected = [0, 100, 200, 300, 300, 300] if signed else [0, 100, 200, 300, 0, 0]
    shown = levels(in_syntax(content, syntax), window=(150, 300))
    assert shown.tolist() == windowed(np.array([expected], float), 0, 300).tolist()


def segmented(numbers: list[int], bits: int, count: int) -> bytes:
    tags = {f"{name}PaletteColorLookupTableDescriptor": [count, 0, bits] for name in PALETTE}
    content = bytes(numbers) + b"\0" * (len(numbers) % 2) if bits == 8 else np.array(numbers, "<u2").tobytes()
    tags |= {f"Segmented{name}PaletteColorLookupTableData": content for name in PALETTE}
    indices = np.arange(16, dtype=np.uint8).reshape(2, 8)
    return make_dicom(indices, PhotometricInterpretation="PALETTE COLOR", **tags)


@pytest.mark.parametrize("bits", [8, 16])
def test_f1_segmented_palettes(bits):
    white = 2**bits - 1
    # Three entries, a line of five to white, a line of four back down.
    file = segmented([0, 3, 0, white // 2, 7, 1, 5, white, 1, 4, 3], bits, 12)
    expected = apply_color_lut(read_dicom_file(file).pixel_array, read_dicom_file(file))
    assert np.array_equal(levels(file), expected >> 8 if bits == 16 else expected)
    # The first two segments once more, found by the bytes before them, as the standard counts.
    repeated = [0, 3, 0, white // 2, 7, 1, 3, white, 2, 2, *([0, 0, 0, 0] if bits == 8 else [0, 0])]
    shown = levels(segmented(repeated, bits, 12))
    assert np.array_equal(shown.reshape(16, 3)[:6], shown.reshape(16, 3)[6:12]) and shown.max() == 255
    # From the second on: 5 numbers lie before it.
    only_line = [0, 3, 0, white // 2, 7, 1, 3, white, 0, 1, 7, 2, 1, *([5, 0, 0, 0] if bits == 8 else [10, 0])]
    shown = levels(segmented(only_line, bits, 10)).reshape(16, 3)
    assert np.array_equal(shown[3:6], shown[7:10])


def test_f1_a_damaged_palette_is_refused():
    for numbers in ([0, 9, 1], [1, 4, 200], [2, 1, 0, 0, 0, 0], [3, 1, 1], []):
        with pytest.raises(ValueError, match="damaged"):
            load_medical_image(segmented(numbers, 8, 4))
    with pytest.raises(ValueError, match="damaged"):
        load_medical_image(make_dicom(np.zeros((3, 3), np.uint8), PhotometricInterpretation="PALETTE COLOR"))


def test_f1_tables_of_functional_groups():
    groups = []
    for frame in range(2):
        item, voi, group = Dataset(), Dataset(), Dataset()
        item.add_new("LUTDescriptor", "US", [2, 10, 8])
        item.add_new("LUTData", "US", [0, 100 + frame])
        voi.VOILUTSequence = [item]
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    frames = np.full((2, 4, 5), 11, dtype=np.uint16)
    file = make_dicom(frames, frames=2, PerFrameFunctionalGroupsSequence=groups)
    assert [np.unique(levels(file, frame=frame)).tolist() for frame in range(2)] == [[100], [101]]


# ---------------------------------------------------------------------------------------- F2: limits of windows


@pytest.mark.parametrize(
    "function, width, expected",
    [
        ("LINEAR", "1", [0, 0, 255, 255]),
        ("LINEAR_EXACT", "1", [0, 0, 255, 255]),
        ("LINEAR_EXACT", "0.25", [0, 0, 255, 255]),
        ("SIGMOID", "0.01", [0, 0, 255, 255]),
        ("SIGMOID", "4", np.rint(255 / (1 + np.exp(-np.array([-1.5, -0.5, 0.5, 1.5])))).tolist()),
    ],
)
def test_f2_windows_at_their_least_width(function, width, expected):
    # LINEAR is a step at half a value below its center.
    center = "2" if function == "LINEAR" else "1.5"
    tags = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    values = np.array([[0, 1, 2, 3]], dtype=np.int16)
    assert levels(make_dicom(values, **tags)).tolist() == [expected]


@pytest.mark.parametrize(
    "function, width", [("LINEAR", "0.5"), ("LINEAR", "0"), ("LINEAR_EXACT", "0"), ("SIGMOID", "-1")]
)
def test_f2_a_window_below_its_least_width_is_none(function, width):
    tags = {"WindowCenter": "1", "WindowWidth": width, "VOILUTFunction": function}
    assert np.array_equal(levels(make_dicom(RAMP, **tags)), by_percentiles(RAMP))
    # The next one counts.
    tags |= {"WindowCenter": ["1", "0"], "WindowWidth": [width, "101"]}
    assert len(np.unique(levels(make_dicom(RAMP, **tags)))) >= 100
    assert not np.array_equal(levels(make_dicom(RAMP, **tags)), by_percentiles(RAMP))


# -------------------------------------------------------------------- F3: bits, padding and what is empty


@pytest.mark.parametrize("representation", ["SS", "US"])
@pytest.mark.parametrize("dtype, padding, value", [(np.int16, -2000, 63536), (np.uint16, 63536, -2000)])
def test_f3_padding_is_compared_by_its_bits(representation, dtype, padding, value):
    values = np.array(np.abs(RAMP), dtype)
    values[:5] = padding
    data = read_dicom_file(make_dicom(values))
    number = value if (value >= 0) == (representation == "US") else padding
    data.add_new("PixelPaddingValue", representation, number)
    shown = levels(write_dicom(data))
    assert np.array_equal(shown[5:], by_percentiles(values[5:]))


def test_f3_padding_of_12_bits_may_leave_out_its_sign():
    values = np.maximum(RAMP, -200)
    values[:5] = -2000
    data = read_dicom_file(make_dicom(values, BitsStored=12, HighBit=11))
    for number in (0x0830, 0xF830):
        data.add_new("PixelPaddingValue", "US", number)
        assert np.array_equal(levels(write_dicom(data))[5:], by_percentiles(values[5:]))
    # A number that 8 bits do not hold is no padding.
    small = np.full((20, 30), 44, dtype=np.uint8)
    small[10:] = np.arange(30)
    data = read_dicom_file(make_dicom(small, RescaleSlope="2", RescaleIntercept="0"))
    data.add_new("PixelPaddingValue", "US", 300)
    assert np.array_equal(levels(write_dicom(data)), by_percentiles(small * 2))


def test_f3_padding_of_floats():
    values = RAMP.astype(np.float32)
    values[:5] = -1e6
    data = read_dicom_file(make_dicom(RAMP))
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.BitsAllocated, data.FloatPixelData, data.FloatPixelPaddingValue = 32, values.tobytes(), -1e6
    assert np.array_equal(levels(write_dicom(data))[5:], by_percentiles(values[5:]))


@pytest.mark.parametrize("high", [11, 13, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_f3_stored_bits_may_lie_high(high, signed):
    scan = Scan("MONOCHROME2", (20, 30), 16, 12, high, signed, 4, window=(100, 800, "LINEAR_EXACT"))
    content = encoded(scan, ExplicitVRLittleEndian, "words")
    assert np.array_equal(levels(content), windowed(scan.values(), -300, 500))
    # RLE keeps the cells as they are.
    data = read_dicom_file(encoded(scan, ExplicitVRLittleEndian, "words"))
    if high == 15:
        cells = np.frombuffer(data.PixelData, "<u2").reshape(20, 30)
        data.BitsStored = 16
        data.compress(RLELossless, cells.view(np.int16) if signed else cells)
        data.BitsStored, data.HighBit = 12, 15
        assert np.array_equal(levels(write_dicom(data)), levels(content))


EMPTY = {
    "RescaleSlope": ("RescaleSlope", "RescaleIntercept"),
    "RescaleIntercept": ("RescaleIntercept", "RescaleSlope"),
    "WindowCenter": ("WindowCenter", "WindowWidth"),
    "WindowWidth": ("WindowWidth", "WindowCenter"),
    "NumberOfFrames": ("NumberOfFrames", ""),
    "PixelPaddingValue": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "PixelPaddingRangeLimit": ("PixelPaddingRangeLimit", ""),
    "PixelSpacing": ("PixelSpacing", ""),
    "HighBit": ("HighBit", ""),
    "VOILUTFunction": ("VOILUTFunction", ""),
    "VOILUTSequence": ("VOILUTSequence", ""),
    "ModalityLUTSequence": ("ModalityLUTSequence", ""),
    "DoseGridScaling": ("DoseGridScaling", ""),
    "BurnedInAnnotation": ("BurnedInAnnotation", ""),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_f3_what_is_present_and_empty_is_absent(name, syntax):
    empty, partner = EMPTY[name]
    tags = {empty: None if "Sequence" not in empty else []}
    if partner:
        tags[partner] = 7
    assert np.array_equal(levels(in_syntax(make_dicom(RAMP, **tags), syntax)), by_percentiles(RAMP))


def test_f3_an_empty_element_of_a_group_leaves_what_the_file_says():
    transformation, shared = Dataset(), Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = None, None
    shared.PixelValueTransformationSequence = [transformation]
    tags = {"RescaleSlope": "2", "RescaleIntercept": "5", "SharedFunctionalGroupsSequence": [shared]}
    assert np.array_equal(levels(make_dicom(RAMP, **tags), window=(0, 200)), windowed(RAMP * 2.0 + 5, -100, 100))


# ------------------------------------------------------------------------------- F6: doses, aspect, bare files


def test_f6_doses_are_counted_in_gray():
    dose = (np.arange(600, dtype=np.uint32) * 4000).reshape(20, 30)
    tags = {"DoseGridScaling": "0.00003", "DoseUnits": "GY", "Modality": "RTDOSE", "PixelSpacing": ["2", "2"]}
    gray = dose * 0.00003
    assert np.array_equal(levels(make_dicom(dose, **tags), window=(30, 60)), windowed(gray, 0, 60))
    assert np.array_equal(levels(make_dicom(dose, **tags)), by_percentiles(gray))
    # 8 bits are no levels where they are scaled.
    small = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(levels(make_dicom(small, DoseGridScaling="0.5")), by_percentiles(small * 0.5))
    frames = np.stack([dose, dose * 2])
    shown = levels(make_dicom(frames, frames=2, **tags), frame=1, window=(30, 60))
    assert np.array_equal(shown, windowed(gray * 2, 0, 60))


def test_f6_the_aspect_of_pixels_holds_for_doses_too():
    tags = {"DoseGridScaling": "0.001", "PixelAspectRatio": [4, 1], "PixelSpacing": ["4", "1"]}
    assert load_medical_image(make_dicom(np.abs(RAMP).astype(np.uint16), **tags)).size == (30, 80)
    del tags["PixelSpacing"]
    assert load_medical_image(make_dicom(np.abs(RAMP).astype(np.uint16), **tags)).size == (30, 80)


def bare(content: bytes, with_meta: bool) -> bytes:
    """A file without its preamble, and perhaps without meta information."""
    if with_meta:
        return content[132:]
    (length,) = np.frombuffer(content, "<u4", count=1, offset=140)
    return content[144 + length :]


@pytest.mark.parametrize("with_meta", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619", "scan.dcm", "image.img"])
def test_f6_files_without_a_preamble(tmp_path, syntax, with_meta, name):
    whole = in_syntax(make_dicom(RAMP, WindowCenter="0", WindowWidth="300"), syntax)
    (tmp_path / name).write_bytes(bare(whole, with_meta))
    expected = levels(whole)
    assert np.array_equal(levels(tmp_path / name), expected)
    assert np.array_equal(levels(bare(whole, with_meta)), expected)
    # The folder is a series of one file.
    assert np.array_equal(levels(tmp_path), expected)


def test_f6_a_bare_deflated_file_is_not_inflated():
    content = make_dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20])
    data = read_dicom_file(make_dicom(RAMP))
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    content = write_dicom(data)
    for file in (content, content[132:]):
        with pytest.raises(ValueError, match="deflated"):
            load_medical_image(file)


@pytest.mark.parametrize("start", [b"\x02\x00", b"\x08\x00", b"\x00\x08", b"\x08\x00\x05\x00"])
def test_f6_other_files_that_begin_alike_are_no_dicom(start):
    generator = np.random.default_rng(len(start))
    for _ in range(50):
        with pytest.raises(ValueError, match="not an image"):
            load_medical_image(start + generator.integers(65, 250, 1000, dtype=np.uint8).tobytes())
