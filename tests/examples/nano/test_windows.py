"""Other windows of an image: the units of a slice stay what they are, and nothing is shown that was not stored."""

import numpy
import pytest

from examples.nano.windows import CT_WINDOWS, GAMMAS, can_show, views_of, windowed

LUNG, BODY = (-1000, 400), (-160, 240)


def slice_of(units, stored):
    share = (numpy.asarray(units, dtype=float) - stored[0]) / (stored[1] - stored[0])
    return numpy.round(255 * share.clip(0, 1)).astype(numpy.uint8)


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        (LUNG, {"soft tissue window", "lung window"}),
        (BODY, {"liver window"}),
        ((-450, 1050), {"soft tissue window"}),
    ],
)
def test_a_slice_is_shown_in_every_window_that_its_levels_hold(stored, names):
    units = numpy.linspace(-1200, 1200, 400).reshape(20, 20)
    found = dict(views_of(slice_of(units, stored), "CT", stored, 1))
    assert set(found) == names
    for name, pixels in found.items():
        window = CT_WINDOWS[name.removesuffix(" window")]
        inside = (units > max(stored[0], window[0])) & (units < min(stored[1], window[1]))
        # Within the rounding of the stored levels and of the shown ones.
        step = 0.5 * (stored[1] - stored[0]) / (window[1] - window[0]) + 0.5
        exact = 255 * (units - window[0]) / (window[1] - window[0])
        assert numpy.abs(pixels - exact)[inside].max() <= step + 1e-6


def test_a_window_beyond_the_stored_units_is_not_shown():
    assert not can_show(BODY, CT_WINDOWS["lung"]) and not can_show(BODY, CT_WINDOWS["soft tissue"])
    assert not can_show(LUNG, CT_WINDOWS["liver"]), "29 levels"
    assert can_show(LUNG, CT_WINDOWS["lung"]), "there is nothing below air"


def test_air_is_black_in_a_soft_tissue_window_and_gray_in_a_lung_window():
    air = slice_of([[-1000]], LUNG)
    assert windowed(air, LUNG, CT_WINDOWS["soft tissue"]).item() == 0
    assert 50 < windowed(air, LUNG, CT_WINDOWS["lung"]).item() < 70


def test_gray_images_of_unknown_units_become_brighter_darker_and_stretched():
    pixels = numpy.random.default_rng(0).integers(40, 160, (16, 16, 3), dtype=numpy.uint8)
    found = dict(views_of(pixels, "OCT", None, 5))
    assert set(found) == {*GAMMAS, "stretched"}
    assert found["dim"].mean() < pixels.mean() < found["bright"].mean()
    assert found["stretched"].min() == 0 and found["stretched"].max() == 255
    order = numpy.argsort(pixels, axis=None, kind="stable")
    for view in found.values():
        assert view.shape == pixels.shape and view.dtype == numpy.uint8
        assert (numpy.diff(view.ravel()[order].astype(int)) >= 0).all()


def test_a_part_of_the_images_of_common_modalities_has_one_view_and_color_has_none():
    pixels = numpy.zeros((4, 4), dtype=numpy.uint8)
    views = [[name for name, _ in views_of(pixels, "MRI", None, number)] for number in range(90)]
    assert {len(names) for names in views} == {0, 1} and sum(map(len, views)) == 30
    assert {name for names in views for name in names} == {*GAMMAS, "stretched"}
    assert list(views_of(pixels, "HIS", None, 0)) == []
