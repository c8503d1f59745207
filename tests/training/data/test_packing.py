"""The planner loses nothing, keeps shares, fills rows, and goes on exactly where it was."""

import itertools
import json
import logging
import random

import pytest

from unimedvl.training.data.packing import PackPlanner


def lengths(seed=0):
    """Lengths as of a mixture: many short conversations, images of a few hundred to thousands of tokens."""

    def length(key):
        draw = random.Random(f"{seed}/{key.group}/{key.index}/{key.epoch}")
        return [draw.randint(20, 200), draw.choice([300, 1100, 1500]) + draw.randint(10, 90), draw.randint(900, 5000)][
            key.group
        ]

    return length


def planner(**changes):
    settings = {
        "sizes": [30_000, 2_000, 700],
        "weights": [0.5, 0.4, 0.1],
        "length": lengths(),
        "pack_tokens": 18_500,
        "sample_tokens": 18_500,
        "open_packs": 32,
        "seed": 1,
    }
    return PackPlanner(**{**settings, **changes})


def test_a_hundred_thousand_samples_none_lost_none_twice_little_padding():
    plan, seen, tokens, packs = planner(), [], 0, 0
    for pack in plan:
        assert pack.num_tokens == sum(map(plan.length, pack.keys)) <= 18_500
        seen += pack.keys
        tokens, packs = tokens + pack.num_tokens, packs + 1
        if len(seen) >= 100_000:
            break
    assert 1 - tokens / (packs * 18_500) <= 0.03
    seen += [key for pack in plan.flush() for key in pack.keys]
    assert len(set(seen)) == len(seen) == sum(plan.drawn)
    for group, size in enumerate(plan.sizes):
        epochs, rest = divmod(plan.drawn[group], size)
        keys = [key for key in seen if key.group == group]
        for epoch in range(epochs):
            assert {key.index for key in keys if key.epoch == epoch} == set(range(size))
        assert sum(key.epoch == epochs for key in keys) == rest


@pytest.mark.parametrize("count", [100, 10_000])
def test_shares_are_those_of_the_recipe(count):
    plan = planner()
    seen = list(itertools.islice((key for pack in plan for key in pack.keys), count))
    drawn = [number / sum(plan.drawn) for number in plan.drawn]
    assert drawn == pytest.approx([0.5, 0.4, 0.1], abs=0.01)
    if count == 10_000:
        realised = [sum(key.group == group for key in seen) / count for group in range(3)]
        assert realised == pytest.approx([0.5, 0.4, 0.1], abs=0.01)


@pytest.mark.parametrize("stop", [0, 1, 7, 100, 311])
def test_a_loaded_state_gives_the_rest_of_the_stream(stop):
    packs = list(itertools.islice(planner(), stop + 50))
    again = planner()
    if stop:
        again.load_state_dict(json.loads(json.dumps(packs[stop - 1].state)))
    rest = list(itertools.islice(again, 50))
    assert [pack.keys for pack in rest] == [pack.keys for pack in packs[stop:]]
    assert [pack.state for pack in rest] == [pack.state for pack in packs[stop:]]


def test_orders_change_with_epoch_and_seed():
    plan = planner(sizes=[50], weights=[1.0], length=lambda key: 10, pack_tokens=500, sample_tokens=500, open_packs=1)
    first, second = (list(pack.keys) for pack in itertools.islice(plan, 2))
    assert sorted(key.index for key in first) == sorted(key.index for key in second) == list(range(50))
    assert [key.index for key in first] != [key.index for key in second]
    other = planner(
        sizes=[50], weights=[1.0], length=lambda key: 10, pack_tokens=500, sample_tokens=500, open_packs=1, seed=2
    )
    assert [key.index for key in next(iter(other)).keys] != [key.index for key in first]


def test_too_long_samples_are_named_and_counted(caplog):
    plan = planner(sample_tokens=4000, name=lambda key: f"record {key.index}")
    with caplog.at_level(logging.WARNING):
        keys = [key for pack in itertools.islice(plan, 20) for key in pack.keys]
    assert plan.skipped[2] > 0 and all(plan.length(key) <= 4000 for key in keys)
    assert "more than sample_tokens (4000)" in caplog.text and "record " in caplog.text


def test_nothing_but_too_long_samples_is_an_error():
    with pytest.raises(ValueError, match="Every sample is longer"):
        next(iter(planner(sample_tokens=10)))


def test_changed_data_and_empty_groups_are_refused():
    with pytest.raises(ValueError, match="holds no record"):
        planner(sizes=[5, 0, 5])
    with pytest.raises(ValueError, match="data changed"):
        planner(sizes=[30_000, 2_000, 701]).load_state_dict(next(iter(planner())).state)
