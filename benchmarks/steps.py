"""Two ways of doing the same work, step by step in turn."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

Mark = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A piece of work done by the package and by other means, in steps.

    Attributes:
        ours: does some steps, calling its first argument before each and after the last; returns the result.
        other: a new iterator over some steps, each of which does the same work by other means. What follows them
            brings it to where `ours` ends.
        whole_calls: a step is a whole call and needs none before it.
        check: raises AssertionError where `ours` and the values that `other` gave differ.
    """

    ours: Callable[[Mark, int], Any]
    other: Callable[[int], Iterator[Any]]
    check: Callable[[Any, list[Any]], None]
    whole_calls: bool = False


def last(compare: Callable[[Any, Any], None], ours: Any, others: list[Any]) -> None:
    """Compare results of calls, all of which are alike."""
    compare(ours, others[-1])


def calls(ours: Callable[[], Any], other: Callable[[], Any], compare: Callable[[Any, Any], None]) -> Case:
    """A case whose steps are whole calls."""

    def repeated(mark: Mark, steps: int) -> Any:
        for _ in range(steps):
            mark()
            result = ours()
        mark()
        return result

    return Case(repeated, lambda steps: (other() for _ in range(steps)), partial(last, compare), whole_calls=True)


def stepwise(function: Callable[[Mark], Any]) -> Iterator[int]:
    """Turn a function that calls a mark before each step and after the last into an iterator of its steps.

    The function runs in a thread of its own, which moves only while the iterator is asked for a step.
    """
    ask: queue.Queue[bool] = queue.Queue()
    answer: queue.Queue[bool | BaseException] = queue.Queue()

    def mark() -> None:
        answer.put(True)
        ask.get()

    def work() -> None:
        try:
            function(mark)
            answer.put(False)
        except BaseException as error:  # whoever waits for the step raises it
            answer.put(error)

    threading.Thread(target=work, daemon=True).start()
    steps = -1
    while (reached := answer.get()) is True:
        if steps >= 0:
            yield steps
        steps += 1
        ask.put(True)
    if isinstance(reached, BaseException):
        raise reached


def run_steps(case: Case, steps: int, measure: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
    """Both sides of a case step by step in turn, and check that they did the same.

    Args:
        steps: of each side.
        measure: read before and after each step; what it returns is subtracted.

    Returns:
        What each step of ours took, and each step of the other side.

    Raises:
        AssertionError: if the two sides' results differ.
    """
    other, values = case.other(steps), []
    ours_took: list[Any] = []
    other_took: list[Any] = []
    began: list[Any] = []

    def mark() -> None:
        if began:
            ours_took.append(measure() - began.pop())
        if len(ours_took) < steps:
            before = measure()
            values.append(next(other))
            other_took.append(measure() - before)
            began.append(measure())

    result = case.ours(mark, steps)
    values.extend(other)
    case.check(result, values)
    return ours_took, other_took
