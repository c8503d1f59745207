"""The planner loses nothing, keeps shares, fills rows, and resumes exactly where it was."""

import itertools
import json
import logging
import random

import pytest

from unimedvl.training.data.packing import PackPlanner

pytestmark = pytest.mark.medium


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


def packs_of(lengths, count, pack_tokens, open_packs):
    """The first packs that leave, as lengths, where samples of these lengths come in this order."""
    coming, known = iter(lengths), {}

    def length(key):
        known[key] = next(coming)
        return known[key]

    options = {"pack_tokens": pack_tokens, "sample_tokens": pack_tokens, "open_packs": open_packs}
    packs = list(itertools.islice(planner(sizes=[len(lengths)], weights=[1.0], length=length, **options), count))
    found = [[known[key] for key in pack.keys] for pack in packs]
    assert [pack.num_tokens for pack in packs] == [sum(pack) for pack in found]
    return found


def test_a_sample_that_fits_exactly_fills_its_pack():
    assert packs_of([6, 4, 1], 1, pack_tokens=10, open_packs=1) == [[6, 4]]
    assert packs_of([6, 5], 1, pack_tokens=10, open_packs=1) == [[6]]
    assert packs_of([10, 10, 1], 2, pack_tokens=10, open_packs=1) == [[10], [10]]


def test_a_sample_goes_into_the_fullest_pack_with_room():
    # 5 and 6 open two packs of ten. 3 would fit both and joins the 6, 4 has room beside the 5 only. 2 fits neither
    # pack of 9, so one leaves; 7 joins the 2. The two 8s drive out what is left.
    assert packs_of([5, 6, 3, 4, 2, 7, 8, 8], 3, pack_tokens=10, open_packs=2) == [[5, 4], [6, 3], [2, 7]]


def test_the_fullest_pack_leaves():
    assert packs_of([5, 8, 6], 1, pack_tokens=10, open_packs=2) == [[8]]


def test_a_hundred_thousand_samples_none_lost_none_twice_little_padding():
    plan, seen, tokens, packs = planner(), [], 0, 0
    for pack in plan:
        assert pack.num_tokens == sum(map(plan.length, pack.keys)) <= 18_500
        seen += pack.keys
        tokens, packs = tokens + pack.num_tokens, packs + 1
        if len(seen) >= 100_000:
            break
    # 0.04 % measured; a planner that fills the emptiest pack with room leaves 2.9 %.
    assert 1 - tokens / (packs * 18_500) <= 0.001
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
        realized = [sum(key.group == group for key in seen) / count for group in range(3)]
        assert realized == pytest.approx([0.5, 0.4, 0.1], abs=0.01)


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
