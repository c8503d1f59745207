"""DICOM, NIfTI, 16-bit and float images, EXIF: what they become."""

import base64
import gzip
import io
import sys
import traceback
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from tests.processing.conftest import random_image
from tests.processing.medical_files import PATIENT, make_dicom, make_nifti, read_dicom_file, write_dicom
from unimedvl.processing.medical_formats_unimedvl import load_medical_image, opened

RAMP = (np.arange(60 * 50, dtype=np.int16) - 1000).reshape(60, 50)


def levels(source, **options) -> np.ndarray:
    return np.asarray(load_medical_image(source, **options))


def linear(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- DICOM


def test_dicom_without_a_window_uses_percentiles():
    low, high = np.percentile(RAMP, (0.5, 99.5))
    assert np.array_equal(levels(make_dicom(RAMP)), linear(RAMP.astype(float), low, high))
    low, high = np.percentile(RAMP, (10, 90))
    assert np.array_equal(levels(make_dicom(RAMP), percentiles=(10, 90)), linear(RAMP.astype(float), low, high))


def test_dicom_rescale_and_window():
    tags = {"RescaleSlope": "2", "RescaleIntercept": "-100"}
    units = RAMP * 2.0 - 100
    assert np.array_equal(levels(make_dicom(RAMP, **tags), window=(40, 400)), linear(units, -160, 240))
    # The file's own window, by the LINEAR function of the standard (part 3, C.11.2.1.2.1); the first of several.
    own = make_dicom(RAMP, **tags, WindowCenter=["40", "300"], WindowWidth=["400", "1500"])
    assert np.array_equal(levels(own), linear(units, 39.5 - 199.5, 39.5 + 199.5))
    exact = make_dicom(RAMP, **tags, WindowCenter="40", WindowWidth="400", VOILUTFunction="LINEAR_EXACT")
    assert np.array_equal(levels(exact), linear(units, -160, 240))
    sigmoid = make_dicom(RAMP, **tags, WindowCenter="40", WindowWidth="400", VOILUTFunction="SIGMOID")
    assert np.array_equal(levels(sigmoid), np.rint(255 / (1 + np.exp(-4 * (units - 40) / 400))).astype(np.uint8))


def test_dicom_voi_lut():
    array = np.array([[0, 10, 11, 12, 13, 500]], dtype=np.uint16)
    table = [0, 50, 100, 255]
    for representation, value in (("US", table), ("OW", np.array(table, dtype="<u2").tobytes())):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4, 10, 8])
        item.add_new("LUTData", representation, value)
        assert levels(make_dicom(array, VOILUTSequence=[item])).tolist() == [[0, 0, 50, 100, 255, 255]]


def test_dicom_monochrome1_is_inverted():
    tags = {"WindowCenter": "0", "WindowWidth": "500"}
    straight = levels(make_dicom(RAMP, **tags))
    assert np.array_equal(levels(make_dicom(RAMP, **tags, PhotometricInterpretation="MONOCHROME1")), 255 - straight)


def test_dicom_8_bit_and_color_are_kept():
    gray, color = np.asarray(random_image(20, 10).convert("L")), np.asarray(random_image(20, 10))
    assert np.array_equal(levels(make_dicom(gray)), gray)
    assert np.array_equal(levels(make_dicom(color)), color)


def test_dicom_ybr_becomes_rgb():
    color = random_image(20, 10)
    ybr = np.asarray(color.convert("YCbCr"))
    difference = levels(make_dicom(ybr, PhotometricInterpretation="YBR_FULL")).astype(int) - np.asarray(color)
    assert np.abs(difference).max() <= 3


def test_dicom_palette():
    array = np.array([[0, 1, 2]], dtype=np.uint8)
    tables = {f"{name}PaletteColorLookupTableDescriptor": [3, 0, 16] for name in ("Red", "Green", "Blue")} | {
        f"{name}PaletteColorLookupTableData": (np.array(values, dtype="<u2") * 256).tobytes()
        for name, values in (("Red", [255, 0, 0]), ("Green", [0, 255, 0]), ("Blue", [0, 0, 255]))
    }
    file = make_dicom(array, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert levels(file).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_dicom_frames_default_to_the_middle():
    frames = np.stack([np.full((8, 9), 10 * index, dtype=np.uint8) for index in range(5)])
    file = make_dicom(frames, frames=5)
    assert np.unique(levels(file)).tolist() == [20]
    assert [np.unique(levels(file, frame=index)).item() for index in range(5)] == [0, 10, 20, 30, 40]


def test_dicom_enhanced_functional_groups():
    transformation, voi, shared = Dataset(), Dataset(), Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = "1", "-1024", "HU"
    voi.WindowCenter, voi.WindowWidth = "0", "101"
    shared.PixelValueTransformationSequence, shared.FrameVOILUTSequence = [transformation], [voi]
    frames = np.full((2, 8, 9), 1024, dtype=np.uint16)
    file = make_dicom(frames, frames=2, SharedFunctionalGroupsSequence=[shared])
    # Value 0 HU in a window of 100 steps around -0.5: just above the middle.
    assert np.unique(levels(file)).tolist() == [round(255 * 0.505)]


def test_dicom_padding_does_not_count():
    padded = RAMP.copy()
    padded[:30] = -2000
    low, high = np.percentile(RAMP[30:], (0.5, 99.5))
    file = make_dicom(padded, PixelPaddingValue=-2000)
    assert np.array_equal(levels(file)[30:], linear(RAMP[30:].astype(float), low, high))


@pytest.mark.parametrize("ends", [(-2000, -1900), (-1900, -2000)])
def test_dicom_padding_may_be_a_range(ends):
    """Part 3 of the standard, C.7.5.1.1.2: all values from one end to the other, both included, are padding."""
    padded = RAMP.copy()
    padded[:10], padded[10:20], padded[20:30] = -2000, -1950, -1900
    file = make_dicom(padded, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    low, high = np.percentile(RAMP[30:], (0.5, 99.5))
    assert np.array_equal(levels(file)[30:], linear(RAMP[30:].astype(float), low, high))
    outside = padded.copy()
    outside[0], outside[1] = -2001, -1899
    counted = np.concatenate([outside[:2].ravel(), RAMP[30:].ravel()])
    low, high = np.percentile(counted, (0.5, 99.5))
    file = make_dicom(outside, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    assert np.array_equal(levels(file)[30:], linear(RAMP[30:].astype(float), low, high))


def test_dicom_compressed_with_a_decoder():
    data = read_dicom_file(make_dicom(RAMP))
    data.compress(RLELossless)
    assert np.array_equal(levels(write_dicom(data)), levels(make_dicom(RAMP)))


def test_dicom_without_preamble(tmp_path):
    (tmp_path / "old.dcm").write_bytes(make_dicom(RAMP)[132:])
    assert np.array_equal(levels(tmp_path / "old.dcm"), levels(make_dicom(RAMP)))


def test_dicom_warns_of_burned_in_annotation():
    with pytest.warns(UserWarning, match="burned-in"):
        load_medical_image(make_dicom(RAMP, BurnedInAnnotation="YES"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_medical_image(make_dicom(RAMP, BurnedInAnnotation="NO"))


def test_dicom_reads_no_element_but_those_of_pixels(monkeypatch):
    """Only the groups of the image's pixels leave the parser, whatever else the data set holds."""
    data = read_dicom_file(make_dicom(RAMP, frames=0, WindowCenter="0", WindowWidth="500"))
    # Every text that identifies somebody in the groups of identification, patient, acquisition, study and procedure.
    for tag, (kind, multiplicity, _, retired, keyword) in DicomDictionary.items():
        if tag >> 16 in (0x08, 0x10, 0x18, 0x20, 0x32, 0x38, 0x40) and kind in ("PN", "LO", "SH", "LT", "ST", "DA"):
            if multiplicity.startswith("1") and not retired and keyword not in data:
                setattr(data, keyword, "19700101" if kind == "DA" else "Doe")
    content = write_dicom(data)
    read, dcmread = [], pydicom.dcmread

    def watched(*arguments, **options):
        read.append(dcmread(*arguments, **options))
        return read[-1]

    monkeypatch.setattr(pydicom, "dcmread", watched)
    assert np.array_equal(levels(content), levels(make_dicom(RAMP, WindowCenter="0", WindowWidth="500")))
    with opened(content) as file:
        assert file.frames == 1
    monkeypatch.undo()
    present = {tag.group for tag in pydicom.dcmread(io.BytesIO(content)).keys()}
    assert present > {0x08, 0x10, 0x18, 0x20, 0x32, 0x38, 0x40} and len(read) >= 2
    for dataset in read:
        # Image presentation, functional groups, and pixel data; the character set goes along and names nobody.
        outside = {tag for tag in dataset.keys() if tag.group not in (0x0028, 0x5200, 0x7FE0)}
        assert outside <= {0x00080005}, outside


def test_dicom_never_shows_a_patient_tag(capfd):
    whole = make_dicom(RAMP, BurnedInAnnotation="YES", PhotometricInterpretation=PATIENT)
    # Damage everywhere: after each cut, and with each run of bytes overwritten.
    assert PATIENT.encode() in whole
    broken = [whole[:length] for length in range(133, len(whole), 97)]
    broken += [whole[:start] + b"\xff" * 8 + whole[start + 8 :] for start in range(132, 900, 7)]
    failures = 0
    for content in [whole, *broken]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                load_medical_image(content)
            except ValueError as error:
                failures += 1
                assert error.__suppress_context__ or error.__context__ is None
                shown = "".join(traceback.format_exception(error))
                assert PATIENT not in str(error) and "4711" not in str(error)
                assert "Doe" not in shown.replace("PATIENT", "")
        assert not any("Doe" in str(warning.message) or "4711" in str(warning.message) for warning in caught)
    assert failures > 10
    captured = capfd.readouterr()
    assert "Doe" not in captured.out + captured.err


# ------------------------------------------------------------------------------------------------------------- NIfTI

AFFINES = {
    "RAS": np.eye(4),
    "LAS": np.diag([-1.0, 1, 1, 1]),
    "LPI": np.diag([-1.0, -1, -1, 1]),
    "permuted": np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.98, 0, 0.2, 5], [0, 1, 0, 0], [-0.2, 0, 0.98, 2], [0, 0, 0, 1.0]]),
}
VOLUME = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


@pytest.mark.parametrize("orientation", AFFINES)
@pytest.mark.parametrize("plane, axis", [("sagittal", 0), ("coronal", 1), ("axial", 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_nifti_is_shown_in_radiological_orientation(orientation, plane, axis, packed):
    content = make_nifti(VOLUME, AFFINES[orientation])
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOLUME, AFFINES[orientation])).get_fdata()
    content = gzip.compress(content) if packed else content
    for index in (None, 0, canonical.shape[axis] - 1):
        chosen = canonical.take(canonical.shape[axis] // 2 if index is None else index, axis=axis)
        shown = levels(content, plane=plane, slice_index=index, window=(0, 6))
        assert np.array_equal(shown, linear(chosen.astype(float).T[::-1, ::-1], -3, 3))


def test_nifti_defaults():
    middle = VOLUME[:, :, 3].astype(float).T[::-1, ::-1]
    for options, counted in (({}, VOLUME), ({"percentiles_of": "slice"}, VOLUME[:, :, 3])):
        low, high = np.percentile(counted, (0.5, 99.5))
        assert np.array_equal(levels(make_nifti(VOLUME), **options), linear(middle, low, high))
    # A volume one voxel thick is shown across that axis.
    thin = np.random.default_rng(1).normal(size=(5, 1, 7)).astype(np.float32)
    assert levels(make_nifti(thin)).shape == (7, 5)


def test_nifti_frames_and_scaling():
    volume = np.stack([np.full((4, 4, 4), value, dtype=np.int16) for value in (10, 20)], axis=-1)
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(2, 5)
    content = image.to_bytes()
    assert np.unique(levels(content, frame=0, window=(50, 100))).tolist() == [round(25 * 2.55)]
    assert np.unique(levels(content, frame=1, window=(50, 100))).tolist() == [round(45 * 2.55)]


def test_nifti_voxels_become_square():
    content = make_nifti(VOLUME, np.diag([1.0, 1, 3, 1]))
    assert load_medical_image(content, plane="coronal").size == (5, 21)
    assert load_medical_image(content, plane="axial").size == (5, 6)


def test_nifti_2_and_rgb():
    content = nibabel.Nifti2Image(VOLUME, np.eye(4)).to_bytes()
    assert np.array_equal(levels(content), levels(make_nifti(VOLUME)))
    colors = np.zeros((4, 5, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colors["G"] = 9
    assert np.unique(levels(make_nifti(colors)).reshape(-1, 3), axis=0).tolist() == [[0, 9, 0]]


# --------------------------------------------------------------------------------------------- images and arrays


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_files_are_windowed(kind):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40), dtype=np.uint16)
    low, high = np.percentile(values, (0.5, 99.5))
    content = file_of(Image.fromarray(values), kind)
    assert np.array_equal(levels(content), linear(values.astype(float), low, high))
    assert np.array_equal(levels(content, window=(1000, 500)), linear(values.astype(float), 750, 1250))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_files_are_windowed(dtype):
    values = (np.random.default_rng(0).normal(size=(30, 40)) * 1000).astype(dtype)
    low, high = np.percentile(values, (0.5, 99.5))
    shown = levels(file_of(Image.fromarray(values), "TIFF"))
    assert np.array_equal(shown, linear(values.astype(float), low, high))
    assert np.array_equal(levels(values), shown) and np.array_equal(levels(torch.from_numpy(values)), shown)


def test_big_endian_16_bit_images():
    values = np.arange(1200, dtype=">u2").reshape(30, 40)
    image = Image.frombytes("I;16B", (40, 30), values.tobytes())
    assert np.array_equal(levels(image), levels(values.astype(np.uint16)))


def test_nan_and_infinity():
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    shown = levels(values, percentiles=(0, 100))
    assert shown[0, :3].tolist() == [0, 255, 0] and shown.max() == 255


def test_constant_and_sparse_images():
    assert np.unique(levels(np.full((9, 9), 7.0))).tolist() == [0]
    sparse = np.zeros((50, 50), dtype=np.uint16)
    sparse[3, 4] = 900
    assert levels(sparse)[3, 4] == 255 and levels(sparse).sum() == 255


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_8_bit_images_are_untouched(mode):
    image = random_image(30, 20).convert(mode)
    loaded = load_medical_image(image)
    assert loaded is image
    if mode != "CMYK":
        from_file = load_medical_image(file_of(image, "PNG"))
        assert from_file.mode == mode and from_file.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation, kind):
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(Image.fromarray(array), kind, exif=exif)
    expected = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }
    for source in (content, Image.open(io.BytesIO(content))):
        shown = levels(source)
        assert shown.shape == expected[orientation].shape
        assert np.abs(shown.astype(int) - expected[orientation]).max() < 40


def test_array_layouts():
    color = np.asarray(random_image(30, 20))
    assert np.array_equal(levels(color), color)
    assert np.array_equal(levels(color.transpose(2, 0, 1)), color)
    assert np.array_equal(levels(torch.from_numpy(color.copy()).permute(2, 0, 1)), color)
    assert np.array_equal(levels(color[..., 0]), color[..., 0])
    assert np.array_equal(levels(color[..., :1]), color[..., 0])
    assert np.array_equal(levels(color[::-1, ::-2]), color[::-1, ::-2])
    mask = color[..., 0] > 100
    assert np.array_equal(levels(mask), mask * np.uint8(255))
    values = torch.linspace(0, 1, 600).reshape(20, 30)
    assert levels(values.bfloat16()).shape == (20, 30)
    assert np.array_equal(levels(values, window=(0.5, 1)), linear(values.numpy().astype(float), 0, 1))


def test_npy_files(tmp_path):
    values = np.arange(600, dtype=np.float64).reshape(20, 30)
    np.save(tmp_path / "values.npy", values)
    assert np.array_equal(levels(tmp_path / "values.npy"), levels(values))


def test_data_urls_and_frames_of_a_tiff():
    image, other = random_image(30, 20), random_image(30, 20, seed=1)
    data = "data:image/png;base64," + base64.b64encode(file_of(image, "PNG")).decode()
    assert load_medical_image(data).tobytes() == image.tobytes()
    pages = file_of(image, "TIFF", save_all=True, append_images=[other])
    assert load_medical_image(pages).tobytes() == image.tobytes()
    assert load_medical_image(pages, frame=1).tobytes() == other.tobytes()


def test_a_window_on_8_bit_images_keeps_alpha():
    image = random_image(30, 20).convert("RGBA")
    image.putalpha(77)
    shown = levels(image, window=(128, 64))
    assert np.unique(shown[..., 3]).tolist() == [77]
    assert np.array_equal(shown[..., :3], linear(np.asarray(image)[..., :3].astype(float), 96, 160))


def test_a_window_on_a_color_dicom():
    colors = np.asarray(random_image(30, 20))
    shown = levels(make_dicom(colors), window=(128, 64))
    assert np.array_equal(shown, linear(colors.astype(float), 96, 160))
    assert np.array_equal(levels(make_dicom(colors)), colors)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    contents = make_dicom(RAMP), make_nifti(VOLUME)
    for module in ("pydicom", "nibabel.nifti1"):
        monkeypatch.setitem(sys.modules, module, None)
    for content in contents:
        with pytest.raises(ValueError, match=r"unimedvl\[medical\]"):
            load_medical_image(content)
