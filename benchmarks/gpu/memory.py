"""Memory: the largest allocation for understanding, for everything and with quantized weights, and the cache."""

from typing import Any

import torch
from torch import nn

from unimedvl.checkpoint.compute import cache_bytes_per_token
from unimedvl.modeling_unimedvl.loading_unimedvl import QUANTIZATION_SKIP_MODULES

from .architecture import prompt, random_model
from .run import Bench
from .timing import allocated_bytes, differences, peak_bytes, reset_peak

ANSWER_TOKENS = 8
# Products of 8-bit floating point numbers need this compute capability.
FLOAT8_CAPABILITY = (8, 9)


def record_memory(bench: Bench, name: str, model: Any, image: bool) -> None:
    """Bytes at rest, and at most while a question about an image is answered and an image is made."""
    side = bench.size.sides[0]
    bench.record.measured(f"{name}.weights", allocated_bytes(bench.device) / 1e9, "GB")
    reset_peak(bench.device)
    question = prompt(model.config, bench.device, bench.size.text_tokens, vit_grid=bench.size.vit_grid)
    ids = model.generate(**question, do_sample=False, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS)
    assert ids.shape[1] == question["input_ids"].shape[1] + ANSWER_TOKENS
    bench.record.measured(f"{name}.answer", peak_bytes(bench.device) / 1e9, "GB")
    if image:
        reset_peak(bench.device)
        request = prompt(model.config, bench.device, bench.size.text_tokens)
        pixels = model.generate(
            **request,
            generation_mode="image",
            preset="t2i",
            height=side,
            width=side,
            num_inference_steps=2,
            show_progress=False,
        )
        assert torch.isfinite(pixels).all()
        bench.record.measured(f"{name}.image", peak_bytes(bench.device) / 1e9, "GB")


def understanding(bench: Bench) -> None:
    """Loaded without the generation expert and the autoencoder; and bytes of the cache for each token."""
    config = bench.size.config()
    config.visual_gen = False
    model = random_model(config, bench.device)
    record_memory(bench, "memory.understanding", model, image=False)
    inputs = prompt(config, bench.device, bench.size.prompt_tokens)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    per_token = held / inputs["input_ids"].shape[1]
    bench.record.comparison(
        "memory.cache_per_token",
        per_token,
        cache_bytes_per_token(config),
        "bytes",
        closed_form=cache_bytes_per_token(config),
    )


def everything(bench: Bench) -> None:
    """Both experts and the autoencoder in bfloat16."""
    record_memory(bench, "memory.all", random_model(bench.size.config(), bench.device), image=True)


@torch.no_grad()
def quantize(model: Any, kind: str) -> None:
    """Replace the matrices that loading would quantize, one at a time, from weights that are already on the device."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name.startswith(tuple(QUANTIZATION_SKIP_MODULES)):
            continue
        parent_name, _, leaf = name.rpartition(".")
        weight, bias = module.weight.data, module.bias
        layer: Any
        with torch.device("meta"):
            if kind == "nf4":
                layer = bnb.nn.Linear4bit(
                    module.in_features,
                    module.out_features,
                    bias is not None,
                    compute_dtype=weight.dtype,
                    quant_type="nf4",
                )
            else:
                layer = bnb.nn.Linear8bitLt(
                    module.in_features, module.out_features, bias is not None, has_fp16_weights=False
                )
        if kind == "nf4":
            # Moving quantizes, also to the device that the weight is on.
            packed: Any = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
            layer.weight = packed.to(weight.device)
        else:
            # Moving quantizes weights of the CPU only.
            codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
            layer.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
        layer.bias = bias
        setattr(model.get_submodule(parent_name), leaf, layer)


def quantized(bench: Bench, kind: str) -> None:
    """Record the memory of a model whose experts' matrices are quantized by `kind`."""
    model = random_model(bench.size.config(), bench.device)
    quantize(model, kind)
    record_memory(bench, f"memory.{kind}", model, image=True)


def nf4(bench: Bench) -> None:
    """Both experts' matrices in 4 bits."""
    quantized(bench, "nf4")


def int8(bench: Bench) -> None:
    """Both experts' matrices in 8 bits."""
    quantized(bench, "int8")


def float8_settings(device: torch.device) -> dict[str, Any]:
    """Torchao's configuration of each kind of 8-bit floating point weights, or the reason why it cannot run.

    `float8` stores weights in 8 bits with a scale for each row, `float8_dynamic` rounds activations row by row as well
    and multiplies in 8 bits.
    """
    kinds = ("float8", "float8_dynamic")
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, PerRow
    except ImportError:
        return dict.fromkeys(kinds, "torchao is missing")
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY
    dynamic = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()) if able else None
    needed = ".".join(map(str, FLOAT8_CAPABILITY))
    return dict(
        zip(kinds, (Float8WeightOnlyConfig(), dynamic or f"needs a GPU of compute capability {needed}"), strict=True)
    )


def float8(bench: Bench) -> None:
    """Both experts' matrices in 8-bit floating point, quantized as transformers' TorchAoConfig would on loading; and
    the error of a prompt's logits against bfloat16."""
    for kind, settings in float8_settings(bench.device).items():
        name = f"memory.{kind}"
        if isinstance(settings, str):
            bench.record.not_run(name, settings)
            continue
        try:
            float8_memory(bench, name, settings)
        except Exception as error:  # the other kind is still worth having
            bench.record.error(name, error)


def float8_memory(bench: Bench, name: str, settings: Any) -> None:
    """Record memory and error of one kind."""
    from torchao.quantization import quantize_

    def is_quantized(module: nn.Module, path: str) -> bool:
        return isinstance(module, nn.Linear) and not path.startswith(tuple(QUANTIZATION_SKIP_MODULES))

    model = random_model(bench.size.config(), bench.device)
    inputs = prompt(model.config, bench.device, bench.size.text_tokens)
    with torch.no_grad():
        plain = model(**inputs, logits_to_keep=1).logits
        quantize_(model, settings, filter_fn=is_quantized)
        gaps = differences(model(**inputs, logits_to_keep=1).logits, plain)
    bench.record.measured(f"{name}.error", gaps["relative_l2"], "relative L2", True, **gaps)
    record_memory(bench, name, model, image=True)


STEPS = [understanding, everything, nf4, int8, float8]
