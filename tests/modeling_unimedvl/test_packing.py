"""Packs of other libraries, whose samples show in RoPE ids that start again: each sample is as if it were alone."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from tests.tiny_inputs import conversation
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.blocks_unimedvl import block_layout, rope_position_ids
from unimedvl.modeling_unimedvl.packing_unimedvl import samples_of_restarts

# The last one is a single token, whose id equals that of the next sample's first.
TEXTS = [[121, 3, 4, 5, 6], [121, 9, 8, 7], [11], [121, 12, 13]]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    model = tiny_model()
    model.set_attn_implementation(request.param)
    return model


@pytest.fixture(scope="module")
def flexible():
    model = tiny_model()
    model.set_attn_implementation("flex_attention")
    return model


def counted(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[position for length in lengths for position in range(length)]])


def logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def bounds(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()


def marks_of(kind: str, lengths: list[int]) -> dict:
    """What collators say about the samples of a row."""
    position_ids = counted(lengths)
    if kind == "position_ids":
        return {"position_ids": position_ids}
    if kind == "ones":
        return {"position_ids": position_ids, "attention_mask": torch.ones_like(position_ids)}
    if kind == "seq_idx":
        return {"seq_idx": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None].int()}
    ends = bounds(lengths)
    flash = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    return flash if kind == "cu_seq_lens" else flash | {"position_ids": position_ids}


def check_texts(model, kind: str, **options) -> None:
    lengths = [len(text) for text in TEXTS]
    row = torch.tensor([sum(TEXTS, [])])
    packed = logits(model, input_ids=row, **marks_of(kind, lengths), **options).split(lengths, dim=1)
    for text, part in zip(TEXTS, packed, strict=True):
        assert (part - logits(model, input_ids=torch.tensor([text]))).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", ["position_ids", "ones", "cu_seq_lens", "cu_seq_lens and ids", "seq_idx"])
def test_d2_packed_texts_are_apart(model, kind):
    check_texts(model, kind)
    check_texts(model, kind, use_cache=True)


@pytest.mark.medium
def test_d2_flex_attention_keeps_packs_apart(flexible):
    check_texts(flexible, "position_ids")
    check_images(flexible, "counted")


def test_d2_several_packed_rows_with_padding(model):
    rows = [TEXTS[0] + TEXTS[1], TEXTS[3] + TEXTS[2]]
    width = len(rows[0])
    ids = torch.tensor([rows[0], rows[1] + [120] * (width - len(rows[1]))])
    mask = (ids != 120).long()
    # What a tokenizer's padding leaves there means nothing.
    positions = torch.tensor([[*range(5), *range(4)], [*range(3), 0, *[7] * (width - 4)]])
    packed = logits(model, input_ids=ids, attention_mask=mask, position_ids=positions)
    for row, start, text in ((0, 0, TEXTS[0]), (0, 5, TEXTS[1]), (1, 0, TEXTS[3]), (1, 3, TEXTS[2])):
        alone = logits(model, input_ids=torch.tensor([text]))[0]
        assert (packed[row, start : start + len(text)] - alone).abs().max() < TOLERANCE


@pytest.mark.parametrize("positions", ["counted", "shared", "none"])
def test_d2_packed_images_are_apart(model, positions):
    """Collators count the tokens of an image; its own RoPE ids are those of the blocks either way."""
    check_images(model, positions)


def check_images(model, positions: str) -> None:
    samples = [
        conversation(model.config, [("vit", 2, 3), [3, 4, 5]], seed=1),
        conversation(model.config, [[9, 8], ("vit", 3, 3), [3]], seed=2),
        conversation(model.config, [("vit", 2, 2), ("vit", 2, 3)], seed=3),
        conversation(model.config, [("vit", 3, 2), [7, 7]], seed=4),
    ]
    lengths = [sample["input_ids"].shape[1] for sample in samples]
    row = {name: torch.cat([sample[name] for sample in samples], dim=1) for name in ("input_ids", "mm_token_type_ids")}
    row |= {name: torch.cat([sample[name] for sample in samples]) for name in ("pixel_values", "image_grid_thw")}
    if positions == "counted":
        row["position_ids"] = counted(lengths)
    elif positions == "shared":
        shared = [rope_position_ids(block_layout(sample["mm_token_type_ids"])) for sample in samples]
        row["position_ids"] = torch.cat(shared, dim=1)
    else:
        row["cu_seq_lens_q"] = bounds(lengths)
    packed = logits(model, **row).split(lengths, dim=1)
    for sample, part in zip(samples, packed, strict=True):
        assert (part - logits(model, **sample)).abs().max() < TOLERANCE


def test_one_sample_is_no_pack(model):
    """RoPE ids of one conversation, padded on either side, do not start again."""
    ids = torch.tensor([[120, 120, 121, 3, 4, 5], [121, 6, 7, 8, 9, 10]])
    mask = (ids != 120).long()
    derived = logits(model, input_ids=ids, attention_mask=mask)
    for positions in ((mask.cumsum(-1) - 1).clamp(min=0), (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)):
        given = logits(model, input_ids=ids, attention_mask=mask, position_ids=positions)
        assert (given - derived)[mask > 0].abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "positions, mask, expected",
    [
        ([0, 1, 2, 3], None, [0, 0, 0, 0]),
        ([5, 6, 7, 8], None, [0, 0, 0, 0]),
        ([0, 1, 0, 1], None, [0, 0, 1, 1]),
        ([0, 0, 1, 0], None, [0, 1, 1, 2]),
        ([3, 4, 1, 2], None, [0, 0, 1, 1]),
        ([0, 1, 5, 6], None, [0, 0, 1, 1]),
        ([1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]),
        ([0, 1, 0, 2], [1, 1, 0, 1], [0, 0, 0, 0]),
        ([0, 1, 2, 3], [1, 0, 1, 1], [0, 0, 0, 0]),
        ([0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1]),
    ],
)
def test_restarts_of_texts(positions, mask, expected):
    mask = None if mask is None else torch.tensor([mask])
    assert samples_of_restarts(torch.tensor([positions]), mask, None).tolist() == [expected]


@pytest.mark.parametrize(
    "kinds, positions, expected",
    [
        # Text after an image, one image after another, an image at the beginning of the next sample.
        ([0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]),
        ([0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]),
        ([0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]),
        ([0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 1]),
        # A noised image gives its id on to the clean one, a dropped image leaves a gap.
        ([0, 3, 0, 0, 2, 0], [4, 4, 4, 4, 4, 4], [0, 0, 0, 0, 0, 0]),
        ([0, 1, 0, 0, 0], [0, 0, 0, 2, 3], [0, 0, 0, 0, 0]),
    ],
)
def test_restarts_beside_images(kinds, positions, expected):
    layout = block_layout(torch.tensor([kinds]))
    assert samples_of_restarts(torch.tensor([positions]), None, layout).tolist() == [expected]


def test_d2_flash_attention_gets_the_bounds_of_the_samples():
    """Its kernels take no mask. What they would get is recorded, since they need a GPU."""
    seen = []

    def record(module, query, key, value, attention_mask, **kwargs):
        seen.append((attention_mask, kwargs))
        return query.transpose(1, 2), None

    AttentionInterface.register("flash_recorder", record)
    AttentionMaskInterface.register("flash_recorder", flash_attention_mask)
    model = tiny_model()
    model.config.text_config._attn_implementation = "flash_recorder"
    row = {"input_ids": torch.tensor([TEXTS[0] + TEXTS[1]]), "position_ids": counted([5, 4])}
    logits(model, **row)
    logits(model, **row, attention_mask=torch.ones_like(row["input_ids"]))
    for mask, kwargs in seen:
        assert mask is None
        assert kwargs["cu_seq_lens_q"].tolist() == kwargs["cu_seq_lens_k"].tolist() == [0, 5, 9]
        assert kwargs["max_length_q"] == kwargs["max_length_k"] == 5
    with pytest.raises(ValueError, match="pack without padding"):
        logits(model, **row, attention_mask=torch.tensor([[1] * 8 + [0]]))
