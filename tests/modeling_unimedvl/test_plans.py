"""A plan of a pack says what the tokens say, changes no number, and lets a step run without waiting for the device."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F

from benchmarks.operations import OperationCounter
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.training.curriculum.acceleration import checkpoint_activations
from unimedvl.training.data.collate import to_device

_TOKENS = ("bos", "eos", "vision_start", "vision_end", "image", "latent")
_PADDING = {"mm_token_type_ids": 0, "position_ids": 0, "block_ids": -1, "sample_ids": -1, "labels": -100}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def drawn_samples(seed: int) -> list[list[Block]]:
    """Samples of every kind of block."""
    draw = random.Random(seed)
    samples = []
    for _ in range(draw.randint(1, 3)):
        blocks = [Block(BlockKind.TEXT, token_ids=[draw.randrange(90) for _ in range(draw.randint(1, 5))])]
        for kind in draw.choices([BlockKind.VIT, BlockKind.CLEAN, BlockKind.NOISED], k=draw.randint(1, 3)):
            blocks.append(Block(kind, grid=(draw.randint(1, 3), draw.randint(1, 3))))
        blocks.append(Block(BlockKind.TEXT, token_ids=[draw.randrange(90) for _ in range(3)], loss=True))
        samples.append(blocks)
    return samples


def drawn_batch(config, seed: int, pixels: bool = True) -> tuple[dict, list[list[list[Block]]]]:
    """A batch of two packs of unequal lengths with all images, and its samples row by row."""
    token_ids = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in _TOKENS}
    rows = [drawn_samples(seed), drawn_samples(seed + 1000)]
    packs = [pack_samples(samples, **token_ids) for samples in rows]
    length = max(pack["input_ids"].shape[1] for pack in packs)
    batch: dict = {}
    for name, padding in {"input_ids": 0, **_PADDING}.items():
        columns = [F.pad(pack[name][0], (0, length - pack[name].shape[1]), value=padding) for pack in packs]
        batch[name] = torch.stack(columns)
    generator = torch.Generator().manual_seed(seed)
    blocks = [block for samples in rows for sample in samples for block in sample if block.grid is not None]
    vit = [block.grid for block in blocks if block.kind == BlockKind.VIT]
    if vit:
        values = config.vision_config.patch_size**2 * 3
        batch["pixel_values"] = torch.randn(sum(a * b for a, b in vit), values, generator=generator)
        batch["image_grid_thw"] = torch.tensor([[1, *grid] for grid in vit])
    latent = [block for block in blocks if block.kind != BlockKind.VIT]
    if latent:
        noised = sum(a * b for a, b in (block.grid for block in latent if block.kind == BlockKind.NOISED))
        batch["flow_noise"] = torch.randn(noised, config.latent_dim, generator=generator)
        batch["flow_timesteps"] = torch.rand(len(latent), generator=generator)
        cells = [(config.vae_config.latent_channels, *(side * 2 for side in block.grid)) for block in latent]
        draws = [torch.randn(*shape, generator=generator) for shape in cells]
        if pixels:
            unit = config.pixels_per_latent_token
            sizes = torch.tensor([[a * unit, b * unit] for a, b in (block.grid for block in latent)])
            height, width = sizes.max(dim=0).values.tolist()
            batch["latent_pixel_values"] = torch.rand(len(latent), 3, height, width, generator=generator)
            batch |= {"latent_image_sizes": sizes, "vae_noise": draws}
        else:
            batch["latent_values"] = draws
    return batch, rows


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_those_of_a_count_token_by_token(model, seed):
    batch, rows = drawn_batch(model.config, seed)
    plan = PackPlan.from_batch(batch)
    length = batch["input_ids"].shape[1]
    und, gen, noised, vit, labeled = [], [], [], [], []
    for row, samples in enumerate(rows):
        place = row * length
        for sample in samples:
            for block in sample:
                if block.grid is None:
                    count = len(block.token_ids) + 2
                    und += range(place, place + count)
                    # The token before each label but BOS predicts it.
                    labeled += range(place, place + count - 1) if block.loss else ()
                    place += count
                    continue
                inside = range(place + 1, place + 1 + block.grid[0] * block.grid[1])
                if block.kind == BlockKind.VIT:
                    vit += inside
                    und += range(place, inside.stop + 1)
                else:
                    und += (place, inside.stop)
                    noised += range(len(gen), len(gen) + len(inside)) if block.kind == BlockKind.NOISED else ()
                    gen += inside
                place = inside.stop + 1
        und += range(place, (row + 1) * length)
    assert plan.rows.und_U.tolist() == und and plan.rows.gen_T.tolist() == gen
    assert plan.rows.noised_N.tolist() == noised and plan.rows.vit_P.tolist() == vit
    assert plan.labeled_A.tolist() == labeled
    order = torch.tensor(und + gen)
    assert torch.equal(order[plan.rows.restore], torch.arange(2 * length))


def step(model, batch: dict, **options) -> tuple:
    model.zero_grad()
    output = model(**batch, **options)
    output.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return output, gradients


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pixels", [True, False])
def test_a_plan_changes_no_loss_and_no_gradient(model, seed, pixels):
    learner = copy.deepcopy(model).train()
    batch, _ = drawn_batch(model.config, seed, pixels)
    plain, without = step(learner, batch)
    planned, gradients = step(learner, batch, plan=PackPlan.from_batch(batch))
    assert torch.equal(plain.loss, planned.loss) and torch.equal(plain.logits, planned.logits)
    assert torch.equal(plain.velocity, planned.velocity) and torch.equal(plain.flow_target, planned.flow_target)
    assert without.keys() == gradients.keys()
    assert all(torch.equal(without[name], gradients[name]) for name in without)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_planned_step_never_waits_for_the_device(model, pixels, checkpointing):
    """The meta device has no values: whatever reads one raises, and a copy that waits is counted."""
    learner = copy.deepcopy(model).train()
    if checkpointing:
        checkpoint_activations(learner, "full")
    batch, _ = drawn_batch(model.config, 3, pixels)
    assert len(set(batch["image_grid_thw"].prod(dim=1).tolist())) > 1 and "flow_noise" in batch
    learner = learner.to("meta")
    on_device = to_device({**batch, "plan": PackPlan.from_batch(batch)}, "meta")
    with OperationCounter() as counter:
        output = learner(**on_device, skip_logits=True)
        output.loss.backward()
    assert counter.snapshot().synchronizations == {}
    assert output.loss.device.type == "meta" and learner.lm_head.weight.grad is not None
    del on_device["plan"]
    with pytest.raises(NotImplementedError, match="meta"):
        learner(**on_device)


def test_waits_are_seen_on_a_cpu_too(model):
    batch, _ = drawn_batch(model.config, 3)
    plan = PackPlan.from_batch(batch)
    with OperationCounter() as with_plan:
        model(**batch, plan=plan)
    with OperationCounter() as without:
        model(**batch)
    assert not with_plan.snapshot().synchronizations
    assert {"nonzero", "_local_scalar_dense", "tolist"} <= without.snapshot().synchronizations.keys()


def test_a_plan_of_another_batch_is_refused(model):
    batch, _ = drawn_batch(model.config, 0)
    shorter = {name: batch[name][:, :-1] for name in ("mm_token_type_ids", "sample_ids", "labels")}
    with pytest.raises(ValueError, match="make it from this batch"):
        model(**batch, plan=PackPlan.from_batch(shorter))


def test_all_tensors_of_a_plan_move(model):
    batch, _ = drawn_batch(model.config, 3)
    plan = PackPlan.from_batch(batch)
    moved = plan.to("meta")
    # Keys with gaps between them, as where a hidden block lies before a text, are tensors as well.
    keys = [span.keys for row in moved.spans.rows for span in row.spans if isinstance(span.keys, torch.Tensor)]
    parts = [moved.position_ids_BS, moved.labeled_A, *vars(moved.rows).values(), *vars(moved.layout).values()]
    assert keys and all(tensor.device.type == "meta" for tensor in (*parts, *keys))
    assert moved.vit_grids == plan.vit_grids and plan.labeled_A.device.type == "cpu"
