"""Solvers and caches of the flow: against fields whose solution is known, and by counting what the model is asked."""

import math

import pytest
import torch

from unimedvl.modeling_unimedvl.flow_solvers_unimedvl import (
    FlowSolver,
    FlowStep,
    count_evaluations,
    plan_updates,
)
from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings, flow_schedule

IMAGE = {"generation_mode": "image", "show_progress": False, "vae_sample_mode": "mode"}


def settings(
    steps: int = 24, interval: tuple[float, float] = (0.0, 1.0), shift: float = 3.0, **changes
) -> FlowSettings:
    values = {"guidance_scale": 4.0, "image_guidance_scale": 1.0, "cfg_renorm_type": "global", "cfg_renorm_min": 0.0}
    return FlowSettings(num_inference_steps=steps, cfg_interval=interval, timestep_shift=shift, **values, **changes)


def integrate(chosen: FlowSettings, evaluate, start: torch.Tensor) -> torch.Tensor:
    solver, state = FlowSolver(chosen, evaluate), start
    for update in plan_updates(chosen, flow_schedule(chosen.num_inference_steps, chosen.timestep_shift)):
        state, _ = solver.advance(state, update)
    return state


def field(velocity):
    """A field with one branch that depends on state and time only, in float64."""

    def evaluate(state, time, guided, directions):
        value = velocity(state, time)
        return FlowStep(value, {"cond": value})

    return evaluate


START = torch.linspace(-1, 1, 6, dtype=torch.float64).view(1, 2, 3)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_extrapolation_is_exact_for_polynomials_of_its_order_in_time(order):
    polynomial = field(
        lambda state, time: torch.full_like(START, 0.3 - (order > 0) * time + (order > 1) * 5 * time**2)
    )
    exact = integrate(settings(), polynomial, START)
    cached = integrate(settings(velocity_cache_interval=5, velocity_cache_order=order), polynomial, START)
    assert torch.allclose(cached, exact, atol=1e-12)
    one_more = field(lambda state, time: torch.full_like(START, time ** (order + 1)))
    wrong = integrate(settings(velocity_cache_interval=5, velocity_cache_order=order), one_more, START)
    assert not torch.allclose(wrong, integrate(settings(), one_more, START), atol=1e-5)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("adams_bashforth", 2), ("midpoint", 2)])
def test_halving_the_steps_divides_the_error_by_two_to_the_order(solver, order):
    """dx/dt = x - t has x(0) = 1 + (x(1) - 2) / e."""
    growth = field(lambda state, time: state - time)
    truth = 1 + (START - 2) / math.e

    def error(steps: int) -> float:
        return (integrate(settings(steps, shift=1.0, solver=solver), growth, START) - truth).abs().max().item()

    assert error(128) == pytest.approx(error(256) * 2**order, rel=0.1)


@pytest.mark.parametrize("solver", ["euler", "adams_bashforth"])
def test_nothing_is_carried_over_where_guidance_is_switched(solver):
    """A field that jumps there and is constant elsewhere is followed exactly, as plain Euler follows it."""
    jump = field(lambda state, time: torch.full_like(START, 9.0 if time > 0.5 else -3.0))
    cached = {"velocity_cache_interval": 4, "velocity_cache_order": 2} if solver == "euler" else {}
    found = integrate(settings(interval=(0.5, 1.0), solver=solver, **cached), jump, START)
    assert torch.allclose(found, integrate(settings(interval=(0.5, 1.0)), jump, START), atol=1e-12)


def test_directions_of_guidance_are_handed_back_and_nothing_else():
    """Where branches are not evaluated, the solver gives main minus branch of the last time they were."""
    asked: list[tuple[bool, dict | None]] = []

    def evaluate(state, time, guided, directions):
        asked.append((guided, directions))
        main = torch.full_like(START, time)
        return FlowStep(main, {"cond": main} if directions is not None else {"cond": main, "text": 3 * main})

    chosen = settings(8, interval=(0.5, 1.0), shift=1.0, guidance_cache_interval=3)
    integrate(chosen, evaluate, START)
    assert [guided for guided, _ in asked] == [True] * 4 + [False] * 4
    assert [directions is None for _, directions in asked] == [True, False, False, True] + [True] * 4
    times = flow_schedule(8, 1.0).tolist()
    for _, directions in asked[1:3]:
        assert directions is not None and directions.keys() == {"text"}
        assert torch.allclose(directions["text"], torch.full_like(START, -2 * times[0]))


CASES = {
    "exact": {},
    "cache": {"velocity_cache_interval": 3},
    "reuse": {"velocity_cache_interval": 2, "velocity_cache_order": 0},
    "guidance": {"guidance_cache_interval": 4},
    "both": {"velocity_cache_interval": 2, "guidance_cache_interval": 2},
    "midpoint": {"solver": "midpoint"},
    "midpoint and guidance": {"solver": "midpoint", "guidance_cache_interval": 2},
    "adams_bashforth": {"solver": "adams_bashforth"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("image_scale", [1.0, 2.0])
def test_the_model_is_asked_as_often_as_planned(model, edit, monkeypatch, case, image_scale):
    rows: list[int] = []
    original = model.model.predict_velocity

    def counted(state, time, blocks):
        rows.append(blocks.rows)
        return original(state, time, blocks)

    monkeypatch.setattr(model.model, "predict_velocity", counted)
    options = {"num_inference_steps": 12, "cfg_interval": (0.4, 1.0), "timestep_shift": 3.0, "guidance_scale": 4.0}
    model.generate(**edit, **IMAGE, **options, image_guidance_scale=image_scale, **CASES[case])
    chosen = settings(12, (0.4, 1.0), **CASES[case])
    assert sum(rows) == count_evaluations(chosen, flow_schedule(12, 3.0), 2 if image_scale == 1.0 else 3)
    if case == "exact":
        assert sum(rows) == 12 + 10 * (1 if image_scale == 1.0 else 2), "ten of the twelve times are above 0.4"


def test_counts_of_the_reference():
    schedule = flow_schedule(49, 3.0)
    assert count_evaluations(settings(49, (0.4, 1.0)), schedule, 2) == 90
    assert count_evaluations(settings(49, (0.4, 1.0)), schedule, 3) == 131
    assert count_evaluations(settings(49, (0.0, 1.0)), schedule, 3) == 147


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"exact"}))
def test_approximations_approach_the_exact_image(model, edit, case):
    """With many small updates every one of them ends close to the exact result, and not at it."""
    options = {"num_inference_steps": 40, "guidance_scale": 3.0, "image_guidance_scale": 1.5, "timestep_shift": 1.0}
    options |= {"cfg_interval": (0.0, 1.0), "cfg_renorm_type": "channel", "return_dict_in_generate": True}
    (exact,) = model.generate(**edit, **IMAGE, **options).latents
    (found,) = model.generate(**edit, **IMAGE, **options, **CASES[case]).latents
    moved = (exact - edit["latents"][0]).norm()
    assert 0 < (found - exact).norm() < 0.05 * moved


def test_the_callback_learns_what_was_computed(model, edit):
    seen: list[dict[str, bool]] = []

    def collect(_, step, time, values):
        seen.append({name: value is not None for name, value in values.items()})

    options = {"num_inference_steps": 5, "cfg_interval": (0.0, 1.0), "guidance_scale": 4.0}
    cached = {"velocity_cache_interval": 2, "velocity_cache_order": 0, "guidance_cache_interval": 2}
    model.generate(**edit, **IMAGE, **options, **cached, callback_on_step_end=collect)
    assert [values["velocity_cond"] for values in seen] == [True, False, True, False, True]
    assert [values["velocity_text"] for values in seen] == [True, False, False, False, True]
    assert all(values["velocity"] and values["latents"] for values in seen)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"velocity_cache_interval": 0}, "velocity_cache_interval"),
        ({"velocity_cache_interval": 1.5}, "velocity_cache_interval"),
        ({"velocity_cache_order": 3}, "velocity_cache_order"),
        ({"guidance_cache_interval": True}, "guidance_cache_interval"),
        ({"solver": "heun"}, "solver"),
        ({"solver": "midpoint", "velocity_cache_interval": 2}, "solver"),
    ],
)
def test_settings_out_of_range_are_named(model, edit, changes, named):
    with pytest.raises(ValueError, match=named):
        model.generate(**edit, **IMAGE, **changes)
