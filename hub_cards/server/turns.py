"""Turns on one device: text and image requests alternate, each for as long as the other.

Decoding and denoising are loops of short steps. Each loop runs in a thread of its own and computes only while it has
the turn, which it offers after every step. Who waits and has used the device for less time gets it. So each kind keeps
half of the device however long the other's requests are, whatever a step of either costs; alternating step by step
would tie the speed of texts to the length of a denoising step.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """Who computes now.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._changed = threading.Condition()
        self._used: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._holder: str | None = None
        self._since = 0.0

    @contextmanager
    def held(self, who: str) -> Iterator[None]:
        """Have the turn while the block runs, but for what `offer` gives away."""
        with self._changed:
            present = self._waiting if self._holder is None else {*self._waiting, self._holder}
            # Time that nobody asked for gives no credit, also to who finds the device idle.
            most = max(self._used.values(), default=0.0)
            floor = min((self._used[other] for other in present), default=most)
            self._used[who] = max(self._used.get(who, 0.0), floor)
            self._take(who)
        try:
            yield
        finally:
            with self._changed:
                self._give(who)

    def offer(self, who: str) -> None:
        """Let another one compute first if it has used less; called between steps by whoever has the turn."""
        with self._changed:
            assert self._holder == who, (self._holder, who)
            self._account(who)
            if any(self._used[other] < self._used[who] for other in self._waiting):
                self._give(who)
                self._take(who)

    def used(self, who: str) -> float:
        """Seconds that one has had the device, idle time of others credited."""
        with self._changed:
            return self._used.get(who, 0.0)

    def _account(self, who: str) -> None:
        now = self._clock()
        self._used[who] += now - self._since
        self._since = now

    def _take(self, who: str) -> None:
        self._waiting.add(who)
        self._changed.wait_for(
            lambda: self._holder is None and self._used[who] == min(self._used[other] for other in self._waiting)
        )
        self._waiting.remove(who)
        self._holder, self._since = who, self._clock()

    def _give(self, who: str) -> None:
        self._account(who)
        self._holder = None
        self._changed.notify_all()
