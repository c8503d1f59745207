"""Random NIfTI volumes, TIFF and Netpbm files against nibabel, tifffile and their own numbers."""

import io
import warnings
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import strategies as st
from PIL import Image

from tests.processing.test_generated_dicom import EXAMPLES, difference, examine
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

pytestmark = pytest.mark.medium
SEEDS = st.integers(0, 2**20)
INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")


def shown_linearly(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """What a window of LINEAR_EXACT makes of values, 0 for NaN."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        shares = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return np.rint(np.nan_to_num(shares) * 255).astype(np.uint8)


def numbers(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Over the whole range of an integer type, or normal floats of any scale."""
    kind = np.dtype(dtype)
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        # Two steps: no generator covers all of 64 bits.
        values = generator.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
        return values if generator.random() < 0.5 else (values // 7).astype(kind)
    scale = 10.0 ** generator.integers(-3, 4)
    return (generator.normal(size=shape) * scale).astype(kind)


def counted(values: np.ndarray) -> tuple[float, float]:
    """Percentiles as they are documented, in float64; whole range where they coincide."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = np.percentile(finite, (0.5, 99.5))
    return (finite.min(), finite.max()) if low == high else (low, high)


# ------------------------------------------------------------------------------------------------------------ NIfTI


@st.composite
def volumes(draw) -> dict[str, Any]:
    return {
        "seed": draw(SEEDS),
        "dtype": draw(st.sampled_from(("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"))),
        "order": draw(st.sampled_from("<>")),
        "axes": draw(st.integers(2, 5)),
        "scaling": draw(st.sampled_from([(1, 0), (0.5, -7), (-2, 3), (0, 5), (np.nan, 2), (3, np.nan), (2, np.inf)])),
        "codes": draw(st.sampled_from([(1, 0), (0, 1), (2, 1), (0, 0)])),
        "pixdim": draw(st.sampled_from(["agrees", "differs"])),
        "holes": draw(st.booleans()),
        "plane": draw(st.sampled_from(["axial", "coronal", "sagittal"])),
        "kind": draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image])),
    }


def turned_affine(generator: np.random.Generator) -> np.ndarray:
    """Voxel axes along the patient's in any order and direction, a little oblique, of any spacing."""
    affine = np.eye(4)
    spacing = generator.choice([0.7, 1.0, 1.0, 2.5], size=3)
    directions = np.eye(3)[generator.permutation(3)] * generator.choice([-1, 1], size=3)
    angle = generator.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    # A quaternion holds rotations; the last axis is flipped by a factor of its own.
    affine[:3, :3] = turn @ directions * spacing
    affine[:3, 3] = generator.normal(size=3) * 50
    return affine


def volume_of(case: dict[str, Any]) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file, its values after scaling, and the affine that nibabel takes for it."""
    generator = np.random.default_rng(case["seed"])
    sides = [int(side) for side in generator.integers(2, 6, 3)]
    shape = tuple(sides[: case["axes"]]) + (1,) * (case["axes"] - 3)
    values = numbers(generator, case["dtype"], shape)
    if case["holes"] and values.dtype.kind == "f":
        values.flat[0], values.flat[1] = np.nan, np.inf
    header = case["kind"].header_class(endianness=case["order"])
    header.set_data_dtype(values.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = case["kind"](values, None, header)
        affine = turned_affine(generator)
        sform, qform = case["codes"]
        image.set_qform(affine, qform)
        image.set_sform(affine, sform)
        content = bytearray(image.to_bytes())
    # nibabel writes no header that is not sound: the rest is set by hand.
    head = case["kind"].header_class(bytes(content[: len(header.binaryblock)]))
    head["scl_slope"], head["scl_inter"] = case["scaling"]
    if case["pixdim"] == "differs" and sform:
        head["pixdim"][1:4] = head["pixdim"][1:4] * 3
    content[: len(head.binaryblock)] = head.binaryblock
    slope, intercept = case["scaling"]
    if slope and np.isfinite(slope):
        values = values.astype(np.float64) * slope + (intercept if np.isfinite(intercept) else 0)
    return bytes(content), values.reshape((*shape, 1)[:3]), head.get_best_affine()


@pytest.mark.parametrize("count", EXAMPLES)
def test_volumes_are_shown_as_nibabel_turns_them(count, record_property):
    # F9: numbers that are not finite, byte orders, trailing axes of one, and a pixdim that disagrees with the sform.
    def check(case: dict[str, Any]) -> float:
        content, values, affine = volume_of(case)
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.astype(np.float64), affine))
        turned = np.asarray(canonical.dataobj)
        axis = ("sagittal", "coronal", "axial").index(case["plane"])
        index = turned.shape[axis] // 2
        if not np.isfinite(turned.take(index, axis)).any():
            with pytest.raises(ValueError, match="no finite value"):
                load_medical_image(content, plane=case["plane"], slice_index=index)
            return 0.0
        low, high = counted(values)
        expected = shown_linearly(turned.take(index, axis).T[::-1, ::-1], low, high)
        spacing = np.delete(nibabel.affines.voxel_sizes(canonical.affine), axis)
        image = Image.fromarray(np.ascontiguousarray(expected))
        if spacing.max() / spacing.min() >= 1.01:
            size = [round(side * step / spacing.min()) for side, step in zip(image.size, spacing, strict=True)]
            image = image.resize(tuple(size), Image.Resampling.BICUBIC)
        shown = load_medical_image(content, plane=case["plane"], slice_index=index)
        return difference(np.asarray(shown), np.asarray(image))

    # Half of a level may round either way where float32 voxels are counted in float32.
    examine(count, record_property, 1, check, volumes())


# ------------------------------------------------------------------------------------------------------------- TIFF


@st.composite
def tiffs(draw) -> dict[str, Any]:
    return {
        "seed": draw(SEEDS),
        "dtype": draw(st.sampled_from((*INTEGERS, "f2", "f4", "f8"))),
        "photometric": draw(st.sampled_from(["minisblack", "miniswhite"])),
        "byteorder": draw(st.sampled_from("<>")),
        "compression": draw(st.sampled_from([None, "zlib"])),
        "pages": draw(st.integers(1, 3)),
        "bigtiff": draw(st.booleans()),
        "window": draw(st.booleans()),
    }


@pytest.mark.parametrize("count", EXAMPLES)
def test_tiffs_show_the_values_that_tifffile_reads(count, record_property):
    # F7: every type, and 0 as white.
    def check(case: dict[str, Any]) -> float:
        generator = np.random.default_rng(case["seed"])
        shape = tuple(int(side) for side in generator.integers(2, 9, 2))
        pages = numbers(generator, case["dtype"], (case["pages"], *shape))
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=case["byteorder"], bigtiff=case["bigtiff"]) as writer:
            for page in pages:
                writer.write(page, photometric=case["photometric"], compression=case["compression"], contiguous=False)
        stored = np.stack([page.asarray() for page in tifffile.TiffFile(io.BytesIO(file.getvalue())).pages])
        index = int(generator.integers(case["pages"]))
        low, high = counted(stored)
        options: dict[str, Any] = {"frame": index}
        if case["window"]:
            low, high = float(stored.mean(dtype=np.float64)), float(stored.max())
            high = high if high > low else low + 1
            options["window"] = ((low + high) / 2, high - low)
            low, high = (
                options["window"][0] - options["window"][1] / 2,
                options["window"][0] + options["window"][1] / 2,
            )
        expected = shown_linearly(stored[index], low, high)
        if case["dtype"] == "u1" and not case["window"]:
            expected = stored[index]
        if case["photometric"] == "miniswhite":
            expected = 255 - expected
        return difference(np.asarray(load_medical_image(file.getvalue(), **options)), expected)

    examine(count, record_property, 1, check, tiffs())


# ---------------------------------------------------------------------------------------------------------- Netpbm


@st.composite
def netpbms(draw) -> dict[str, Any]:
    return {
        "seed": draw(SEEDS),
        "kind": draw(st.sampled_from([2, 3, 5, 6])),
        "white": draw(st.one_of(st.sampled_from([1, 100, 254, 255, 256, 1023, 4095, 65535]), st.integers(1, 65535))),
        "comment": draw(st.booleans()),
        "window": draw(st.booleans()),
    }


def netpbm_of(case: dict[str, Any]) -> tuple[bytes, np.ndarray]:
    generator = np.random.default_rng(case["seed"])
    shape = tuple(int(side) for side in generator.integers(1, 9, 2)) + ((3,) if case["kind"] in (3, 6) else ())
    values = generator.integers(0, case["white"] + 1, shape)
    comment = b"# 7 8 9 of a scanner\n" if case["comment"] else b""
    header = b"P%d\n%s%d %d\n%d\n" % (case["kind"], comment, shape[1], shape[0], case["white"])
    if case["kind"] in (2, 3):
        return header + b"\n".join(
            b" ".join(b"%d" % number for number in row) for row in values.reshape(shape[0], -1)
        ), values
    return header + values.astype(">u2" if case["white"] > 255 else "u1").tobytes(), values


@pytest.mark.parametrize("count", EXAMPLES)
def test_netpbm_files_show_the_values_that_they_state(count, record_property):
    # F8: a window counts in the file's numbers, whatever its largest is.
    def check(case: dict[str, Any]) -> float:
        content, values = netpbm_of(case)
        white = case["white"]
        if case["window"]:
            shown = load_medical_image(content, window=(white / 3, white / 2))
            low = white / 3 - white / 4
            return difference(np.asarray(shown), shown_linearly(values, low, low + white / 2))
        deep = values.ndim == 2 and white > 255
        low, high = counted(values) if deep else (0, white)
        return difference(np.asarray(load_medical_image(content)), shown_linearly(values, low, high))

    examine(count, record_property, 1, check, netpbms())
