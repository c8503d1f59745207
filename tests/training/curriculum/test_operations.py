"""The operations of a step in closed form are those that torch counts, sample by sample."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.training.curriculum.metrics import Operations
from unimedvl.training.data.collate import BatchInfo, SampleInfo

_TOKENS = ("bos", "eos", "vision_start", "vision_end", "image", "latent")
TEXT = Block(BlockKind.TEXT, token_ids=list(range(30)))
ANSWER = Block(BlockKind.TEXT, token_ids=list(range(20)), loss=True)
SAMPLE = [Block(BlockKind.VIT, grid=(8, 8)), TEXT, ANSWER, Block(BlockKind.NOISED, grid=(7, 9))]


@pytest.fixture
def model():
    model = tiny_model().train()
    # torch does not count the CPU kernel of SDPA.
    for part in (model.model.language_model, model.model.vit_model):
        part.set_attn_implementation("eager")
    return model


def batch(config, count: int) -> dict:
    """A pack of `count` times the same sample."""
    names = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in _TOKENS}
    inputs: dict = dict(pack_samples([SAMPLE] * count, **names))
    del inputs["token_weights"]
    inputs |= {
        "pixel_values": torch.randn(64 * count, 3 * config.vision_config.patch_size**2),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * count),
        "latent_values": [torch.randn(config.vae_config.latent_channels, 14, 18) for _ in range(count)],
        "flow_noise": torch.randn(63 * count, config.latent_dim),
        "flow_timesteps": torch.full((count,), 0.4),
    }
    plan = PackPlan.from_batch(inputs)
    tokens, labels = inputs["input_ids"].shape[1] // count, len(plan.labeled_A) // count
    infos = [SampleInfo(str(number), "", "", "", 0, 0, labels, 63, tokens) for number in range(count)]
    return {**inputs, "plan": plan, "info": BatchInfo(infos, tokens * count, {})}


def counted(model, inputs: dict) -> int:
    arguments = {name: value for name, value in inputs.items() if name != "info"}
    with FlopCounterMode(display=False) as counter:
        model(**arguments, skip_logits=True).loss.backward()
    return counter.get_total_flops()


def test_a_step_in_which_all_is_trained_is_counted_exactly(model):
    inputs = batch(model.config, 1)
    assert Operations(model)(inputs) == counted(model, inputs)


@pytest.mark.parametrize("frozen", ["model.vit_model", "model.language_model", "model."])
def test_frozen_weights_take_fewer(model, frozen):
    inputs = batch(model.config, 1)
    most = Operations(model)(inputs)
    for name, weight in model.named_parameters():
        if name.startswith(frozen):
            weight.requires_grad_(False)
    operations = Operations(model)(inputs)
    # What is trained first passes no gradient on, which the closed form does not know.
    assert operations == pytest.approx(counted(model, inputs), rel=0.05) and operations < 0.98 * most


def test_attention_is_counted_within_samples(model):
    """Three samples cost three times one, whatever a pack of them makes a kernel do."""
    operations = Operations(model)
    assert operations(batch(model.config, 3)) == 3 * operations(batch(model.config, 1))
