"""Training: a few layers at the 14B model's width, a full step and a LoRA step with gradient checkpointing."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.training.curriculum.metrics import Operations
from unimedvl.training.curriculum.parameter_groups import freeze_parts, make_optimizer
from unimedvl.training.data.collate import BatchInfo, SampleInfo
from unimedvl.training.recipe import OptimizerRecipe

from .architecture import Size, drawn_ids, random_model
from .run import Bench, record_ceilings
from .timing import Clock, peak_bytes, reset_peak

STEPS_TIMED, WARMUP = 3, 2
LORA_RANK = 16


def packed_batch(config: UniMedVLConfig, size: Size, device: torch.device) -> tuple[dict[str, Any], BatchInfo]:
    """A pack of text-to-image samples and one question about an image, on the device."""
    side = size.sides[0] // config.pixels_per_latent_token
    text = Block(BlockKind.TEXT, token_ids=drawn_ids(config, size.text_tokens))
    answer = Block(BlockKind.TEXT, token_ids=drawn_ids(config, size.text_tokens), loss=True)
    samples = [[text, Block(BlockKind.NOISED, grid=(side, side))] for _ in range(size.training_images)]
    samples.append([Block(BlockKind.VIT, grid=size.vit_grid), text, answer])
    names = ("bos", "eos", "vision_start", "vision_end", "image", "latent")
    pack = pack_samples(samples, **{f"{name}_token_id": getattr(config, f"{name}_token_id") for name in names})
    owners, labels, kinds = pack["sample_ids"][0], pack["labels"][0] != -100, pack["mm_token_type_ids"][0]
    infos = []
    for number in range(len(samples)):
        own = owners == number
        counts = (int((own & labels).sum()), int((own & (kinds == BlockKind.NOISED)).sum()), int(own.sum()))
        infos.append(SampleInfo(f"sample-{number}", "drawn", "none", "all", 0, 0, *counts))
    vision: Any = config.vision_config
    vae: Any = config.vae_config
    patches, patch = size.vit_grid[0] * size.vit_grid[1], vision.patch_size
    cells = side * config.latent_patch_size
    latent = (vae.latent_channels, cells, cells)
    names = ("input_ids", "mm_token_type_ids", "position_ids", "block_ids", "sample_ids", "labels")
    batch: dict[str, Any] = {name: pack[name].to(device) for name in names}
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    batch |= {
        "pixel_values": drawn(patches, 3 * patch**2).clamp(-1, 1),
        "image_grid_thw": torch.tensor([[1, *size.vit_grid]], device=device),
        "latent_values": [drawn(*latent) for _ in range(size.training_images)],
        "flow_noise": drawn(size.training_images * side**2, config.latent_dim),
        "flow_timesteps": drawn(size.training_images).sigmoid(),
    }
    return batch, BatchInfo(infos, len(owners), {})


def record_steps(bench: Bench, name: str, model: Any, bare: Any) -> None:
    """Forward, backward and optimizer, by the recipes' own optimizer; `bare` is the model inside an adapter."""
    batch, info = packed_batch(bare.config, bench.size, bench.device)
    bare.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = make_optimizer(model, OptimizerRecipe())
    flops = Operations(model)({**batch, "info": info})
    clock, losses = Clock(bench.device), []
    reset_peak(bench.device)
    clock.mark()
    for _ in range(WARMUP + STEPS_TIMED):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
        losses.append(loss.detach())
    time_ms = statistics.median(clock.intervals(WARMUP))
    rate = flops / time_ms * 1e3
    bench.record.measured(
        f"{name}.step",
        time_ms,
        "ms",
        tokens_per_second=info.capacity / time_ms * 1e3,
        tokens=info.capacity,
        tflop_per_second=rate / 1e12,
        share_of_measured_peak=rate / bench.flops_ceiling,
        layers=bare.config.text_config.num_hidden_layers,
        losses=[value.item() for value in losses],
    )
    bench.record.measured(f"{name}.peak_memory", peak_bytes(bench.device) / 1e9, "GB")
    infinite = sum(not torch.isfinite(value).item() for value in losses)
    bench.record.comparison(f"{name}.losses", infinite, 0, "losses that are not finite")


def cut_model(bench: Bench) -> Any:
    """A few layers; the autoencoder does not take part, since latents are given."""
    model = random_model(bench.size.config(num_hidden_layers=bench.size.training_layers), bench.device)
    freeze_parts(model, ["vae"])
    return model


def full_step(bench: Bench) -> None:
    """Every weight but the autoencoder's is trained."""
    model = cut_model(bench)
    record_steps(bench, "train.full", model, model)


def lora_step(bench: Bench) -> None:
    """Both experts' matrices carry adapters, everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    bare = cut_model(bench)
    model = get_peft_model(bare, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK))
    bare.enable_input_require_grads()
    record_steps(bench, "train.lora", model, bare)


STEPS: list[Callable[[Bench], None]] = [record_ceilings, full_step, lora_step]
