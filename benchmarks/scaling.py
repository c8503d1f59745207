"""Memory and time of the 14 B model on 1, 8 and 64 GPUs, predicted from counted parameters, bytes and operations.

    python -m benchmarks.scaling [--to benchmarks/results/scaling.json] [--documents docs]

Writes the tables of docs/scaling.md and docs/upstream-weights.md.

Nothing here was measured on a GPU. Parameters are those of the real configuration, built without memory; operations
are those of `unimedvl/checkpoint/compute.py`; `DEVICE` is what the vendor states, `EFFICIENCY` what is assumed.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.origin import origin
from benchmarks.performance import ROOT, Maker, filled, table
from unimedvl.checkpoint.compute import cache_bytes_per_token, pass_flops, prefill_flops, token_flops, update_flops
from unimedvl.checkpoint.memory import estimate_memory, size
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.upstream_weights_unimedvl import StoredTensor
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import write_json

# One H100 SXM as its data sheet has it (dense bfloat16), and a network card of 400 Gb/s for each.
DEVICE: dict[str, Any] = {
    "name": "H100 SXM 80 GB",
    "memory_bytes": 80e9,
    "flops": 989e12,
    "memory_bytes_per_second": 3.35e12,
    "link_bytes_per_second": 450e9,
    "network_bytes_per_second": 50e9,
    "devices_of_a_node": 8,
}
# Assumed shares of those rates that are reached, lower and upper.
EFFICIENCY = {"matrix products": (0.35, 0.55), "memory": (0.5, 0.8), "network": (0.6, 0.9)}
MATRIX = EFFICIENCY["matrix products"]
DEVICES = (1, 8, 64)
# Of a trained parameter under `fsdp2`: float32 weight, gradient, two moments, average.
TRAINING_BYTES = 4 + 4 + 8 + 4
FROZEN_BYTES = 4
PACK_TOKENS, SAMPLE_TOKENS = 20_000, 2_000  # of the recipes, and a typical sample of a pack
CONTEXT, IMAGE_SIDES, ANSWER = 2_048, (512, 1024), 128
UPDATES, BRANCHES = 49, 2  # of the preset for text to image: text guidance alone


def parameters(config: UniMedVLConfig) -> dict[str, int]:
    """Counts by what a mode needs: trained in stages 2 and 3, frozen there, read for a token, in one decoder layer."""
    with torch.device("meta"):
        model = UniMedVLForConditionalGeneration(config)
    counts = {"trained": 0, "frozen": 0, "reading": 0, "layer": 0, "total": 0}
    for name, weight in model.named_parameters():
        size = weight.numel()
        frozen = ".vae." in name or ".vit_model." in name or not weight.requires_grad
        counts["frozen" if frozen else "trained"] += size
        counts["total"] += size
        counts["layer"] += size * (".language_model.layers.0." in name)
        reads = "_moe_gen" not in name and not any(part in name for part in (".vae.", "llm2vae", "vae2llm", "embed"))
        counts["reading"] += size * (reads and ".vit_model." not in name)
    return counts


def between(work: float, rate: float, shares: tuple[float, float]) -> tuple[float, float]:
    """Shortest and longest seconds of some work at a rate of which a share is reached."""
    return work / (rate * shares[1]), work / (rate * shares[0])


def training(config: UniMedVLConfig, counts: dict[str, int], devices: int) -> dict[str, Any]:
    """A step of joint training (stages 2 and 3) with whole layers recomputed, one pack on every device.

    The shortest time hides all communication behind the computation, the longest none of it.
    """
    text: Any = config.text_config
    states = (TRAINING_BYTES * counts["trained"] + FROZEN_BYTES * counts["frozen"]) / devices
    # Two layers in bfloat16, the one at work and the next; a layer's gradients in float32; inputs of all layers, and
    # what one of them keeps for its backward pass.
    gathered = (2 * 2 + 4) * counts["layer"] if devices > 1 else 0
    kept = text.num_hidden_layers * text.hidden_size + 6 * text.hidden_size + 3 * text.intermediate_size
    activations = 2 * PACK_TOKENS * kept
    samples = PACK_TOKENS // SAMPLE_TOKENS
    operations = 4 * samples * pass_flops(config, SAMPLE_TOKENS, 0)  # forwards, again, and twice backwards
    low, high = between(operations, DEVICE["flops"], MATRIX)
    moved = (2 * 2 + 4) * counts["trained"] * (devices - 1) / devices  # gathered twice, gradients summed once
    node = DEVICE["devices_of_a_node"]
    rate = DEVICE["link_bytes_per_second"] if devices <= node else node * DEVICE["network_bytes_per_second"]
    sent = between(moved, rate, EFFICIENCY["network"])
    memory = states + gathered + activations
    return {
        "memory_bytes": memory,
        "fits": memory < DEVICE["memory_bytes"],
        "seconds": [max(low, sent[0]), high + sent[1]],
        "tokens_per_step": devices * PACK_TOKENS,
        "communication_seconds": list(sent),
    }


def token_seconds(config: UniMedVLConfig, counts: dict[str, int], context: int) -> list[float]:
    """Seconds of a decoded token: weights and keys are read once, or its operations take longer."""
    read = 2 * counts["reading"] + context * cache_bytes_per_token(config)
    moved = between(read, DEVICE["memory_bytes_per_second"], EFFICIENCY["memory"])
    computed = between(token_flops(config, context), DEVICE["flops"], MATRIX)
    return [max(pair) for pair in zip(moved, computed, strict=True)]


def inference(config: UniMedVLConfig, counts: dict[str, int]) -> dict[str, Any]:
    """A decoded token and images from text on one device, in bfloat16."""
    images = {}
    for side in IMAGE_SIDES:
        tokens = (side // config.pixels_per_latent_token) ** 2
        operations = UPDATES * update_flops(config, tokens, [64] * BRANCHES)
        images[str(side)] = list(between(operations, DEVICE["flops"], MATRIX))
    return {
        "weights_bytes": {"all": 2 * counts["total"], "understanding only": 2 * counts["understanding"]},
        "token_seconds": token_seconds(config, counts, CONTEXT),
        "image_seconds": images,
    }


def modes(
    config: UniMedVLConfig, counts: dict[str, int], shapes: dict[str, dict[str, StoredTensor]]
) -> dict[str, Any]:
    """Memory of the weights by dtype, KV cache, and bfloat16 seconds on one device, of what a user asks for.

    Images have a longer side of 1,024 pixels where they are made or changed, of 980 where they are read.
    """
    vision: Any = config.vision_config
    patches = vision.image_size // vision.patch_size
    latents = (IMAGE_SIDES[-1] // config.pixels_per_latent_token) ** 2
    question, seen = 64, patches**2 + 2
    shown = latents + 2 + seen
    read = between(prefill_flops(config, (patches, patches), seen + question), DEVICE["flops"], MATRIX)
    token = token_seconds(config, counts, seen + question)
    found: dict[str, Any] = {
        f"an answer of {ANSWER} tokens": {
            "weights": estimate_memory(shapes["understanding only"]),
            "cache_bytes": (seen + question + ANSWER) * cache_bytes_per_token(config),
            "seconds": [first + ANSWER * each for first, each in zip(read, token, strict=True)],
        }
    }
    # The keys of the contexts that guidance compares: all, without the text, without the image.
    drawn = {"an image from text": [question, 0], "an edit": [shown + question, shown, question]}
    for name, contexts in drawn.items():
        operations = UPDATES * update_flops(config, latents, contexts)
        found[name] = {
            "weights": estimate_memory(shapes["all"]),
            "cache_bytes": sum(contexts) * cache_bytes_per_token(config),
            "seconds": list(between(operations, DEVICE["flops"], MATRIX)),
        }
    return found


def stored_tensors(config: UniMedVLConfig) -> dict[str, StoredTensor]:
    """The tensors of a model as a checkpoint in bfloat16 would hold them, without their values."""
    with torch.device("meta"):
        model = UniMedVLForConditionalGeneration(config)
    nowhere = Path()
    return {
        name: StoredTensor(nowhere, name, "BF16", tuple(weight.shape), 0) for name, weight in model.named_parameters()
    }


def predict() -> dict[str, Any]:
    """All predictions and what they rest on."""
    config = UniMedVLConfig()
    counts = parameters(config)
    shapes = {
        "all": stored_tensors(config),
        "understanding only": stored_tensors(UniMedVLConfig(visual_gen=False)),
    }
    counts["understanding"] = sum(math.prod(stored.shape) for stored in shapes["understanding only"].values())
    return {
        "predicted": True,
        "device": DEVICE,
        "assumed_efficiency": {name: list(shares) for name, shares in EFFICIENCY.items()},
        "parameters": counts,
        "training": {str(devices): training(config, counts, devices) for devices in DEVICES},
        "inference": inference(config, counts),
        "modes": modes(config, counts, shapes),
    }


def seconds(values: list[float]) -> str:
    """A range of times."""
    low, high = values
    scale, unit = (1e3, "ms") if high < 0.1 else (1, "s")
    return f"{low * scale:.2g} to {high * scale:.2g} {unit}"


def trained(found: dict[str, Any]) -> str:
    """The table of training steps."""
    rows = []
    for devices, entry in found["training"].items():
        fits = f"{entry['memory_bytes'] / 1e9:,.0f} GB" + ("" if entry["fits"] else " (does not fit)")
        step = seconds(entry["seconds"]) if entry["fits"] else "-"
        rows.append([devices, fits, step, f"{entry['tokens_per_step']:,}"])
    return table(["GPUs", "memory of each", "seconds of a step", "tokens of a step"], rows)


def answered(found: dict[str, Any]) -> str:
    """The table of inference on one device."""
    entry = found["inference"]
    rows = [[f"weights, {mode}", f"{size / 1e9:.1f} GB"] for mode, size in entry["weights_bytes"].items()]
    rows.append([f"a token after {CONTEXT:,}", seconds(entry["token_seconds"])])
    rows += [
        [f"an image of {side} pixels, {UPDATES} updates", seconds(span)]
        for side, span in entry["image_seconds"].items()
    ]
    return table(["on one GPU, bfloat16", "predicted"], rows)


def asked(found: dict[str, Any]) -> str:
    """The table of what a user asks for."""
    rows = []
    for name, entry in found["modes"].items():
        weights = [f"{entry['weights'][kind] / 1e9:.1f} GB" for kind in ("bfloat16", "int8", "nf4")]
        rows.append([name, *weights, size(entry["cache_bytes"]), seconds(entry["seconds"])])
    return table(["one GPU, predicted", "weights, bfloat16", "int8", "nf4", "KV cache", "time, bfloat16"], rows)


DOCUMENTS: dict[str, dict[str, Maker]] = {
    "scaling.md": {
        "training": lambda results: trained(results["scaling"]),
        "inference": lambda results: answered(results["scaling"]),
    },
    "upstream-weights.md": {"modes": lambda results: asked(results["scaling"])},
}


def main(to: Path = ROOT / "benchmarks" / "results" / "scaling.json", documents: Path = ROOT / "docs") -> None:
    found = predict()
    write_json(to, {"origin": origin("predicted, not measured"), **found})
    for name, makers in DOCUMENTS.items():
        document = documents / name
        text = filled(document.read_text(encoding="utf-8"), makers, {"scaling": found})
        document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_module(main))
