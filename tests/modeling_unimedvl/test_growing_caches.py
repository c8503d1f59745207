"""Caches that grow in place hold what a concatenating cache holds, whatever is done to them."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache

from tests.tiny_model import tiny_config, tiny_model
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


@torch.no_grad()
def test_what_a_caller_kept_stays():
    cache = growing_cache(CONFIG)
    cache.update(*[torch.randn(1, 2, 6, 8)] * 2, 0)
    kept = cache.layers[0].keys
    copied = kept.clone()
    cache.crop(-2)
    cache.update(*[torch.zeros(1, 2, 2, 8)] * 2, 0)
    assert torch.equal(kept, copied)


@torch.no_grad()
def test_replaced_values_and_other_types_are_honored():
    cache = growing_cache(CONFIG)
    cache.update(*[torch.ones(1, 2, 3, 8)] * 2, 0)
    layer = cache.layers[0]
    layer.values = layer.values * 0
    _, values = cache.update(*[torch.ones(1, 2, 1, 8)] * 2, 0)
    assert (values[:, :, :3] == 0).all() and (values[:, :, 3] == 1).all()
    half = growing_cache(CONFIG)
    half.update(*[torch.ones(1, 2, 3, 8, dtype=torch.bfloat16)] * 2, 0)
    exact = torch.full((1, 2, 1, 8), 1 + 2.0**-12)
    keys, _ = half.update(exact, exact, 0)
    assert keys.dtype == torch.float32 and torch.equal(keys[:, :, 3:], exact)


def test_a_cache_read_in_inference_mode_is_continued_outside():
    model = tiny_model()
    ids = torch.tensor([[121, 5, 6, 7]])
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    more = torch.cat([ids, torch.tensor([[8]])], dim=1)
    found = model.generate(more, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, model.generate(more, max_new_tokens=4, do_sample=False))


def test_a_backward_pass_through_two_calls_on_one_cache():
    """Keys and values of a first layer that only queries are tuned in have no gradients, but its queries need them."""
    model = tiny_model().requires_grad_(False)
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight.requires_grad_()
    ids = torch.tensor([[121, 5, 6, 7]])
    first = model(input_ids=ids[:, :3], use_cache=True)
    second = model(input_ids=ids[:, 3:], past_key_values=first.past_key_values)
    (first.logits.sum() + second.logits.sum()).backward()
    found = weight.grad
    weight.grad = None
    model(input_ids=ids).logits.sum().backward()
    assert (found - weight.grad).abs().max() < 1e-3 * weight.grad.abs().max()


def test_gradients_pass_through():
    cache = growing_cache(CONFIG)
    keys = torch.randn(1, 2, 3, 8, requires_grad=True)
    cache.update(keys, keys, 0)
    total, _ = cache.update(2 * keys, keys, 0)
    total.sum().backward()
    assert torch.equal(keys.grad, torch.full_like(keys, 3.0))
