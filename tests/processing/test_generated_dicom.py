"""Random DICOM files against DCMTK and pydicom, which answer independently."""

import io
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, convert_color_space
from pydicom.uid import ExplicitVRLittleEndian

from tests.processing.generated_dicom import (
    PACKINGS,
    SYNTAXES,
    Scan,
    color_scans,
    dcmtk_levels,
    encoded,
    gray_scans,
)
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

pytestmark = pytest.mark.medium
needs_dcmtk = pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="DCMTK is not installed: apt install dcmtk")
EXAMPLES = [200, pytest.param(2000, marks=pytest.mark.slow)]
ALL_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
WRITTEN = st.tuples(st.sampled_from(SYNTAXES), st.sampled_from(PACKINGS))


def levels(content: bytes) -> np.ndarray:
    return np.asarray(load_medical_image(content))


def examine(
    count: int, record: Callable[[str, object], None], limit: float, check: Callable[..., float], *strategies: Any
) -> None:
    """Run a check, which returns a difference, on random examples; the largest difference is reported."""
    worst = [0.0]

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.tuples(*strategies))
    def examined(arguments: tuple[Any, ...]) -> None:
        difference = float(check(*arguments))
        worst[0] = max(worst[0], difference)
        target(difference)
        assert difference <= limit

    examined()
    record("maximum_difference", worst[0])
    print(f"maximum difference of {count} examples: {worst[0]:g} (limit {limit:g})")


def difference(shown: np.ndarray, expected: np.ndarray) -> float:
    assert shown.shape == expected.shape
    return float(np.abs(shown.astype(float) - expected.astype(float)).max())


@needs_dcmtk
@pytest.mark.parametrize("count", EXAMPLES)
def test_gray_files_are_shown_as_by_dcmtk(count, tmp_path, record_property):
    # F1, F2, F3: lookup tables, windows and bits in every syntax and packing. DCMTK truncates where we round.
    def check(scan: Scan, written: tuple[str, str]) -> float:
        content = encoded(scan, *written)
        option = "+Wl" if scan.voi is not None else "+Wi"
        return difference(levels(content), dcmtk_levels(content, tmp_path, option, "1"))

    examine(count, record_property, 1, check, gray_scans(("LINEAR", "SIGMOID"), integers_only=True), WRITTEN)


@needs_dcmtk
@pytest.mark.parametrize("count", EXAMPLES)
def test_colors_are_shown_as_by_dcmtk(count, tmp_path, record_property):
    def check(scan: Scan, written: tuple[str, str]) -> float:
        content = encoded(scan, *written)
        return difference(levels(content), dcmtk_levels(content, tmp_path))

    spaces = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422")
    examine(count, record_property, 2, check, color_scans(spaces), WRITTEN)


@pytest.mark.parametrize("count", EXAMPLES)
def test_what_a_file_says_does_not_depend_on_how_it_is_written(count, record_property):
    def check(scan: Scan, written: tuple[str, str]) -> float:
        return difference(levels(encoded(scan, *written)), levels(encoded(scan, ExplicitVRLittleEndian, "numbers")))

    scans = st.one_of(gray_scans(ALL_FUNCTIONS), color_scans(("RGB", "PALETTE COLOR")))
    examine(count, record_property, 0, check, scans, WRITTEN)


@pytest.mark.parametrize("count", EXAMPLES)
def test_windows_and_colors_are_those_of_pydicom(count, record_property):
    # pydicom is right about rescaled windows, about the lowest bits, and about palettes of little-endian words.
    def check(scan: Scan) -> float:
        dataset = pydicom.dcmread(io.BytesIO(encoded(scan, ExplicitVRLittleEndian, "words")))
        shown = levels(encoded(scan, ExplicitVRLittleEndian, "words"))
        if scan.palettes:
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = scan.allocated, scan.stored, scan.high
            colors = apply_color_lut(dataset.pixel_array, dataset)
            return difference(shown, colors >> 8 if colors.dtype == np.uint16 else colors)
        if scan.color_space.startswith("YBR"):
            colors = convert_color_space(dataset.pixel_array, scan.color_space, "RGB", per_frame=True)
            return difference(shown, colors)
        low, high = scan.units()
        bits = scan.stored
        modeled = apply_modality_lut(scan.values(), dataset)
        dataset.PhotometricInterpretation = "MONOCHROME2"
        windowed = apply_windowing(modeled.astype(float), dataset)
        slope, intercept = scan.rescale or (1, 0)
        start = (-(2 ** (bits - 1)) if scan.signed else 0) * slope + intercept
        shares = (windowed - start) / ((2**bits - 1) * slope)
        expected = np.rint((shares * 255).round(9))
        return difference(shown, 255 - expected if scan.color_space == "MONOCHROME1" else expected)

    gray = gray_scans(ALL_FUNCTIONS).filter(
        lambda scan: (
            scan.window is not None and scan.modality is None and (scan.rescale is None or scan.rescale[0] > 0)
        )
    )
    palettes = color_scans(("PALETTE COLOR",)).filter(lambda scan: scan.palettes[0].bits == 16)
    examine(count, record_property, 0, check, st.one_of(gray, palettes))
