"""Training steps as the recipes take them: a cut of the 14B model in full, LoRA on all of it, and the choices.

A step moves its micro-batch to the device, runs forward and backward in bfloat16 beside float32 weights, clips,
updates by the recipes' fused AdamW and moves the averages.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.training.curriculum.acceleration import accelerate_model
from unimedvl.training.curriculum.ema import WeightAverage
from unimedvl.training.curriculum.metrics import Operations, peak_flops
from unimedvl.training.curriculum.parameter_groups import freeze_parts, make_optimizer
from unimedvl.training.data.collate import BatchInfo, SampleInfo, to_device
from unimedvl.training.data_recipe import DataRecipe, GroupRecipe
from unimedvl.training.recipe import OptimizerRecipe, TrainingRecipe

from .architecture import Size, drawn_ids, random_model
from .run import Bench, record_ceilings
from .timing import Clock, bf16_tolerance, count_waits, differences, peak_bytes, reset_peak, time_guard

STEPS_TIMED, WARMUP = 3, 2
LORA_RANK = 16
# Gradients pass twice the layers of a forward pass; a few layers are less than this many.
GRADIENT_TOLERANCE = bf16_tolerance(2 * 8)
# Shares of the vendor's peak that others report for training this architecture.
PUBLISHED_MFU = {"megatron_bridge": 0.237, "original": 0.179}


def packed_batch(config: UniMedVLConfig, size: Size, pin: bool = False) -> tuple[dict[str, Any], BatchInfo]:
    """A pack of text-to-image samples and one question about an image, with its plan, on the host."""
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
    batch: dict[str, Any] = {name: pack[name] for name in names}
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    batch |= {
        "pixel_values": drawn(patches, 3 * patch**2).clamp(-1, 1),
        "image_grid_thw": torch.tensor([[1, *size.vit_grid]]),
        "latent_values": [drawn(*latent) for _ in range(size.training_images)],
        "flow_noise": drawn(size.training_images * side**2, config.latent_dim),
        "flow_timesteps": drawn(size.training_images).sigmoid(),
    }
    batch["plan"] = PackPlan.from_batch(batch)
    if pin:
        batch = {name: _pinned(value) for name, value in batch.items()}
    return batch, BatchInfo(infos, len(owners), {})


def _pinned(value: Any) -> Any:
    return [entry.pin_memory() for entry in value] if isinstance(value, list) else value.pin_memory()


class Steps:
    """Training steps of a model as the trainer takes them.

    Args:
        bench: device and size.
        model: with an adapter around it, or the bare one.
        bare: the model without an adapter.
    """

    def __init__(self, bench: Bench, model: nn.Module, bare: Any):
        self.device, self.model = bench.device, model.train()
        self.batch, self.info = packed_batch(bare.config, bench.size, bench.device.type == "cuda")
        self.optimizer, self.average = make_optimizer(model, OptimizerRecipe()), WeightAverage(model, 0.995)
        self.operations = Operations(model)({**self.batch, "info": self.info})
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]

    def gradients(self) -> torch.Tensor:
        """Forward and backward; the loss."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(**to_device(self.batch, self.device), skip_logits=True).loss
        loss.backward()
        return loss.detach()

    def step(self) -> torch.Tensor:
        """One optimizer step; the loss."""
        loss = self.gradients()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.average.update(self.model)
        self.optimizer.zero_grad()
        return loss


def record_steps(bench: Bench, name: str, steps: Steps, bare: Any) -> None:
    """Time, rate and memory of steps, and their losses."""
    clock, losses = Clock(bench.device), []
    reset_peak(bench.device)
    clock.mark()
    for _ in range(WARMUP + STEPS_TIMED):
        losses.append(steps.step())
        clock.mark()
    time_ms = statistics.median(clock.intervals(WARMUP))
    rate, tokens = steps.operations / time_ms * 1e3, steps.info.capacity
    stated = peak_flops(0.0)
    bench.record.measured(
        f"{name}.step",
        time_ms,
        "ms",
        tokens_per_second=tokens / time_ms * 1e3,
        tokens=tokens,
        tflop_per_second=rate / 1e12,
        share_of_measured_peak=rate / bench.flops_ceiling,
        mfu=None if stated is None else rate / stated,
        published_mfu=PUBLISHED_MFU,
        layers=bare.config.text_config.num_hidden_layers,
        weights=sum(weight.numel() for weight in bare.parameters()),
        trained=sum(weight.numel() for weight in steps.weights),
        losses=[value.item() for value in losses],
    )
    bench.record.measured(f"{name}.peak_memory", peak_bytes(bench.device) / 1e9, "GB")
    infinite = sum(not torch.isfinite(value).item() for value in losses)
    bench.record.comparison(f"{name}.losses", infinite, 0, "losses that are not finite")


def chosen(**choices: Any) -> TrainingRecipe:
    """A recipe of which only what `accelerate_model` reads matters."""
    return TrainingRecipe("model", "output", DataRecipe([GroupRecipe("all", "records")]), 1, **choices)


def cut_model(bench: Bench, recipe: TrainingRecipe, **compile_options: Any) -> Any:
    """A few layers in float32, as a full run keeps them. Latents are given, so that the autoencoder takes no part."""
    config = bench.size.config(num_hidden_layers=bench.size.training_layers)
    model = random_model(config, bench.device, torch.float32)
    freeze_parts(model, ["vae"])
    accelerate_model(model, recipe, **compile_options)
    return model


def full_step(bench: Bench) -> None:
    """Every weight but the autoencoder's is trained; selective checkpointing. Then, where the host waits."""
    model = cut_model(bench, chosen(gradient_checkpointing=True, checkpointing_policy="selective"))
    steps = Steps(bench, model, model)
    record_steps(bench, "train.full", steps, model)
    with count_waits(bench.device) as waits:
        steps.step()
    bench.record.comparison("train.full.waits", len(waits), 0, "waits for the device in a step", where=waits[:5])


def lora_step(bench: Bench) -> None:
    """Both experts' matrices of the whole model carry adapters, everything else is frozen, in bfloat16."""
    from peft import LoraConfig, get_peft_model

    bare = random_model(bench.size.config(), bench.device)
    freeze_parts(bare, ["vae"])
    accelerate_model(bare, chosen(gradient_checkpointing=True))
    model = get_peft_model(bare, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK))
    record_steps(bench, "train.lora", Steps(bench, model, bare), bare)


def choices(bench: Bench) -> None:
    """The full step with each kind of attention and compiled; a first gradient against the plain one's."""
    gpu = bench.device.type == "cuda"
    compiled: dict[str, Any] = {"gradient_checkpointing": gpu, "attention": "flex_attention" if gpu else "sdpa"}
    kinds: dict[str, dict[str, Any]] = {
        "flex": {"attention": "flex_attention", "gradient_checkpointing": True},
        "compiled": {**compiled, "compile": True, "checkpointing_policy": "selective"},
    }
    plain: torch.Tensor | None = None
    model: Any
    steps: Any
    gradient: Any
    for kind, choice in ({"plain": {"gradient_checkpointing": True}} | kinds).items():
        name = f"train.full.{kind}"
        if kind == "flex" and not gpu:
            bench.record.not_run(name, "flex attention has no backward pass on a CPU")
            continue
        options = {"backend": bench.size.compile_backend} if choice.get("compile") else {}
        try:
            with time_guard(bench.seconds_left(reserve=1)):
                model = cut_model(bench, chosen(**choice), **options)
                steps = Steps(bench, model, model)
                steps.gradients()
                gradient = model.model.language_model.layers[0].self_attn.q_proj.weight.grad.clone()
                if plain is None:
                    plain = gradient
                    continue
                gaps = differences(gradient, plain)
                bench.record.comparison(
                    f"{name}.parity", gaps["relative_l2"], GRADIENT_TOLERANCE, "relative L2", **gaps
                )
                record_steps(bench, name, steps, model)
        except Exception as error:  # a compiler that gives up is a result
            bench.record.error(name, error)
        finally:
            model = steps = gradient = None
            torch._dynamo.reset()
            reset_peak(bench.device)


STEPS: list[Callable[[Bench], None]] = [record_ceilings, full_step, lora_step, choices]
