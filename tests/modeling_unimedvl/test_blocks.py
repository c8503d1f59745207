"""The block rules: masks, RoPE ids and labels against a slow restatement, and known examples."""

import random

import pytest
import torch

from unimedvl.modeling_unimedvl.blocks_unimedvl import (
    RULES,
    Block,
    BlockKind,
    block_layout,
    dense_mask,
    is_flow_target,
    is_generation_token,
    pack_samples,
    rope_position_ids,
)

TOKENS = {
    "bos_token_id": 91,
    "eos_token_id": 92,
    "vision_start_token_id": 93,
    "vision_end_token_id": 94,
    "image_token_id": 95,
    "latent_token_id": 96,
}


def random_samples(seed: int) -> list[list[Block]]:
    draw = random.Random(seed)
    samples = []
    for _ in range(draw.randint(1, 4)):
        blocks = []
        for _ in range(draw.randint(1, 5)):
            kind = draw.choice(list(BlockKind))
            if kind == BlockKind.TEXT:
                ids = [draw.randrange(90) for _ in range(draw.randint(0, 4))]
                blocks.append(Block(kind, token_ids=ids, loss=draw.random() < 0.5))
            else:
                blocks.append(Block(kind, grid=(draw.randint(1, 3), draw.randint(1, 3))))
        samples.append(blocks)
    return samples


def slow_mask_and_positions(samples):
    """The reference's rule, token by token."""
    tokens = []
    for number, blocks in enumerate(samples):
        position = 0
        for index, block in enumerate(blocks):
            if block.kind == BlockKind.TEXT:
                for _ in range(len(block.token_ids) + 2):
                    tokens.append((number, index, "causal", position))
                    position += 1
            else:
                mode = "noise" if block.kind == BlockKind.NOISED else "full"
                tokens += [(number, index, mode, position)] * (block.grid[0] * block.grid[1] + 2)
                position += 0 if mode == "noise" else 1
    size = len(tokens)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for query, (q_sample, q_block, _, _) in enumerate(tokens):
        for key, (k_sample, k_block, k_mode, _) in enumerate(tokens):
            if q_sample != k_sample:
                continue
            same = q_block == k_block
            allowed = key <= query or (same and k_mode in ("full", "noise"))
            mask[query, key] = allowed and not (k_mode == "noise" and not same)
    return mask, torch.tensor([token[3] for token in tokens])


@pytest.mark.parametrize("seed", range(40))
def test_packs_follow_the_published_rule(seed):
    samples = random_samples(seed)
    pack = pack_samples(samples, **TOKENS)
    mask, positions = slow_mask_and_positions(samples)
    layout = block_layout(pack["mm_token_type_ids"], pack["block_ids"], pack["sample_ids"])
    assert torch.equal(dense_mask(layout)[0], mask)
    assert torch.equal(pack["position_ids"][0], positions)


@pytest.mark.parametrize("seed", range(40))
def test_layout_is_derived_from_token_kinds_alone(seed):
    pack = pack_samples(random_samples(seed), **TOKENS)
    derived = block_layout(pack["mm_token_type_ids"], None, pack["sample_ids"])
    assert torch.equal(derived.block_ids_BS, pack["block_ids"])
    assert torch.equal(rope_position_ids(derived), pack["position_ids"])


def test_mask_of_the_reference_example():
    """Splits (full 2)(noise 3)(causal 2)(noise 3): the visible columns of each row."""
    kinds = torch.tensor([[0, 0, 0, 3, 0, 0, 0, 0, 3, 0]])
    block_ids = torch.tensor([[0, 0, 1, 1, 1, -1, -1, 2, 2, 2]])
    visible = [row.nonzero()[:, 0].tolist() for row in dense_mask(block_layout(kinds, block_ids))[0]]
    assert visible[0] == visible[1] == [0, 1]
    assert visible[2] == visible[4] == [0, 1, 2, 3, 4]
    assert visible[5] == [0, 1, 5]
    assert visible[6] == [0, 1, 5, 6]
    assert visible[7] == visible[9] == [0, 1, 5, 6, 7, 8, 9]


def test_positions_of_the_reference_editing_example():
    blocks = [
        Block(BlockKind.CLEAN, grid=(2, 3)),
        Block(BlockKind.VIT, grid=(2, 3)),
        Block(BlockKind.TEXT, token_ids=[1, 2, 3, 4, 5]),
        Block(BlockKind.NOISED, grid=(3, 2)),
    ]
    positions = pack_samples([blocks], **TOKENS)["position_ids"][0].tolist()
    assert positions == [0] * 8 + [1] * 8 + list(range(2, 9)) + [9] * 8


def test_latents_go_to_the_generation_expert_and_noised_ones_carry_the_flow_loss():
    kinds = torch.tensor([[BlockKind.TEXT, BlockKind.VIT, BlockKind.CLEAN, BlockKind.NOISED]])
    assert is_generation_token(kinds).tolist() == [[False, False, True, True]]
    assert is_flow_target(kinds).tolist() == [[False, False, False, True]]


def test_padding_takes_no_position_on_either_side():
    kinds = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    positions = rope_position_ids(block_layout(kinds), mask)
    assert positions[0, 2:].tolist() == [0, 0, 0, 1]
    assert positions[1, :5].tolist() == [0, 1, 1, 1, 2]


def test_dropped_image_takes_one_position_and_dropped_text_none():
    text = Block(BlockKind.TEXT, token_ids=[7])
    dropped_image = Block(BlockKind.VIT, grid=(2, 2), dropped=True)
    dropped_text = Block(BlockKind.TEXT, token_ids=[1, 2, 3], dropped=True)
    assert pack_samples([[dropped_image, text]], **TOKENS)["position_ids"][0].tolist() == [1, 2, 3]
    assert pack_samples([[dropped_text, text]], **TOKENS)["position_ids"][0].tolist() == [0, 1, 2]


def test_labels_cover_the_answer_and_its_end():
    pack = pack_samples(
        [[Block(BlockKind.TEXT, token_ids=[1, 2]), Block(BlockKind.TEXT, token_ids=[3, 4, 5], loss=True)]], **TOKENS
    )
    assert pack["labels"][0].tolist() == [-100] * 5 + [3, 4, 5, 92]
    assert torch.allclose(pack["token_weights"][0, 5:], torch.full((4,), 0.5))


def test_next_label_needs_a_following_block():
    last = Block(BlockKind.TEXT, token_ids=[1], next_label=93)
    followed = pack_samples([[last, Block(BlockKind.VIT, grid=(1, 1))]], **TOKENS)
    assert followed["labels"][0].tolist() == [-100] * 3 + [93, -100, -100]
    with pytest.raises(ValueError, match="nothing follows"):
        pack_samples([[last]], **TOKENS)


def test_every_kind_has_a_rule():
    assert set(RULES) == set(BlockKind)
