"""Solvers of the flow: which updates evaluate the model, and how a state moves.

By default `FlowSettings` asks for the reference's own rule: Euler, with every branch evaluated at every update. The
others are approximations. What an update evaluates follows from the settings and the schedule alone, never from values
on the device, so that nothing is synchronized and the number of evaluations is known before a run.

Shape legend: R images, T latent tokens, L latent token dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .flow_unimedvl import FlowSettings


@dataclass(frozen=True)
class FlowStep:
    """One evaluation of the velocity, all (R, T, L).

    Attributes:
        velocity: what the state moves along.
        branches: the velocities that it was combined from, by name: "cond" and, where they were computed, "text"
            (without the last text) and "image" (without images). Empty where the velocity was extrapolated.
    """

    velocity: torch.Tensor
    branches: dict[str, torch.Tensor]


# `f(state_RTL, time, guided, directions) -> FlowStep`, see `FlowSampler.step`.
Evaluate = Callable[[torch.Tensor, float, bool, Mapping[str, torch.Tensor] | None], FlowStep]


@dataclass(frozen=True)
class Update:
    """What one update does.

    Attributes:
        time, next_time: flow times where it begins and ends.
        guided: whether guidance acts.
        restarts: whether guidance was switched on or off since the update before. What was kept is then of another
            velocity field and is dropped.
        evaluates: whether the model is evaluated; else the velocity is extrapolated.
        evaluates_guidance: whether the branches of guidance are evaluated too; else their directions are reused.
    """

    time: float
    next_time: float
    guided: bool
    restarts: bool
    evaluates: bool
    evaluates_guidance: bool

    @property
    def length(self) -> float:
        return self.time - self.next_time


def plan_updates(settings: FlowSettings, schedule: torch.Tensor) -> list[Update]:
    """The updates between the times of a schedule, float32 (updates + 1,).

    Every run of updates with the same guidance begins with as many evaluations as the extrapolation needs; after them
    every `velocity_cache_interval`-th update evaluates the model, and every `guidance_cache_interval`-th evaluation
    the branches of guidance.
    """
    times = schedule.tolist()
    warmup, interval = settings.velocity_cache_order, settings.velocity_cache_interval
    updates: list[Update] = []
    number = evaluations = 0
    for time, next_time in zip(times[:-1], times[1:], strict=True):
        guided = settings.guides(time)
        restarts = not updates or updates[-1].guided != guided
        if restarts:
            number = evaluations = 0
        evaluates = number <= warmup or (number - warmup) % interval == 0
        evaluates_guidance = guided and evaluates and evaluations % settings.guidance_cache_interval == 0
        updates.append(Update(time, next_time, guided, restarts, evaluates, evaluates_guidance))
        number += 1
        evaluations += evaluates
    return updates


def count_evaluations(settings: FlowSettings, schedule: torch.Tensor, branches: int) -> int:
    """Evaluations of the velocity, each of one branch of one image (NFE), that a whole image takes.

    Args:
        schedule: see `plan_updates`.
        branches: guidance branches of a guided update, see `Conditions.branches`.
    """
    each = 2 if settings.solver == "midpoint" else 1
    updates = plan_updates(settings, schedule)
    return each * sum(update.evaluates * (branches if update.evaluates_guidance else 1) for update in updates)


def lagrange_weights(nodes: list[float], time: float) -> list[float]:
    """Weights of values at `nodes` whose sum is the value at `time` of the polynomial through them."""
    weights = []
    for node in nodes:
        weight = 1.0
        for other in nodes:
            if other != node:
                weight *= (time - other) / (node - other)
        weights.append(weight)
    return weights


class FlowSolver:
    """Moves a state from noise to data, one update after another.

    Args:
        settings: its `solver`, `velocity_cache_order` and the intervals of `plan_updates`.
        evaluate: the velocity of a state at a time, guided or not, with given guidance directions or its own.
    """

    def __init__(self, settings: FlowSettings, evaluate: Evaluate):
        self.settings, self.evaluate = settings, evaluate
        self._evaluated: list[tuple[float, torch.Tensor]] = []
        self._previous: tuple[float, torch.Tensor] | None = None
        self._directions: dict[str, torch.Tensor] = {}

    def advance(self, state_RTL: torch.Tensor, update: Update) -> tuple[torch.Tensor, FlowStep]:
        """Take one update; those of a run come in order.

        Returns:
            The state (R, T, L) after it, and the velocity that it moved along.
        """
        if update.restarts:
            self._evaluated, self._previous, self._directions = [], None, {}
        step = self._step(state_RTL, update)
        velocity = step.velocity
        if self.settings.solver == "midpoint":
            middle_RTL = torch.sub(state_RTL, velocity, alpha=update.length / 2)
            velocity = self._evaluate(middle_RTL, update.time - update.length / 2, update).velocity
        elif self.settings.solver == "adams_bashforth":
            if self._previous is not None:
                previous_time, previous = self._previous
                # The mean over the update of the line through both velocities (Adams-Bashforth of second order).
                velocity = velocity + (velocity - previous) * (update.length / (2 * (previous_time - update.time)))
            self._previous = (update.time, step.velocity)
        return torch.sub(state_RTL, velocity, alpha=update.length), FlowStep(velocity, step.branches)

    def _step(self, state_RTL: torch.Tensor, update: Update) -> FlowStep:
        kept = self.settings.velocity_cache_order + 1
        if not update.evaluates:
            weights = lagrange_weights([time for time, _ in self._evaluated], update.time)
            parts = [velocity * weight for weight, (_, velocity) in zip(weights, self._evaluated, strict=True)]
            return FlowStep(sum(parts[1:], parts[0]), {})
        step = self._evaluate(state_RTL, update.time, update)
        if self.settings.velocity_cache_interval > 1:
            self._evaluated = [*self._evaluated, (update.time, step.velocity)][-kept:]
        return step

    def _evaluate(self, state_RTL: torch.Tensor, time: float, update: Update) -> FlowStep:
        reused = self._directions if update.guided and not update.evaluates_guidance else None
        step = self.evaluate(state_RTL, time, update.guided, reused)
        if update.evaluates_guidance and self.settings.guidance_cache_interval > 1:
            main = step.branches["cond"]
            self._directions = {name: main - branch for name, branch in step.branches.items() if name != "cond"}
        return step
