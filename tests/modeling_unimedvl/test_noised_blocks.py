"""Velocities over contexts laid out once equal those of one pass over everything; contexts are shared, not copied."""

import pytest
import torch
from transformers import DynamicCache

from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.contexts_unimedvl import encode_images, extend_context, read_prompts
from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings
from unimedvl.modeling_unimedvl.noised_blocks_unimedvl import lay_out_contexts
from unimedvl.modeling_unimedvl.prompts_unimedvl import PosteriorDraws, Prompts
from unimedvl.modeling_unimedvl.sampling_unimedvl import FlowSampler

SETTINGS = FlowSettings(
    num_inference_steps=3,
    guidance_scale=4.0,
    image_guidance_scale=2.0,
    cfg_interval=(0.0, 1.0),
    cfg_renorm_type="global",
    cfg_renorm_min=0.0,
    timestep_shift=3.0,
)
TEXTS = [[3, 4, 5], [7, 8, 9, 10, 11], [3, 4, 6]]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def edits(model, texts=TEXTS):
    rows = [
        conversation(model.config, [("latent", 2, 3), ("vit", 2, 3), text], seed=seed)
        for seed, text in enumerate(texts)
    ]
    return Prompts.from_inputs(model, collate(rows, model.config.pad_token_id, "left"))


def contexts_of(model, prompts):
    draws = PosteriorDraws(None, None, "mode")
    return read_prompts(model, prompts, encode_images(model, prompts, draws), image_guidance=True)


def whole_pass(model, context, row: int, tokens_TL, time: float, grid):
    """The velocity by the training forward: the context's tokens as embeddings of its cache, the block after them."""
    config = model.config
    count = grid[0] * grid[1]
    ids = torch.tensor([[config.vision_start_token_id, *[config.latent_token_id] * count, config.vision_end_token_id]])
    kinds = torch.tensor([[0, *[3] * count, 0]])
    kept = context.mask[row].nonzero()[:, 0]
    cache = DynamicCache(config=config.text_config)
    for index, layer in enumerate(context.cache.layers):
        cache.update(layer.keys[row : row + 1, :, kept], layer.values[row : row + 1, :, kept], index)
    outputs = model.model(
        input_ids=ids,
        mm_token_type_ids=kinds,
        position_ids=context.next_position[row].expand(1, count + 2),
        latent_values=[model.model.latent_grid(torch.zeros_like(tokens_TL), *grid)],
        flow_noise=tokens_TL / time,
        flow_timesteps=torch.tensor([time]),
        past_key_values=cache,
    )
    return outputs.velocity


@pytest.mark.parametrize("images_per_prompt", [1, 2])
@torch.no_grad()
def test_every_branch_equals_one_pass_over_everything(model, images_per_prompt):
    prompts = edits(model)
    contexts = contexts_of(model, prompts)
    sampler = FlowSampler(model, SETTINGS)
    grids = [grid for grid in [(2, 3), (3, 3), (2, 2)] for _ in range(images_per_prompt)]
    conditions = sampler.prepare(contexts, grids, images_per_prompt)
    noise = sampler.draw_noise(grids, torch.Generator().manual_seed(1))
    # Twice: what the first step wrote must not show in the second.
    for _ in range(2):
        step = sampler.step(conditions, conditions.pad(noise), 0.7)
    for name, context in (("cond", contexts.main), ("text", contexts.text), ("image", contexts.image)):
        for number, (tokens, found) in enumerate(zip(noise, conditions.unpad(step.branches[name]), strict=True)):
            expected = whole_pass(model, context, number // images_per_prompt, tokens, 0.7, grids[number])
            assert (found - expected).abs().max() < 2e-5, (name, number)


@torch.no_grad()
def test_the_shorter_context_shares_the_values_of_the_longer_one(model):
    contexts = contexts_of(model, edits(model, TEXTS[:1]))
    attention = lay_out_contexts(model.model, [contexts.main, contexts.text, contexts.image], 2, [8, 8])
    assert [group.rows for group in attention.groups] == [range(number, number + 1) for number in range(6)]
    main, text, image = attention.groups[::2]
    for layer, part in enumerate(text.values):
        assert part.untyped_storage().data_ptr() == main.values[layer].untyped_storage().data_ptr()
        assert image.values[layer].untyped_storage().data_ptr() != part.untyped_storage().data_ptr()
    # Both images of the prompt use the same memory.
    assert attention.groups[1].keys[0] is main.keys[0]
    sizes = [group.keys[0].shape[2] - group.length for group in (main, text, image)]
    assert sizes == [int(context.mask.sum()) for context in (contexts.main, contexts.text, contexts.image)]


@torch.no_grad()
def test_an_extended_context_shares_with_what_it_extends(model):
    contexts = contexts_of(model, edits(model, TEXTS[:1]))
    ids = torch.tensor([[121, 5, 6, 122]])
    longer = extend_context(model, contexts.main, ids, torch.zeros_like(ids))
    attention = lay_out_contexts(model.model, [longer, contexts.main, contexts.text], 1, [8])
    storages = {group.values[0].untyped_storage().data_ptr() for group in attention.groups}
    assert len(storages) == 1


@torch.no_grad()
def test_prompts_of_equal_length_are_one_batch(model):
    contexts = contexts_of(model, edits(model, [[3, 4, 5], [7, 8, 9], [1, 2, 3, 4]]))
    attention = lay_out_contexts(model.model, [contexts.main, contexts.text], 1, [8, 8, 8])
    assert [group.rows for group in attention.groups] == [range(2), range(2, 3), range(3, 5), range(5, 6)]


@torch.no_grad()
def test_empty_contexts_need_no_memory(model):
    rows = [conversation(model.config, [text], seed=1) for text in TEXTS]
    prompts = Prompts.from_inputs(model, collate(rows, model.config.pad_token_id, "left"))
    contexts = read_prompts(model, prompts, None)
    attention = lay_out_contexts(model.model, [contexts.main, contexts.text], 2, [8] * 6)
    assert attention.groups[-1].keys is None and attention.groups[-1].rows == range(6, 12)


def test_gradients_reach_what_every_step_saw(model):
    """As training with rewards needs them: through two steps over the same contexts."""
    contexts = contexts_of(model, edits(model, TEXTS[:1]))
    sampler = FlowSampler(model, SETTINGS)
    conditions = sampler.prepare(contexts, [(2, 3)])
    state = conditions.pad(sampler.draw_noise([(2, 3)], torch.Generator().manual_seed(1))).requires_grad_()
    for time in (0.9, 0.5):
        state = state - 0.2 * sampler.step(conditions, state, time).velocity
    state.square().sum().backward()
    weight = model.model.language_model.layers[0].self_attn.k_proj_moe_gen.weight
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.zero_grad()
