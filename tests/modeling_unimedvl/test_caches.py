"""Caches of every class: what they hold is known, and branches leave the original alone."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.caches_unimedvl import branch_cache

GREEDY = {"do_sample": False, "max_new_tokens": 5}


def new_cache(model, name):
    config = model.config.text_config
    return {"own": None, "dynamic": DynamicCache(config=config), "static": StaticCache(config, max_cache_len=64)}[name]


def whole_row(question, ids: torch.Tensor) -> dict:
    """The question with further tokens, to be read in one pass."""
    added = ids.shape[1] - question["input_ids"].shape[1]
    kinds = torch.nn.functional.pad(question["mm_token_type_ids"], (0, added))
    return {**question, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}


@pytest.mark.parametrize("name", ["own", "dynamic", "static"])
def test_d10_decoding_by_hand_after_an_image(model, question, name):
    """Without position_ids: the cache knows how far RoPE ids lag behind its tokens."""
    with torch.no_grad():
        output = model(**question, past_key_values=new_cache(model, name))
        cache, ids = output.past_key_values, question["input_ids"]
        for step in range(3):
            token = output.logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], dim=1)
            given = {"attention_mask": torch.ones_like(ids)} if step % 2 else {}
            output = model(input_ids=token, past_key_values=cache, **given)
            expected = model(**whole_row(question, ids)).logits[:, -1]
            assert (output.logits[:, -1] - expected).abs().max() < 1e-5


def test_d10_decoding_a_padded_batch_by_hand(model, question):
    other = conversation(model.config, [[9, 8], ("vit", 3, 3), [3], ("vit", 1, 2)], seed=2, answer=True)
    for side in ("left", "right"):
        batch = collate([question, other], model.config.pad_token_id, side)
        following = torch.tensor([[7, 5], [6, 4]])
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, 2), value=1)
        with torch.no_grad():
            cache = model(**batch).past_key_values
            continued = model(input_ids=following, attention_mask=mask, past_key_values=cache).logits
            for row, alone in enumerate((question, other)):
                ids = torch.cat([alone["input_ids"], following[row : row + 1]], dim=1)
                expected = model(**whole_row(alone, ids)).logits[:, -2:]
                assert (continued[row : row + 1] - expected).abs().max() < 1e-5


def test_d10_a_second_image_on_a_cache(model, question):
    second = conversation(model.config, [("vit", 3, 2), [4, 4]], seed=5, answer=True)
    joined = {name: torch.cat([question[name], second[name]], dim=1) for name in ("input_ids", "mm_token_type_ids")}
    joined |= {name: torch.cat([question[name], second[name]]) for name in ("pixel_values", "image_grid_thw")}
    added = {name: value for name, value in second.items() if name != "attention_mask"}
    with torch.no_grad():
        cache = model(**question).past_key_values
        continued = model(**added, past_key_values=cache)
        last = model(input_ids=torch.tensor([[7]]), past_key_values=continued.past_key_values).logits
        expected = model(**joined).logits
        assert (continued.logits - expected[:, -continued.logits.shape[1] :]).abs().max() < 1e-5
        ids = torch.cat([joined["input_ids"], torch.tensor([[7]])], dim=1)
        assert (last[:, -1] - model(**whole_row(joined, ids)).logits[:, -1]).abs().max() < 1e-5


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, branch_cache, lambda c: pickle.loads(pickle.dumps(c))])
def test_d10_copies_of_a_cache_keep_the_note(model, question, copied):
    with torch.no_grad():
        cache = copied(model(**question).past_key_values)
        step = model(input_ids=torch.tensor([[7]]), past_key_values=cache).logits
        ids = torch.cat([question["input_ids"], torch.tensor([[7]])], dim=1)
        assert (step[:, -1] - model(**whole_row(question, ids)).logits[:, -1]).abs().max() < 1e-5


def test_d10_cropping_text_is_known_and_cropping_images_is_refused(model, question):
    """Another question about the same image is asked after the first one is cropped away."""
    end = int((question["mm_token_type_ids"] > 0).nonzero()[-1, 1]) + 2
    text = question["input_ids"].shape[1] - end
    image = {name: question[name] for name in ("pixel_values", "image_grid_thw")}
    ids = torch.cat([question["input_ids"][:, :end], torch.tensor([[7, 8]])], dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, **image).logits[:, -2:]
        cache = model(**question).past_key_values
        model(input_ids=torch.tensor([[9, 9, 9]]), past_key_values=cache)
        cache.crop(-text - 3)
        shorter, wider = copy.deepcopy(cache), copy.deepcopy(cache)
        assert (model(input_ids=ids[:, -2:], past_key_values=cache).logits - expected).abs().max() < 1e-5
        shorter.crop(-1)
        wider.batch_repeat_interleave(2)
        for changed, rows in ((shorter, 1), (wider, 2)):
            with pytest.raises(ValueError, match="position_ids"):
                model(input_ids=torch.tensor([[7]] * rows), past_key_values=changed)


def test_d10_the_default_of_the_configuration_is_followed(question):
    model = tiny_model()
    text = {"input_ids": question["input_ids"][:, -4:]}
    with torch.no_grad():
        for inputs in (text, question):
            assert model(**inputs).past_key_values.get_seq_length() == inputs["input_ids"].shape[1]
            assert model(**inputs, use_cache=False).past_key_values is None
            assert model.model(**inputs).past_key_values is not None
        sample_ids = torch.tensor([[0, 0, 1, 1]])
        assert model(**text, sample_ids=sample_ids).past_key_values is None
        assert model(**text, position_ids=torch.tensor([[0, 1, 0, 1]])).past_key_values is None
        model.config.text_config.use_cache = False
        assert model(**text).past_key_values is None
        model.config.text_config.use_cache = True
    model.train()
    assert model(**text).past_key_values is not None
    model.gradient_checkpointing_enable()
    assert model(**text).past_key_values is None


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
    if name == "static":
        # Its mask is made in advance, so that valid tokens cannot be counted.
        with pytest.raises(ValueError, match="position_ids"):
            model(input_ids=torch.tensor([[7]]), past_key_values=made.past_key_values)
        return
    # The last token was not read yet.
    ids = torch.cat([greedy, torch.tensor([[7]])], dim=1)
    with torch.no_grad():
        step = model(input_ids=ids[:, -2:], past_key_values=made.past_key_values).logits[:, -1]
        assert (step - model(**whole_row(question, ids)).logits[:, -1]).abs().max() < 1e-5


def test_a_branch_grows_alone(model, question):
    with torch.no_grad():
        cache = model(**question, use_cache=True).past_key_values
        before = copy.deepcopy([layer.keys for layer in cache.layers])
        branch = branch_cache(cache)
        length = cache.get_seq_length()
        model(input_ids=torch.tensor([[7]]), position_ids=torch.tensor([[6]]), past_key_values=branch)
        assert (cache.get_seq_length(), branch.get_seq_length()) == (length, length + 1)
        assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
