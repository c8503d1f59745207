"""Spans attend like the dense mask of the same blocks, at the cost of their samples alone."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tests.modeling_unimedvl.test_blocks import TOKENS, random_samples
from unimedvl.modeling_unimedvl.attention_unimedvl import attention_spans, spans_of_lengths
from unimedvl.modeling_unimedvl.blocks_unimedvl import block_layout, dense_mask, pack_samples
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLTextConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLAttention

HEADS, GROUPS, SIZE = 4, 2, 8


@pytest.fixture(scope="module")
def layer():
    config = UniMedVLTextConfig(hidden_size=32, num_attention_heads=HEADS, num_key_value_heads=GROUPS)
    config._attn_implementation = "sdpa"
    return UniMedVLAttention(config, 0, visual_gen=False)


def states(rows: int, length: int, past: int = 0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, HEADS, length, SIZE), *[(rows, GROUPS, past + length, SIZE)] * 2]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def masked(query, key, value, mask):
    """Attention written out, (B, S, H, E)."""
    key, value = (part.repeat_interleave(HEADS // GROUPS, dim=1) for part in (key, value))
    scores = (query @ key.transpose(2, 3) * SIZE**-0.5).masked_fill(~mask[:, None], -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


class ScoreCounter(TorchFunctionMode):
    """Counts the products of queries and keys that kernels are asked for."""

    total = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            query, key = args[:2]
            self.total += query.shape[:3].numel() * key.shape[2]
        return function(*args, **(kwargs or {}))


def random_layout(seed: int):
    pack = pack_samples(random_samples(seed), **TOKENS)
    return block_layout(pack["mm_token_type_ids"], pack["block_ids"], pack["sample_ids"])


@pytest.mark.parametrize("seed", range(40))
def test_spans_of_packs_attend_as_the_mask_says(layer, seed):
    layout = random_layout(seed)
    length = layout.kinds_BS.shape[1]
    parts = states(1, length, seed=seed)
    (found,) = attention_spans(layout).attend(layer, *parts, SIZE**-0.5)
    expected = masked(*parts, dense_mask(layout))
    assert (found - expected).abs().max() < 1e-6
    ways = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    for ours, plain in zip(
        torch.autograd.grad(found, parts, ways), torch.autograd.grad(expected, parts, ways), strict=True
    ):
        assert (ours - plain).abs().max() < 1e-5


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_and_cached_tokens(layer, past, side):
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 2, 2, 2, 2, 0]])
    present = torch.ones(2, past + 9, dtype=torch.long)
    padding = slice(past, past + 2) if side == "left" else slice(past + 7, None)
    present[0, padding] = 0
    if past:
        # A cached token that is hidden leaves a gap among the keys.
        present[1, 2] = 0
    layout = block_layout(kinds)
    parts = states(2, 9, past)
    (found,) = attention_spans(layout, present, past).attend(layer, *parts, SIZE**-0.5)
    allowed = torch.cat([torch.ones(2, 9, past, dtype=torch.bool), dense_mask(layout)], dim=2)
    allowed = allowed & (present[:, None] > 0)
    is_token = present[:, past:] > 0
    expected = masked(*parts, allowed | ~is_token[:, :, None])
    assert (found - expected)[is_token].abs().max() < 1e-6
    assert (found[~is_token] == 0).all()


def test_a_block_in_two_places_is_left_to_a_mask():
    kinds = torch.tensor([[1, 1, 0, 0, 1, 1]])
    assert attention_spans(block_layout(kinds, torch.tensor([[0, 0, -1, -1, 0, 0]]))) is None
    assert attention_spans(block_layout(kinds, torch.tensor([[0, 0, -1, -1, 1, 1]]))) is not None


def test_a_sample_in_two_places_is_left_to_a_mask():
    kinds = torch.zeros(1, 6, dtype=torch.long)
    assert attention_spans(block_layout(kinds, sample_ids_BS=torch.tensor([[0, 0, 1, 1, 0, 0]]))) is None
    assert attention_spans(block_layout(kinds, sample_ids_BS=torch.tensor([[-1, 0, -1, 1, 2, -1]]))) is not None


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.bfloat16, torch.float32])
def test_masks_of_any_type(layer, kind):
    layout = block_layout(torch.tensor([[0, 0, 1, 1, 1, 0]]))
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    parts = states(1, 6)
    (found,) = attention_spans(layout, mask.to(kind)).attend(layer, *parts, SIZE**-0.5)
    (expected,) = attention_spans(layout, mask).attend(layer, *parts, SIZE**-0.5)
    assert torch.equal(found, expected)
    parts = states(1, 6, past=3)
    whole = torch.nn.functional.pad(mask, (3, 0), value=1)
    (found,), (expected,) = (
        attention_spans(layout, given.to(kind), 3).attend(layer, *parts, SIZE**-0.5) for given in (mask, whole)
    )
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"\(1, 7\), expected \(1, 9\)"):
        attention_spans(layout, torch.ones(1, 7), 3)


def test_equal_images_are_one_batch_and_none_is_padded(layer):
    lengths = [6, 6, 6, 2, 9]
    parts = states(1, sum(lengths))
    parts[1:] = [part.repeat_interleave(HEADS // GROUPS, dim=1) for part in parts[1:]]
    spans = spans_of_lengths(lengths)
    assert [span.count for span in spans.rows[0].spans] == [3, 1, 1]
    with ScoreCounter() as counter:
        (found,) = spans.attend(layer, *parts, SIZE**-0.5)
    assert counter.total == HEADS * sum(length**2 for length in lengths)
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    same = (numbers[:, None] == numbers)[None]
    query, key, value = parts
    expected = F.scaled_dot_product_attention(query, key, value, same).transpose(1, 2)
    assert (found - expected).abs().max() < 1e-6


def test_a_pack_costs_what_its_samples_cost(layer):
    """A mask over all of them would cost more than ten times as much."""

    def cost(pack) -> int:
        layout = block_layout(pack["mm_token_type_ids"], pack["block_ids"], pack["sample_ids"])
        with ScoreCounter() as counter:
            attention_spans(layout).attend(layer, *states(1, layout.kinds_BS.shape[1]), SIZE**-0.5)
        return counter.total

    samples = [sample for seed in range(8) for sample in random_samples(seed)]
    together = cost(pack_samples(samples, **TOKENS))
    alone = sum(cost(pack_samples([sample], **TOKENS)) for sample in samples)
    whole = sum(len(pack_samples([sample], **TOKENS)["input_ids"][0]) for sample in samples) ** 2 * HEADS
    assert 0 < together == alone < whole / 10
