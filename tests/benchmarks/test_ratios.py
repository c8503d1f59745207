"""Pairs are timed in turn, results are compared, and a run that was cut resumes."""

import json

import numpy
import pytest

from benchmarks import ratios
from benchmarks.steps import Case, calls, run_steps, stepwise


def ticking(*costs):
    """A clock that stands still, and work that moves it."""
    now = [0.0]

    def work(cost):
        now[0] += cost
        return cost

    return now, [lambda cost=cost: work(cost) for cost in costs]


def test_each_side_is_charged_its_own_steps():
    now, (ours, other) = ticking(2.0, 3.0)
    case = calls(ours, other, lambda left, right: None)
    assert run_steps(case, 4, lambda: now[0]) == ([2.0] * 4, [3.0] * 4)
    found = ratios.interval([other / mine for mine, other in zip([2.0] * 15, [3.0] * 15, strict=True)])
    assert found == {"median": 1.5, "low": 1.5, "high": 1.5, "noise": False}


def test_sides_that_differ_are_refused():
    case = calls(lambda: 1, lambda: 2, lambda ours, other: numpy.testing.assert_equal(ours, other))
    with pytest.raises(AssertionError):
        run_steps(case, 2, lambda: 0.0)


def test_a_function_becomes_an_iterator_of_its_steps():
    seen = []

    def work(mark):
        mark()
        for step in range(3):
            seen.append(step)
            mark()

    steps = stepwise(work)
    assert next(steps) == 0 and seen == [0]
    assert list(steps) == [1, 2] and seen == [0, 1, 2]


def test_an_error_in_a_step_reaches_who_asked():
    def work(mark):
        mark()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        next(stepwise(work))


def test_an_interval_that_holds_one_is_noise():
    values = list(1 + numpy.random.default_rng(1).normal(0, 0.1, 15))
    assert ratios.interval(values)["noise"]
    faster = ratios.interval([value + 0.5 for value in values])
    assert not faster["noise"] and 1 < faster["low"] < faster["median"] < faster["high"] < 2


def test_a_cut_run_resumes_and_other_code_starts_anew(tmp_path, monkeypatch):
    built = []

    def make(name):
        def build():
            built.append(name)
            return Case(
                ours=lambda mark, steps: [mark() for _ in range(steps + 1)],
                other=lambda steps: iter(range(steps)),
                check=lambda ours, others: None,
            )

        return build

    monkeypatch.setattr(ratios, "planned", lambda pairs: {name: (make(name), pairs) for name in ("a", "b")})
    ticks = iter(range(10_000))
    monkeypatch.setattr(ratios.time, "process_time", lambda: float(next(ticks)))
    ratios.main(pairs=3, only="a", to=tmp_path)
    ratios.main(pairs=3, to=tmp_path)
    assert built == ["a", "b"]
    stored = json.loads((tmp_path / "ratios.json").read_text())
    assert {name: found["pairs"] for name, found in stored["cases"].items()} == {"a": 3, "b": 3}
    ratios.main(pairs=4, to=tmp_path)
    assert built == ["a", "b", "a", "b"]
    monkeypatch.setattr(ratios, "code", lambda: "other")
    ratios.main(pairs=3, to=tmp_path)
    assert built == ["a", "b"] * 3
    with pytest.raises(ValueError, match="no case 'c'"):
        ratios.main(only="c", to=tmp_path)
