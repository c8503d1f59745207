"""Guidance against the reference's formula, worked by hand and written out in NumPy."""

import numpy
import pytest
import torch

from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings, guided_velocity

IMAGE = {"generation_mode": "image", "show_progress": False}


def settings(text: float, image: float, renorm: str, least: float = 0.0) -> FlowSettings:
    return FlowSettings(4, text, image, (0.0, 1.0), renorm, least, 1.0)


def restated(plain, without_text, without_image, text: float, image: float, renorm: str, least: float = 0.0):
    """BAGEL's guidance of one image (T, L): a norm over all its values ("global") or over each token's."""
    plain, without_text, without_image = (
        numpy.asarray(value, dtype=numpy.float64) for value in (plain, without_text, without_image)
    )

    def norm(value):
        squares = (value**2).sum(axis=-1, keepdims=True)
        return numpy.sqrt(squares.sum() if renorm == "global" else squares)

    def shortened(value):
        return value * numpy.minimum(1, numpy.maximum(least, norm(plain) / (norm(value) + 1e-8)))

    guided = without_text + text * (plain - without_text)
    if renorm == "text_channel":
        guided = shortened(guided)
        return without_image + image * (guided - without_image) if image > 1 else guided
    if image > 1:
        guided = without_image + image * (guided - without_image)
    return shortened(guided)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
@pytest.mark.parametrize(
    ("without_text", "least", "expected"),
    [
        # 2 * (3, 4) - (0, 4) = (6, 4) is longer than (3, 4): shortened to length 5.
        ((0.0, 4.0), 0.0, (30 / 52**0.5, 20 / 52**0.5)),
        # 2 * (3, 4) - (6, 4) = (0, 4) is shorter: it is left as it is, never stretched to length 5.
        ((6.0, 4.0), 0.0, (0.0, 4.0)),
        # 2 * (3, 4) - (-24, -32) = (30, 40) may keep half of its length, though a tenth would do.
        ((-24.0, -32.0), 0.5, (15.0, 20.0)),
    ],
)
def test_guided_velocity_by_hand(renorm, without_text, least, expected):
    plain = torch.tensor([[[3.0, 4.0]]])
    found = guided_velocity(plain, torch.tensor([[without_text]]), plain, settings(2.0, 1.0, renorm, least))
    assert found[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("image", [1.0, 2.0])
def test_guided_velocity_is_the_reference_formula_image_by_image(renorm, image):
    """Padding tokens and other images of the batch count for nothing."""
    generator = torch.Generator().manual_seed(0)
    plain, text, given = (torch.randn(3, 7, 5, generator=generator) for _ in range(3))
    # The branches of the second image make its guided velocity shorter than the plain one.
    text[1], given[1] = 1.2 * plain[1], 1.1 * plain[1]
    valid = torch.arange(7) < torch.tensor([[7], [5], [2]])
    found = guided_velocity(plain, text, given, settings(3.0, image, renorm), valid)
    for row, length in enumerate((7, 5, 2)):
        branches = (value[row, :length] for value in (plain, text, given))
        expected = restated(*branches, 3.0, image, renorm)
        assert found[row, :length].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_every_step_combines_its_branches_by_the_reference_formula(model, edit, renorm):
    steps = []
    options = {"guidance_scale": 4.0, "image_guidance_scale": 2.0, "cfg_renorm_type": renorm}
    model.generate(
        **edit,
        **IMAGE,
        **options,
        num_inference_steps=4,
        cfg_interval=(0.0, 1.0),
        callback_on_step_end=lambda _, step, time, values: steps.append(values),
    )
    shorter = 0
    for values in steps:
        plain, text, given, found = (
            values[name][0].numpy() for name in ("velocity_cond", "velocity_text", "velocity_image", "velocity")
        )
        assert found == pytest.approx(restated(plain, text, given, 4.0, 2.0, renorm), abs=1e-5)
        guided = restated(plain, text, given, 4.0, 1.0, renorm, least=1.0)
        shorter += int((numpy.linalg.norm(guided, axis=-1) < numpy.linalg.norm(plain, axis=-1)).sum())
    assert len(steps) == 4 and shorter > 0, "no token shows whether a short velocity may grow"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        # The times are 1, 0.8, 0.6, 0.4 and 0.2: a step is guided where low < time <= high.
        ((0.4, 0.8), [False, True, True, False, False]),
        ((0.2, 1.0), [True, True, True, True, False]),
        ((0.6, 0.6), [False, False, False, False, False]),
        ((0.0, 0.4), [False, False, False, True, True]),
    ],
)
def test_only_steps_above_the_lower_and_up_to_the_upper_bound_are_guided(model, edit, interval, expected):
    guided = []

    def look(_, step, time, values):
        moved = not torch.equal(values["velocity"][0], values["velocity_cond"][0])
        assert (values["velocity_text"] is not None) == moved
        guided.append(moved)

    options = {"num_inference_steps": 5, "timestep_shift": 1.0, "cfg_interval": interval}
    model.generate(**edit, **IMAGE, **options, guidance_scale=4.0, callback_on_step_end=look)
    assert guided == expected
