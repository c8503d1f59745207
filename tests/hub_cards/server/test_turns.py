"""Turns on one device: each kind gets half of it, and idle time is no credit."""

import threading

import pytest

from unimedvl.hub_cards.server.turns import Turns


class Clock:
    """Seconds that pass only while somebody computes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(turns: Turns, clock: Clock, who: str, step: float, steps: int, done: list, before=None) -> threading.Thread:
    def loop():
        if before is not None:
            before.wait()
        with turns.held(who):
            for _ in range(steps):
                clock.now += step
                done.append((who, clock.now))
                turns.offer(who)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def share(done: list, who: str, steps: dict[str, float], until: float) -> float:
    return sum(steps[name] for name, time in done if name == who and time <= until) / until


def test_long_and_short_steps_share_the_device_in_halves():
    clock, done, steps = Clock(), [], {"text": 0.01, "image": 0.3}
    turns = Turns(clock)
    with turns.held("gate"):
        threads = [run(turns, clock, who, step, round(30 / step), done) for who, step in steps.items()]
        while len(turns._waiting) < 2:
            pass
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    # While both work, which is until one has had its 30 seconds.
    for until in (10.0, 20.0, 50.0):
        assert abs(share(done, "text", steps, until) - 0.5) < 0.04
    assert len(done) == sum(round(30 / step) for step in steps.values())


def test_who_comes_late_gets_half_and_not_more():
    clock, done, steps = Clock(), [], {"text": 0.01, "image": 0.1}
    turns, late = Turns(clock), threading.Event()

    def loop():
        with turns.held("image"):
            for number in range(400):
                clock.now += 0.1
                done.append(("image", clock.now))
                if number == 99:
                    late.set()
                    while not turns._waiting:
                        pass
                turns.offer("image")

    first = threading.Thread(target=loop)
    first.start()
    second = run(turns, clock, "text", 0.01, 1_000, done, late)
    for thread in (first, second):
        thread.join(20)
        assert not thread.is_alive()
    # Ten seconds passed before the text came: it does not get them now.
    beside = [(who, time - 10.0) for who, time in done if time > 10.0]
    assert abs(share(beside, "text", steps, 10.0) - 0.5) < 0.04


@pytest.mark.parametrize(("first", "second"), [("text", "image"), ("image", "text")])
def test_who_finds_the_device_idle_gets_half_once_the_other_comes_back(first, second):
    clock, done, late = Clock(), [], threading.Event()
    turns = Turns(clock)
    with turns.held(first):
        clock.now += 1_000.0
        turns.offer(first)

    def loop():
        with turns.held(second):
            for number in range(500):
                clock.now += 1.0
                done.append((second, clock.now))
                if number == 9:
                    late.set()
                    while not turns._waiting:
                        pass
                turns.offer(second)

    alone = threading.Thread(target=loop)
    alone.start()
    back = run(turns, clock, first, 1.0, 100, done, late)
    for thread in (alone, back):
        thread.join(20)
        assert not thread.is_alive()
    # The thousand seconds before are nobody's debt: of the next hundred that both want, each has half.
    beside = [who for who, _ in done[10:110]]
    assert abs(beside.count(first) - 50) <= 1


def test_an_error_gives_the_turn_back():
    turns = Turns()
    try:
        with turns.held("text"):
            raise KeyError
    except KeyError:
        with turns.held("image"):
            turns.offer("image")
    with turns.held("text"):
        turns.offer("text")
