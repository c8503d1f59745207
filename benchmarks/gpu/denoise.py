"""Denoising: time, operations, kernels and share of peak of one update, and of a whole image."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .architecture import prompt, random_model, update_flops
from .run import Bench, record_ceilings
from .timing import (
    Clock,
    Profile,
    bf16_tolerance,
    differences,
    milliseconds,
    peak_bytes,
    reset_peak,
    synchronize,
    time_guard,
)

TEXT_TOKENS = 62
# Guidance contexts and the scales that ask for them: the third is the prompt without its image.
GUIDANCE = {
    1: {"guidance_scale": 1.0, "image_guidance_scale": 1.0},
    2: {"guidance_scale": 4.0, "image_guidance_scale": 1.0},
    3: {"guidance_scale": 4.0, "image_guidance_scale": 2.0},
}
SETTINGS = {"cfg_interval": (0.0, 1.0), "cfg_renorm_type": "global", "cfg_renorm_min": 0.0, "timestep_shift": 3.0}


def denoised(
    model: Any,
    inputs: dict[str, torch.Tensor],
    side: int,
    contexts: int,
    updates: int,
    on_update: Callable[[int, dict[str, Any]], None],
) -> Any:
    """Generate one image through the public call, from the same noise every time."""

    def collect(_: Any, step: int, __: float, values: dict[str, Any]) -> None:
        on_update(step, values)

    return model.generate(
        **inputs,
        generation_mode="image",
        num_inference_steps=updates,
        height=side,
        width=side,
        generator=torch.Generator().manual_seed(3),
        callback_on_step_end=collect,
        show_progress=False,
        return_dict_in_generate=True,
        **GUIDANCE[contexts],
        **SETTINGS,
    )


def inputs_for(bench: Bench, model: Any, side: int, contexts: int) -> dict[str, torch.Tensor]:
    """A text, and for three contexts the image that is edited, as VAE and ViT blocks."""
    image: dict[str, Any] = {"vit_grid": bench.size.vit_grid, "vae_side": side} if contexts == 3 else {}
    return prompt(model.config, bench.device, min(TEXT_TOKENS, bench.size.prompt_tokens), **image)


def context_length(inputs: dict[str, torch.Tensor]) -> int:
    """Keys that every context has: shorter ones are padded to the main one."""
    return inputs["input_ids"].shape[1]


def flops_of_update(model: Any, inputs: dict[str, torch.Tensor], side: int, contexts: int) -> int:
    """Operations of one update in closed form, see `update_flops`."""
    tokens = (side // model.config.pixels_per_latent_token) ** 2
    return update_flops(model.config, tokens, [context_length(inputs)] * contexts)


def counted_flops(model: Any, inputs: dict[str, torch.Tensor], side: int, contexts: int) -> int:
    """Operations of the second update by torch's own counter."""
    totals: list[int] = []
    with FlopCounterMode(display=False) as counter:
        denoised(model, inputs, side, contexts, 2, lambda step, values: totals.append(counter.get_total_flops()))
    return totals[1] - totals[0]


def the_model(bench: Bench) -> Any:
    return bench.shared("model", lambda: random_model(bench.size.config(), bench.device))


def timed_updates(
    bench: Bench, side: int, contexts: int, start: Callable[[], None] | None = None
) -> tuple[float, torch.Tensor]:
    """Median milliseconds of an update after two warm-up ones, and the velocity of the last one's main branch.

    `start` is called after the first update.
    """
    model = the_model(bench)
    clock = Clock(bench.device)
    velocities: list[torch.Tensor] = []

    def on_update(step: int, values: dict[str, Any]) -> None:
        clock.mark()
        if step == 0 and start is not None:
            start()
        velocities[:] = [values["velocity_cond"][0]]

    denoised(model, inputs_for(bench, model, side, contexts), side, contexts, bench.size.updates + 2, on_update)
    return statistics.median(clock.intervals(warmup=1)), velocities[0]


def record_update(bench: Bench, name: str, side: int, contexts: int, time_ms: float, believed: bool = True) -> None:
    """An update's time with its rate and its share of the measured peak."""
    model = the_model(bench)
    flops = flops_of_update(model, inputs_for(bench, model, side, contexts), side, contexts)
    rate = flops / time_ms * 1e3
    bench.record.measured(
        name,
        time_ms,
        "ms",
        believed,
        tflop=flops / 1e12,
        tflop_per_second=rate / 1e12,
        share_of_measured_peak=rate / bench.flops_ceiling,
    )


def update_ms(bench: Bench, side: int, contexts: int) -> float:
    """Median time of an eager update, measured once."""
    return bench.shared(f"ms.{side}.{contexts}", lambda: timed_updates(bench, side, contexts)[0])


def updates(bench: Bench) -> None:
    """Two image sizes, one to three guidance contexts."""
    for side in bench.size.sides:
        for contexts in GUIDANCE:
            name = f"denoise.update.{side}.contexts{contexts}"
            try:
                reset_peak(bench.device)
                time_ms = update_ms(bench, side, contexts)
                record_update(bench, name, side, contexts, time_ms)
                bench.record.measured(f"{name}.peak_memory", peak_bytes(bench.device) / 1e9, "GB")
            except Exception as error:  # the other settings are still worth having
                bench.record.error(name, error)


def kernels(bench: Bench) -> None:
    """Kernels of one guided update, and their time as a share of an update's without the profiler."""
    model = the_model(bench)
    for side in bench.size.sides:
        profile = Profile(bench.device)

        def on_update(step: int, values: dict[str, Any], profile: Profile = profile) -> None:
            if step == 1:
                profile.start()
            if step == 2:
                profile.stop()

        denoised(model, inputs_for(bench, model, side, 2), side, 2, 3, on_update)
        count, busy_ms = profile.count_and_busy_milliseconds()
        bench.record.measured(f"denoise.kernels.{side}", count, "kernels")
        bench.record.measured(
            f"denoise.busy.{side}", busy_ms / update_ms(bench, side, 2), "share of the update's time"
        )


def whole_image(bench: Bench) -> None:
    """Text to image with the preset's guidance interval, from ids to pixels, autoencoder included."""
    model, side = the_model(bench), bench.size.sides[0]
    inputs = inputs_for(bench, model, side, 2)
    generate = partial(
        model.generate,
        **inputs,
        generation_mode="image",
        preset="t2i",
        height=side,
        width=side,
        show_progress=False,
    )
    generate(num_inference_steps=2)
    reset_peak(bench.device)
    synchronize(bench.device)
    started = time.perf_counter()
    generate(num_inference_steps=bench.size.image_updates)
    synchronize(bench.device)
    bench.record.measured(
        f"denoise.image.{side}", time.perf_counter() - started, "s", updates=bench.size.image_updates
    )
    bench.record.measured(f"denoise.image.{side}.peak_memory", peak_bytes(bench.device) / 1e9, "GB")


@torch.no_grad()
def reference_block(bench: Bench) -> None:
    """One single-stream block of FLUX.1's size, by diffusers: what the same card gives a well-known model."""
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    hidden, heads, image_tokens, text_tokens = bench.size.block
    length, head = image_tokens + text_tokens, hidden // heads
    options: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    with torch.device("meta"):
        block = FluxSingleTransformerBlock(hidden, heads, head, mlp_ratio=4.0)
    block = block.to(torch.bfloat16).to_empty(device=bench.device).eval()
    torch.manual_seed(0)
    for parameter in block.parameters():
        parameter.normal_(0.0, 0.02)
    angles = torch.rand(length, head, device=bench.device)
    call = partial(
        block,
        hidden_states=torch.randn(1, image_tokens, hidden, **options),
        encoder_hidden_states=torch.randn(1, text_tokens, hidden, **options),
        temb=torch.randn(1, hidden, **options),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )
    with FlopCounterMode(display=False) as counter:
        call()
    time_ms = milliseconds(call, bench.device)
    rate = counter.get_total_flops() / time_ms * 1e3
    bench.record.measured(
        "denoise.reference_block",
        time_ms,
        "ms",
        tflop_per_second=rate / 1e12,
        share_of_measured_peak=rate / bench.flops_ceiling,
        hidden=hidden,
        tokens=length,
    )


def compiled(bench: Bench) -> None:
    """Every layer compiled as a region of its own, from the second update on, so that the prompt stays eager."""
    model, contexts = the_model(bench), 2
    layers = model.model.language_model.layers
    for side in bench.size.compiled_sides:
        name = f"denoise.update.{side}.contexts{contexts}.compiled"
        try:
            _, plain = timed_updates(bench, side, contexts)

            def compile_layers() -> None:
                model.compile_repeated_blocks(backend=bench.size.compile_backend, dynamic=False)

            started = time.perf_counter()
            with (
                time_guard(bench.seconds_left(reserve=2)),
                torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
            ):
                time_ms, fast = timed_updates(bench, side, contexts, start=compile_layers)
            took = time.perf_counter() - started
            gaps = differences(fast, plain)
            limit = bf16_tolerance(len(layers))
            believed = bench.record.comparison(f"{name}.parity", gaps["relative_l2"], limit, "relative L2", **gaps)
            record_update(bench, name, side, contexts, time_ms, believed)
            bench.record.measured(f"{name}.cold_start", took, "s")
        except Exception as error:  # a compiler that gives up is a result
            bench.record.error(name, error)
        finally:
            model.decompile_repeated_blocks()
            torch._dynamo.reset()


STEPS = [record_ceilings, updates, kernels, whole_image, reference_block, compiled]
