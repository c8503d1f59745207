"""Reading a large image, and text decoding: tokens per second with each kind of cache, and share of the bandwidth."""

import statistics
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList

from unimedvl.checkpoint.compute import prefill_flops

from .architecture import decode_bytes, drawn_ids, prompt, random_model
from .run import Bench, record_ceilings
from .timing import Clock, bf16_tolerance, count_waits, differences, milliseconds, peak_bytes, reset_peak, time_guard

QUESTION_TOKENS = 62


class ForcedIds(LogitsProcessor):
    """Marks the clock at every token and answers with given ids, so that all runs decode the same text."""

    def __init__(self, clock: Clock, ids: list[int]):
        self.clock, self.ids = clock, ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Transformers may look at stopping one step late, and decode once more.
        token = self.ids[len(self.clock.marks) % len(self.ids)]
        self.clock.mark()
        forced = torch.full_like(scores, float("-inf"))
        forced[:, token] = 0.0
        return forced


def decoded(bench: Bench, model: Any, rows: int, **options: Any) -> tuple[float, torch.Tensor]:
    """Median milliseconds of a decoding step after three warm-up ones, and the logits of all steps."""
    size = bench.size
    inputs = prompt(model.config, bench.device, size.prompt_tokens, rows=rows)
    clock = Clock(bench.device)
    ids = drawn_ids(model.config, size.new_tokens, seed=7)
    output = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=size.new_tokens,
        min_new_tokens=size.new_tokens,
        logits_processor=LogitsProcessorList([ForcedIds(clock, ids)]),
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return statistics.median(clock.intervals(warmup=min(3, size.new_tokens - 2))), torch.stack(
        output.logits[: size.new_tokens]
    )


def the_model(bench: Bench) -> Any:
    """The model loaded for understanding only: decoding touches no generation weight."""

    def make() -> Any:
        config = bench.size.config()
        config.visual_gen = False
        return random_model(config, bench.device)

    return bench.shared("model", make)


def record_decoding(bench: Bench, name: str, rows: int, time_ms: float, believed: bool = True) -> None:
    """Record tokens per second, and the share of the measured bandwidth that the bytes read take."""
    model = the_model(bench)
    context = bench.size.prompt_tokens + bench.size.new_tokens // 2
    # The copy's rate counts a read and a write for each byte, a step only reads.
    floor_ms = decode_bytes(model, context, rows) / bench.bytes_ceiling * 1e3
    bench.record.measured(
        name,
        1e3 * rows / time_ms,
        "tokens/s",
        believed,
        step_ms=time_ms,
        share_of_measured_bandwidth=floor_ms / time_ms,
        context=context,
    )


@torch.no_grad()
def prefill(bench: Bench) -> None:
    """Pixels of a large image and a question to the logits of the answer's first token, into a new cache."""
    model, grid = the_model(bench), bench.size.prefill_grid
    inputs = prompt(model.config, bench.device, min(QUESTION_TOKENS, bench.size.prompt_tokens), vit_grid=grid)
    tokens = inputs["input_ids"].shape[1]
    reset_peak(bench.device)
    time_ms = milliseconds(lambda: model(**inputs, use_cache=True, logits_to_keep=1), bench.device, 3, 1)
    rate = prefill_flops(model.config, grid, tokens) / time_ms * 1e3
    bench.record.measured(
        "decode.prefill",
        time_ms,
        "ms",
        patches=grid,
        tokens=tokens,
        tflop_per_second=rate / 1e12,
        share_of_measured_peak=rate / bench.flops_ceiling,
    )
    bench.record.measured("decode.prefill.peak_memory", peak_bytes(bench.device) / 1e9, "GB")


@torch.no_grad()
def waits(bench: Bench) -> None:
    """Where the host waits for the device within the forward pass of one token after a prompt."""
    model = the_model(bench)
    inputs = prompt(model.config, bench.device, bench.size.prompt_tokens)
    cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    length = inputs["input_ids"].shape[1]
    token = inputs["input_ids"][:, -1:]
    places = torch.full_like(token, length)

    def forward(position: int) -> None:
        model(input_ids=token, position_ids=places + position, past_key_values=cache, use_cache=True)

    forward(0)
    with count_waits(bench.device) as found:
        forward(1)
    bench.record.comparison("decode.waits", len(found), 0, "waits for the device in a token", where=found[:5])


def dynamic_cache(bench: Bench) -> None:
    """The default: a cache that grows."""
    model = the_model(bench)
    for rows in (1, bench.size.batch):
        time_ms, logits = decoded(bench, model, rows)
        bench.shared(f"logits{rows}", partial(torch.Tensor.detach, logits))
        record_decoding(bench, f"decode.dynamic.batch{rows}", rows, time_ms)


def against_dynamic(
    bench: Bench, name: str, rows: int, guarded: bool = False, regions: dict[str, Any] | None = None, **options: Any
) -> None:
    """A faster way of decoding, compared with the growing cache.

    Args:
        guarded: give up where the part's time runs out.
        regions: compile every layer, with these options.
        **options: of `generate`.
    """
    model = the_model(bench)
    try:
        plain = bench.shared(f"logits{rows}", lambda: decoded(bench, model, rows)[1])
        with time_guard(bench.seconds_left(reserve=2)) if guarded else nullcontext():
            if regions is not None:
                model.compile_repeated_blocks(backend=bench.size.compile_backend, **regions)
            time_ms, logits = decoded(bench, model, rows, cache_implementation="static", **options)
        gaps = differences(logits, plain)
        limit = bf16_tolerance(model.config.text_config.num_hidden_layers)
        believed = bench.record.comparison(f"{name}.parity", gaps["relative_l2"], limit, "relative L2", **gaps)
        record_decoding(bench, name, rows, time_ms, believed)
    except Exception as error:  # a way that does not work is a result
        bench.record.error(name, error)
    finally:
        model.decompile_repeated_blocks()


def static_cache(bench: Bench) -> None:
    """A cache of fixed size, without compiling."""
    for rows in (1, bench.size.batch):
        against_dynamic(bench, f"decode.static.batch{rows}", rows, disable_compile=True)


def static_cache_regions(bench: Bench) -> None:
    """A cache of fixed size and every layer compiled as a region: one graph for the prompt, one for all tokens."""
    against_dynamic(bench, "decode.static_regions.batch1", 1, True, regions={"dynamic": False}, disable_compile=True)
    torch._dynamo.reset()


def static_cache_compiled(bench: Bench) -> None:
    """A cache of fixed size and the whole step compiled with CUDA graphs, as transformers does it by itself."""
    real = bench.size.compile_backend == "inductor"
    mode: dict[str, Any] = {"mode": "reduce-overhead"} if real else {}
    settings: Any = CompileConfig(backend=bench.size.compile_backend, fullgraph=False, dynamic=False, **mode)
    settings._compile_all_devices = True
    against_dynamic(bench, "decode.static_compiled.batch1", 1, True, compile_config=settings)


STEPS = [
    record_ceilings,
    dynamic_cache,
    prefill,
    waits,
    static_cache,
    static_cache_compiled,
    static_cache_regions,
]
