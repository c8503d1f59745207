"""Caches of every class: what they hold is known without changing them, and branches leave the original alone."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from unimedvl.modeling_unimedvl.caches_unimedvl import branch_cache

GREEDY = {"do_sample": False, "max_new_tokens": 5}


def new_cache(model, name):
    config = model.config.text_config
    return {"own": None, "dynamic": DynamicCache(config=config), "static": StaticCache(config, max_cache_len=64)}[name]


@pytest.mark.parametrize("name", ["own", "dynamic", "static"])
def test_a_cache_with_images_is_not_continued_by_counting_tokens(model, question, name):
    untouched = new_cache(model, name)
    with torch.no_grad():
        cache = model(**question, past_key_values=new_cache(model, name), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="position_ids"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    if untouched is not None:
        assert vars(cache).keys() == vars(untouched).keys()


@pytest.mark.parametrize("name", ["own", "dynamic", "static"])
def test_a_cache_of_texts_is_continued_by_counting_tokens(model, name):
    ids = torch.tensor([[121, 5, 6, 7, 8, 122]])
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, -2:]
        cache = model(input_ids=ids[:, :4], past_key_values=new_cache(model, name), use_cache=True).past_key_values
        rest = model(input_ids=ids[:, 4:], past_key_values=cache).logits
    assert (whole - rest).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["own", "dynamic", "static"])
def test_generation_notes_the_images_of_a_cache(model, question, name):
    greedy = model.generate(**question, **GREEDY)
    cache = new_cache(model, name)
    given = {} if cache is None else {"past_key_values": cache}
    made = model.generate(**question, **GREEDY, **given, disable_compile=True, return_dict_in_generate=True)
    assert torch.equal(made.sequences, greedy)
    with pytest.raises(ValueError, match="position_ids"):
        model(input_ids=torch.tensor([[7]]), past_key_values=made.past_key_values)


def test_a_branch_grows_alone_and_keeps_the_note(model, question):
    with torch.no_grad():
        cache = model(**question, use_cache=True).past_key_values
        before = copy.deepcopy([layer.keys for layer in cache.layers])
        branch = branch_cache(cache)
        length = cache.get_seq_length()
        model(input_ids=torch.tensor([[7]]), position_ids=torch.tensor([[6]]), past_key_values=branch)
        assert (cache.get_seq_length(), branch.get_seq_length()) == (length, length + 1)
        assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
        with pytest.raises(ValueError, match="position_ids"):
            model(input_ids=torch.tensor([[7]]), past_key_values=branch)
