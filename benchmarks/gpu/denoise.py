"""Denoising: time, operations, kernels and share of peak of one update, and of a whole image."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from unimedvl.checkpoint.compute import update_flops

from .architecture import prompt, random_model
from .run import Bench, record_ceilings
from .timing import (
    Clock,
    Profile,
    bf16_tolerance,
    count_waits,
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
# What others report for whole images of a side, in seconds and GB of memory.
PUBLISHED_IMAGE: dict[int, dict[str, Any]] = {
    512: {"system": "vLLM-Omni", "device": "H100", "points": 20, "seconds": 2.69, "memory_gb": 33.1},
    1024: {"system": "SenseNova-U1.5", "device": "H200", "points": 50, "seconds": 9.0},
}
# So many updates that the last of them lies below the preset's guidance interval: both kinds of updates are warm.
WARMUP_UPDATES = 6
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


def context_lengths(inputs: dict[str, torch.Tensor], contexts: int) -> list[int]:
    """Keys of each guidance context: the whole prompt, then it without its text, then its text alone."""
    length = inputs["input_ids"].shape[1]
    kinds = inputs.get("mm_token_type_ids")
    # An image's block is its placeholders and two markers.
    images = 0 if kinds is None else int((kinds > 0).sum() + 2 * len(kinds[kinds > 0].unique()))
    return [length, images, length - images][:contexts]


def flops_of_update(model: Any, inputs: dict[str, torch.Tensor], side: int, contexts: int) -> int:
    """Operations of one update in closed form, see `update_flops`."""
    tokens = (side // model.config.pixels_per_latent_token) ** 2
    return update_flops(model.config, tokens, context_lengths(inputs, contexts))


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


def generated(model: Any, inputs: dict[str, torch.Tensor], side: int, updates: int) -> torch.Tensor:
    """Text to image with the preset's guidance interval, from ids to pixels and from the same noise every time."""
    return model.generate(
        **inputs,
        generation_mode="image",
        preset="t2i",
        num_inference_steps=updates,
        height=side,
        width=side,
        generator=torch.Generator().manual_seed(3),
        show_progress=False,
    )


def record_image(bench: Bench, name: str, side: int, updates: int, believed: bool = True) -> torch.Tensor:
    """Time and memory of a whole image after a warm-up one, and its pixels."""
    model = the_model(bench)
    inputs = inputs_for(bench, model, side, 2)
    generated(model, inputs, side, WARMUP_UPDATES)
    reset_peak(bench.device)
    synchronize(bench.device)
    started = time.perf_counter()
    pixels = generated(model, inputs, side, updates)
    synchronize(bench.device)
    took = time.perf_counter() - started
    published = PUBLISHED_IMAGE.get(side)
    bench.record.measured(name, took, "s", believed, updates=updates, points=updates + 1, published=published)
    bench.record.measured(f"{name}.peak_memory", peak_bytes(bench.device) / 1e9, "GB")
    return pixels


def whole_images(bench: Bench) -> None:
    """Each side with its own number of updates, autoencoder included."""
    for side, updates in zip(bench.size.sides, bench.size.image_updates, strict=True):
        name = f"denoise.image.{side}"
        try:
            with time_guard(bench.seconds_left(reserve=2)):
                bench.shared(f"image.{side}", partial(record_image, bench, name, side, updates))
        except Exception as error:  # the other side is still worth having
            bench.record.error(name, error)


def waits(bench: Bench) -> None:
    """Where the host waits for the device within a guided update."""
    model, side, counted = the_model(bench), bench.size.sides[0], ExitStack()
    found: list[list[str]] = []

    def on_update(step: int, values: dict[str, Any]) -> None:
        if step == 0:
            found.append(counted.enter_context(count_waits(bench.device)))
        if step == 1:
            counted.close()

    with counted:
        denoised(model, inputs_for(bench, model, side, 2), side, 2, 3, on_update)
    bench.record.comparison("denoise.waits", len(found[0]), 0, "waits for the device in an update", where=found[0][:5])


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
    """Every layer compiled as a region of its own: an update with the prompt read eagerly, then whole images."""
    model, contexts, believed = the_model(bench), 2, {}
    sizes = dict(zip(bench.size.sides, bench.size.image_updates, strict=True))
    for side in bench.size.compiled_sides:
        name = f"denoise.update.{side}.contexts{contexts}.compiled"
        try:
            believed[side] = compiled_update(bench, name, side, contexts)
        except Exception as error:  # a compiler that gives up is a result
            bench.record.error(name, error)
        finally:
            model.decompile_repeated_blocks()
    for side in bench.size.compiled_sides:
        name = f"denoise.image.{side}.compiled"
        if not believed.get(side):
            bench.record.not_run(name, "no compiled update of this side agreed with the eager one")
            continue
        try:
            with time_guard(bench.seconds_left(reserve=1)), _one_graph_each():
                model.compile_repeated_blocks(backend=bench.size.compile_backend, dynamic=False)
                pixels = record_image(bench, name, side, sizes[side])
            plain = bench.shared(f"image.{side}", partial(_eager_image, bench, side, sizes[side]))
            gaps = differences(pixels, plain)
            bench.record.measured(f"{name}.difference", gaps["relative_l2"], "relative L2", True, **gaps)
        except Exception as error:
            bench.record.error(name, error)
        finally:
            model.decompile_repeated_blocks()
    torch._dynamo.reset()


def compiled_update(bench: Bench, name: str, side: int, contexts: int) -> bool:
    """Record an update whose layers are compiled from the second one on; whether it agrees with the eager one."""
    model = the_model(bench)
    _, plain = timed_updates(bench, side, contexts)

    def compile_layers() -> None:
        model.compile_repeated_blocks(backend=bench.size.compile_backend, dynamic=False)

    started = time.perf_counter()
    with time_guard(bench.seconds_left(reserve=2)), _one_graph_each():
        time_ms, fast = timed_updates(bench, side, contexts, start=compile_layers)
    took = time.perf_counter() - started
    gaps = differences(fast, plain)
    limit = bf16_tolerance(model.config.text_config.num_hidden_layers)
    believed = bench.record.comparison(f"{name}.parity", gaps["relative_l2"], limit, "relative L2", **gaps)
    record_update(bench, name, side, contexts, time_ms, believed)
    bench.record.measured(f"{name}.cold_start", took, "s")
    return believed


def _one_graph_each() -> Any:
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


def _eager_image(bench: Bench, side: int, updates: int) -> torch.Tensor:
    model = the_model(bench)
    model.decompile_repeated_blocks()
    return generated(model, inputs_for(bench, model, side, 2), side, updates)


STEPS = [record_ceilings, updates, kernels, waits, whole_images, reference_block, compiled]
