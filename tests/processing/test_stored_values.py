"""Numbers as files and arrays hold them: TIFF, Netpbm, NIfTI headers, masked arrays."""

import io
import struct
import sys

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image, features
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame

from tests.processing.medical_files import make_nifti
from tests.processing.png_files import png_of
from unimedvl.processing.array_images_unimedvl import ArrayImage
from unimedvl.processing.medical_formats_unimedvl import load_medical_image
from unimedvl.processing.view_unimedvl import View

VOLUME = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def levels(source, **options) -> np.ndarray:
    return np.asarray(load_medical_image(source, **options))


def windowed(values, low, high):
    return np.rint(np.clip((np.asarray(values, float) - low) / (high - low), 0, 1) * 255)


# ------------------------------------------------------------------------------------------------------ F7: TIFF


def tiff_of(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_f7_min_is_white_at_any_depth(dtype):
    values = np.arange(100, dtype=dtype).reshape(10, 10)
    straight = levels(tiff_of(values, photometric="minisblack"), window=(50, 80))
    assert np.array_equal(straight, windowed(values, 10, 90))
    assert np.array_equal(levels(tiff_of(values, photometric="miniswhite"), window=(50, 80)), 255 - straight)
    straight, inverted = (levels(tiff_of(values, photometric=kind)) for kind in ("minisblack", "miniswhite"))
    assert np.array_equal(inverted, 255 - straight)


def test_f7_integers_beyond_the_signed_ones():
    values = np.linspace(0, 2**32 - 1, 100).astype(np.uint32).reshape(10, 10)
    shown = levels(tiff_of(values)).ravel().astype(int)
    assert (np.diff(shown) >= 0).all() and (shown[0], shown[-1]) == (0, 255)
    signed = np.arange(-50, 50, dtype=np.int8).reshape(10, 10)
    assert (np.diff(levels(tiff_of(signed)).ravel().astype(int)) >= 0).all()
    # An image that somebody opened holds the same numbers.
    with Image.open(io.BytesIO(tiff_of(values))) as opened:
        assert np.array_equal(levels(opened), levels(tiff_of(values)))


def test_f7_orientation_holds_for_what_pillow_does_not_read():
    values = np.arange(12, dtype=np.float64).reshape(3, 4)
    lying = tiff_of(values, extratags=[(274, "H", 1, 6, True)])
    assert np.array_equal(levels(lying), np.rot90(levels(values), -1))


def test_f7_other_tiffs_name_what_is_missing(monkeypatch):
    complex_values = tiff_of(np.zeros((4, 5), np.complex64))
    with pytest.raises(ValueError, match="TIFF that is not read here"):
        load_medical_image(complex_values)
    with pytest.raises(ValueError, match="damaged"):
        load_medical_image(tiff_of(np.zeros((4, 5)))[:100])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"float64.*unimedvl\[medical\]"):
        load_medical_image(tiff_of(np.zeros((4, 5))))


@pytest.mark.parametrize("depth", [2, 4])
def test_f7_a_window_counts_in_the_bits_of_a_png(depth):
    values = np.arange(2**depth).reshape(1, -1)
    white = 2**depth - 1
    assert np.array_equal(levels(png_of(values, depth)), windowed(values, 0, white))
    assert np.array_equal(levels(png_of(values, depth), window=(1.5, 1)), windowed(values, 1, 2))


# ------------------------------------------------------------------------------------------------------ F8: Netpbm


@pytest.mark.parametrize("white", [100, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_f8_windows_count_in_the_numbers_of_a_netpbm_file(white, kind):
    shape = (4, 5) if kind in (2, 5) else (4, 5, 3)
    values = np.random.default_rng(kind).integers(0, white + 1, shape)
    header = b"P%d 5 4 %d\n" % (kind, white)
    if kind in (2, 3):
        content = header + b" ".join(b"%d" % number for number in values.ravel())
    else:
        content = header + values.astype(">u2" if white > 255 else "u1").tobytes()
    low, high = white // 4, white // 2
    shown = levels(content, window=((low + high) / 2, high - low))
    assert np.array_equal(shown, windowed(values, low, high))


@pytest.mark.parametrize("content", [b"P5 9 9 1023\n\0\0", b"P2 2 1 100\n3 x", b"P2 2 1 100\n3 101", b"P3 9 9 7\n1 2"])
def test_f8_a_damaged_netpbm_file(content):
    with pytest.raises(ValueError, match="damaged"):
        load_medical_image(content)


# ------------------------------------------------------------------------------------------------------- F9: NIfTI


def nifti_with(**fields) -> bytes:
    """A volume of `VOLUME` with other fields in its header."""
    content = bytearray(make_nifti(VOLUME))
    header = nibabel.Nifti1Header(bytes(content[:348]))
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return bytes(content)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["scl_slope", "scl_inter"])
def test_f9_scaling_that_is_not_finite_is_none(name, number):
    assert np.array_equal(levels(nifti_with(**{name: number})), levels(make_nifti(VOLUME)))
    doubled = nifti_with(scl_slope=2, scl_inter=number)
    assert np.array_equal(levels(doubled, window=(1, 3)), levels(make_nifti(VOLUME * 2), window=(1, 3)))


@pytest.mark.parametrize("number", [np.nan, np.inf, 0, -1])
def test_f9_an_sform_counts_whatever_pixdim_says(number):
    for place in range(1, 4):
        pixdim = np.ones(8, dtype=np.float32)
        pixdim[place] = number
        shown = load_medical_image(nifti_with(pixdim=pixdim), plane="coronal")
        assert np.array_equal(np.asarray(shown), levels(make_nifti(VOLUME), plane="coronal"))
    # Slices three times as far apart by the sform, by pixdim as wide as high.
    affine = np.diag([1.0, 1, 3, 1]).astype(np.float32)
    thick = nifti_with(srow_x=affine[0], srow_y=affine[1], srow_z=affine[2], pixdim=np.ones(8, dtype=np.float32))
    expected = load_medical_image(make_nifti(VOLUME, affine.astype(float)), plane="coronal")
    assert load_medical_image(thick, plane="coronal").size == (5, 21)
    assert np.array_equal(levels(thick, plane="coronal"), np.asarray(expected))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("row", ["srow_x", "srow_y", "srow_z"])
def test_f9_an_sform_that_is_not_finite_is_refused(row, number):
    with pytest.raises(ValueError, match="orientation"):
        load_medical_image(nifti_with(**{row: [number, 1, 0, 0]}))
    # Its slices can be seen as they lie in the file.
    assert levels(nifti_with(**{row: [number, 1, 0, 0]}), plane="axis-2").shape == (5, 6)


def test_f9_trailing_axes_of_one_are_none():
    expected = levels(make_nifti(VOLUME))
    for axes in range(4, 8):
        content = make_nifti(VOLUME.reshape(VOLUME.shape + (1,) * (axes - 3)))
        assert np.array_equal(levels(content), expected)
        assert np.array_equal(levels(content, frame=0), expected)
    slice_of_it = VOLUME[:, :, 3]
    for shape in ((5, 6, 1), (5, 6, 1, 1)):
        assert np.array_equal(levels(slice_of_it.reshape(shape)), levels(slice_of_it))
        assert np.array_equal(levels(torch.from_numpy(slice_of_it).reshape(shape)), levels(slice_of_it))


def test_f9_colors_and_complex_numbers():
    names = ["R", "G", "B", "A"]
    for count in (3, 4):
        colors = np.zeros((4, 5, 2), dtype=[(name, "u1") for name in names[:count]])
        colors["G"], colors["B"] = 9, 200
        content = bytearray(make_nifti(colors))
        # The scaling of a header does not hold for colors.
        content[112:120] = struct.pack("<2f", 2, 50)
        assert np.unique(levels(bytes(content)).reshape(-1, 3), axis=0).tolist() == [[0, 9, 200]]
    for dtype in (np.complex64, np.complex128):
        with pytest.raises(ValueError, match="complex.*float32"):
            load_medical_image(make_nifti(VOLUME.astype(dtype)))


def test_f9_voxels_begin_behind_the_header_where_no_offset_is_stated():
    assert np.array_equal(levels(nifti_with(vox_offset=0)), levels(make_nifti(VOLUME)))


def test_f9_headers_are_read_in_silence(capfd):
    load_medical_image(nifti_with(pixdim=np.full(8, -2, dtype=np.float32)))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# ----------------------------------------------------------------------------------------- F10: arrays and tensors


def test_f10_masked_elements_are_black_and_do_not_count():
    values = np.arange(100.0).reshape(10, 10)
    values[0, 0] = 1e9
    masked = np.ma.masked_greater(values, 98)
    low, high = np.percentile(np.arange(1, 99), (0.5, 99.5))
    expected = windowed(values, low, high)
    expected[0, 0] = expected[9, 9] = 0
    assert np.array_equal(levels(masked), expected)
    assert np.array_equal(levels(masked, window=(50, 20)), np.where(masked.mask, 0, windowed(values, 40, 60)))
    color = np.ma.masked_equal(np.full((4, 5, 3), 7, dtype=np.uint8), 3)
    color[1, 2] = np.ma.masked
    assert np.array_equal(levels(color), np.where(color.mask, 0, 7))
    assert np.array_equal(levels(color.transpose(2, 0, 1)), np.where(color.mask, 0, 7))
    assert np.array_equal(
        levels(np.ma.array(values > 50, mask=values > 90)), np.where(values > 90, 0, values > 50) * 255
    )
    # Without a mask it is an array like any other.
    assert np.array_equal(levels(np.ma.array(values)), levels(values))
    with pytest.raises(ValueError, match="no finite value"):
        load_medical_image(np.ma.masked_all((4, 5)))


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "g", ">i2", ">f8"]
)
def test_f10_real_numbers_of_any_type(dtype):
    values = np.arange(100).reshape(10, 10).astype(dtype)
    if dtype == "?":
        assert np.array_equal(levels(values), values * np.uint8(255))
        return
    low, high = (0, 255) if dtype == "u1" else np.percentile(np.arange(100), (0.5, 99.5))
    assert np.array_equal(levels(values), windowed(values, low, high))


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "m8[s]", "U3", "S3", "O", "i4,f8", "V4"])
def test_f10_what_is_no_real_number_is_refused(dtype):
    with pytest.raises(ValueError, match="can not be of type"):
        load_medical_image(np.zeros((4, 5), dtype=dtype))


TENSORS = {
    "sparse": torch.eye(5).to_sparse(),
    "meta": torch.zeros(4, 5, device="meta"),
    "complex": torch.zeros(4, 5, dtype=torch.complex64),
    "quantized": torch.quantize_per_tensor(torch.zeros(4, 5), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("name", TENSORS)
def test_f10_tensors_without_numbers_are_refused(name):
    with pytest.raises(ValueError, match="can not be of type"):
        load_medical_image(TENSORS[name])


def test_f10_tensors_of_small_floats():
    values = torch.linspace(0, 1, 20).reshape(4, 5)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        assert np.array_equal(
            levels(values.to(dtype).requires_grad_(dtype != torch.float8_e4m3fn)), levels(values.to(dtype).float())
        )
    assert np.array_equal(levels(values - 1), levels(-(1 - values)))


def test_the_white_of_an_array_is_its_largest_level():
    assert np.asarray(ArrayImage(np.array([[0, 1, 2]]), white=2).image(View())).tolist() == [[0, 128, 255]]


# ------------------------------------------------------------------------------------------------------ JPEG 2000


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")
@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_jp2klossless.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_a_window_counts_in_the_bits_of_a_jpeg_2000(name):
    data = pydicom.dcmread(get_testdata_file(name, download=False))
    codestream = get_frame(data.PixelData, 0, number_of_frames=1)
    values = data.pixel_array.astype(np.int32)
    # The codestream of this file has 13 bits without a sign, which only the data set gives it.
    values = values & 0x1FFF if name == "J2K_pixelrep_mismatch.dcm" else values
    low, high = (int(end) for end in np.percentile(values, (5, 95)))
    assert np.array_equal(levels(codestream, window=((low + high) / 2, high - low)), windowed(values, low, high))


def test_f7_a_damaged_tiff_may_state_two_widths():
    content = bytearray(tiff_of(np.zeros((6, 7, 3), np.float32), photometric="rgb"))
    directory = struct.unpack_from("<I", content, 4)[0]
    # The count of the first entry, which is the width.
    struct.pack_into("<I", content, directory + 2 + 4, 2)
    with pytest.raises(ValueError):
        load_medical_image(bytes(content))
