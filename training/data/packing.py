"""Samples to packed rows: every group's share kept, no sample lost, and a state from which the stream resumes exactly.

The planner decides only which sample goes into which pack; it needs lengths, no images. Its stream depends on the data
and the seed alone, so every process plans the same one and takes its own part of it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleKey:
    """The record with number `index` of group number `group`, read for the `epoch`-th time (from 0)."""

    group: int
    index: int
    epoch: int


@dataclass(frozen=True)
class Pack:
    """One packed row.

    Attributes:
        keys: its samples in order.
        num_tokens: their tokens.
        state: the planner's state after this pack; a planner that loads it resumes with the next one.
    """

    keys: tuple[SampleKey, ...]
    num_tokens: int
    state: dict[str, Any]


class PackPlanner:
    """An endless iterator over packs.

    Groups take turns so that each one's share of all samples drawn so far is as close to its weight as it can be;
    within a group records come in a new random order each epoch. A sample goes into the fullest open pack with room
    for it, and the fullest pack leaves when there is none and all `open_packs` are in use.

    Args:
        sizes: number of records of every group.
        weights: share of every group, relative.
        length: tokens of a sample.
        pack_tokens, sample_tokens, open_packs: see `DataRecipe`.
        seed: of the orders.
        name: what to call a sample in a log line.

    Raises:
        ValueError: for an empty group.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        length: Callable[[SampleKey], int],
        pack_tokens: int,
        sample_tokens: int,
        open_packs: int,
        seed: int,
        name: Callable[[SampleKey], str] = str,
    ):
        if min(sizes) < 1:
            raise ValueError(f"Group number {list(sizes).index(min(sizes)) + 1} of the data holds no record.")
        self.sizes, self.length, self.name = list(sizes), length, name
        self.shares = [weight / sum(weights) for weight in weights]
        self.pack_tokens, self.sample_tokens, self.open_packs = pack_tokens, sample_tokens, open_packs
        self.seed = seed
        self.drawn = [0] * len(self.sizes)
        self.skipped: Counter[int] = Counter()
        self.packs: list[list[SampleKey]] = []
        self.filled: list[int] = []
        self._orders: dict[int, tuple[int, numpy.ndarray]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the stream depends on besides the data and the arguments; JSON-safe."""
        return {
            "drawn": list(self.drawn),
            "skipped": [self.skipped[group] for group in range(len(self.sizes))],
            "packs": [[[key.group, key.index, key.epoch] for key in pack] for pack in self.packs],
            "filled": list(self.filled),
            "sizes": list(self.sizes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the pack that carried `state`.

        Raises:
            ValueError: if the groups hold other numbers of records than when the state was taken.
        """
        if state["sizes"] != self.sizes:
            raise ValueError(
                f"The data changed since the checkpoint: groups of {state['sizes']} records then, {self.sizes} now."
            )
        self.drawn = list(state["drawn"])
        self.skipped = Counter(dict(enumerate(state["skipped"])))
        self.packs = [[SampleKey(*key) for key in pack] for pack in state["packs"]]
        self.filled = list(state["filled"])

    def _draw(self) -> SampleKey:
        total = sum(self.drawn) + 1
        deficits = [share * total - drawn for share, drawn in zip(self.shares, self.drawn, strict=True)]
        group = deficits.index(max(deficits))
        epoch, position = divmod(self.drawn[group], self.sizes[group])
        self.drawn[group] += 1
        known = self._orders.get(group)
        if known is None or known[0] != epoch:
            order = numpy.random.default_rng([self.seed, group, epoch]).permutation(self.sizes[group])
            known = self._orders[group] = (epoch, order)
        return SampleKey(group, int(known[1][position]), epoch)

    def _pop(self, place: int) -> Pack:
        keys, tokens = self.packs.pop(place), self.filled.pop(place)
        return Pack(tuple(keys), tokens, self.state_dict())

    def __iter__(self) -> Iterator[Pack]:
        while True:
            key = self._draw()
            tokens = self.length(key)
            if tokens > self.sample_tokens:
                self.skipped[key.group] += 1
                logger.warning(
                    "%s has %d tokens, more than sample_tokens (%d): left out",
                    self.name(key),
                    tokens,
                    self.sample_tokens,
                )
                if sum(self.skipped.values()) == sum(self.drawn) >= sum(self.sizes):
                    raise ValueError(
                        f"Every sample is longer than sample_tokens ({self.sample_tokens}): raise it with pack_tokens."
                    )
                continue
            fitting = [place for place, filled in enumerate(self.filled) if filled + tokens <= self.pack_tokens]
            if fitting:
                place = max(fitting, key=self.filled.__getitem__)
            else:
                if len(self.packs) == self.open_packs:
                    leaving = self._leave(key, tokens)
                    yield leaving
                    continue
                place = self._open()
            self._put(place, key, tokens)

    def _open(self) -> int:
        self.packs.append([])
        self.filled.append(0)
        return len(self.packs) - 1

    def _put(self, place: int, key: SampleKey, tokens: int) -> None:
        self.packs[place].append(key)
        self.filled[place] += tokens

    def _leave(self, key: SampleKey, tokens: int) -> Pack:
        """The fullest pack, with the sample that had no room already in a new one: the state must hold it."""
        place = self.filled.index(max(self.filled))
        keys, filled = self.packs.pop(place), self.filled.pop(place)
        self._put(self._open(), key, tokens)
        return Pack(tuple(keys), filled, self.state_dict())

    def flush(self) -> list[Pack]:
        """The open packs, fullest first, which leaves none open."""
        packs = []
        while self.packs:
            packs.append(self._pop(self.filled.index(max(self.filled))))
        return packs
