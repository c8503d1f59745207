"""Caches that grow in place hold what a concatenating cache holds, whatever is done to them."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache

from tests.tiny_model import tiny_config
from unimedvl.modeling_unimedvl.caches_unimedvl import branch_cache, growing_cache

CONFIG = tiny_config().text_config


def same(ours, plain) -> bool:
    return all(
        torch.equal(left.keys, right.keys) and torch.equal(left.values, right.values)
        for left, right in zip(ours.layers, plain.layers, strict=True)
    )


@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_any_sequence_of_changes(seed):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    pairs = [(growing_cache(CONFIG), DynamicCache(config=CONFIG))]

    def grow(pair):
        rows = pair[1].layers[0].keys.shape[0] if pair[1].get_seq_length() else 2
        length = draw.choice([1, 1, 2, 7, 300])
        for layer in range(len(pair[1].layers)):
            added = torch.randn(2, rows, 2, length, 8).unbind(0)
            ours, plain = (cache.update(*added, layer) for cache in pair)
            assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])

    grow(pairs[0])
    for _ in range(12):
        number = draw.randrange(len(pairs))
        pair = pairs[number]
        change = draw.choice(["grow", "grow", "crop", "branch", "reorder", "repeat", "copy"])
        if change == "grow":
            grow(pair)
        elif change == "crop" and pair[1].get_seq_length() > 3:
            for cache in pair:
                cache.crop(-2)
        elif change == "branch":
            pairs.append((branch_cache(pair[0]), copy.deepcopy(pair[1])))
        elif change == "copy":
            pairs.append((copy.deepcopy(pair[0]), copy.deepcopy(pair[1])))
        elif change == "reorder":
            order = torch.randperm(pair[1].layers[0].keys.shape[0])
            for cache in pair:
                cache.reorder_cache(order)
        elif change == "repeat" and pair[1].layers[0].keys.shape[0] < 5:
            for cache in pair:
                cache.batch_repeat_interleave(2)
        assert all(same(*each) for each in pairs), change


@torch.no_grad()
def test_a_token_moves_nothing():
    cache = growing_cache(CONFIG)
    cache.update(*[torch.randn(1, 2, 40, 8)] * 2, 0)
    places = set()
    for _ in range(100):
        cache.update(*[torch.randn(1, 2, 1, 8)] * 2, 0)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1 and cache.get_seq_length() == 140


@torch.no_grad()
def test_branches_share_memory_until_they_part():
    cache = growing_cache(CONFIG)
    cache.update(*[torch.randn(1, 2, 40, 8)] * 2, 0)
    first, second = branch_cache(cache), branch_cache(cache)
    place = cache.layers[0].keys.data_ptr()
    first.update(*[torch.zeros(1, 2, 1, 8)] * 2, 0)
    second.update(*[torch.ones(1, 2, 1, 8)] * 2, 0)
    assert first.layers[0].keys.data_ptr() == place != second.layers[0].keys.data_ptr()
    assert cache.get_seq_length() == 40
    assert (first.layers[0].keys[:, :, 40] == 0).all() and (second.layers[0].keys[:, :, 40] == 1).all()


def test_gradients_pass_through():
    cache = growing_cache(CONFIG)
    keys = torch.randn(1, 2, 3, 8, requires_grad=True)
    cache.update(keys, keys, 0)
    total, _ = cache.update(2 * keys, keys, 0)
    total.sum().backward()
    assert torch.equal(keys.grad, torch.full_like(keys, 3.0))
