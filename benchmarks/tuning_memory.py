"""Memory of the presets: one training step each, in its own process, on a model whose weights outweigh the rest."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import get_peft_model
from PIL import Image
from torch import nn

from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.contexts_unimedvl import read_prompts
from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings
from unimedvl.modeling_unimedvl.image_requests_unimedvl import target_grids
from unimedvl.modeling_unimedvl.prompts_unimedvl import Prompts
from unimedvl.modeling_unimedvl.sampling_unimedvl import FlowSampler
from unimedvl.training.adapters import adapter_config, bare_model, load_with_adapter
from unimedvl.training.tuning_recipe import AdapterRecipe

from .gpu.architecture import full_config

CHECKPOINT = Path(__file__).parents[1] / "hub_cards" / "unimedvl-nano"
PRESETS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "lora-understanding": {"experts": "understanding"},
    "lora-generation": {"experts": "generation"},
    "lora-both": {"experts": "both"},
    "lora-both-vit": {"experts": "both", "vit": True},
    "dora-both": {"experts": "both", "method": "dora"},
    "qlora-both": {"experts": "both", "quantize": "nf4"},
}
# The nano's shape, made wide.
WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16}


def write_wide_checkpoint(folder: Path) -> None:
    """A random checkpoint with the nano's tokenizer and autoencoder and wide experts."""
    fields = UniMedVLConfig.from_pretrained(CHECKPOINT).to_dict()
    fields["text_config"] = {**fields["text_config"], **WIDE, "num_key_value_heads": WIDE["num_attention_heads"]}
    torch.manual_seed(0)
    UniMedVLForConditionalGeneration(UniMedVLConfig(**fields)).save_pretrained(folder)
    UniMedVLProcessor.from_pretrained(CHECKPOINT).save_pretrained(folder)


def one_step(model: nn.Module, processor: Any) -> torch.optim.Optimizer:
    """An AdamW step on one question about an image and one image to make."""
    image = {"type": "image", "image": Image.new("RGB", (64, 64), (90, 120, 150))}
    text = {"type": "text", "text": "a chest X-ray of the lungs, what is shown here?"}
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    asked = processor.apply_chat_template([[{"role": "user", "content": [image, text]}]], **options)
    loss = model(**asked, labels=asked["input_ids"]).loss
    loss.backward()
    requested = processor.apply_chat_template(
        [[{"role": "user", "content": [text]}]], generation_mode="image", **options
    )
    bare = bare_model(model)
    sampler = FlowSampler(bare, FlowSettings.unguided(10, 1.0))
    contexts = read_prompts(bare, Prompts.from_inputs(bare, requested), None)
    conditions = sampler.prepare(contexts, target_grids(bare.config, 1, 64, 64))
    state = torch.randn(*conditions.shape, bare.config.latent_dim)
    sampler.step(conditions, state, 0.5).velocity.square().mean().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    optimizer.step()
    return optimizer


def measure(checkpoint: str, preset: str) -> dict[str, int]:
    """Bytes of one training step in this process, whose memory so far is what it is compared with."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = PRESETS[preset]
    if settings is None:
        model: Any = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        model.model.vae.requires_grad_(False)
    else:
        model = load_with_adapter(checkpoint, AdapterRecipe(**settings), torch.float32)
    optimizer = one_step(model.train(), UniMedVLProcessor.from_pretrained(checkpoint))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    return {
        "peak_above_base": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024,
        "weights": sum(value.numel() * value.element_size() for value in model.parameters()),
        "trainable_parameters": sum(value.numel() for value in trained),
        "gradients": sum(value.numel() * value.element_size() for value in gradients),
        "optimizer": sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ),
    }


def upstream_counts() -> dict[str, int]:
    """Trainable parameters of every preset on the 14B model's shapes, without its weights."""
    counts = {}
    for preset, settings in PRESETS.items():
        if settings is not None and settings.get("quantize"):
            continue
        with init_empty_weights():
            model: Any = UniMedVLForConditionalGeneration(full_config())
            if settings is None:
                model.model.vae.requires_grad_(False)
            else:
                model = get_peft_model(model, adapter_config(AdapterRecipe(**settings)))
        counts[preset] = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return counts


def measure_presets() -> dict[str, Any]:
    """Every preset on the wide model, and what it would train of the 14B model."""
    presets = {}
    with tempfile.TemporaryDirectory() as folder:
        write_wide_checkpoint(Path(folder))
        for preset in PRESETS:
            command = [sys.executable, "-m", "benchmarks.tuning_memory", folder, preset]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            presets[preset] = json.loads(done.stdout.splitlines()[-1])
            print(preset, presets[preset], flush=True)
    for row in presets.values():
        row["peak_share_of_full"] = round(row["peak_above_base"] / presets["full"]["peak_above_base"], 3)
    return {"model": WIDE, "dtype": "float32", "presets": presets, "upstream_trainable_parameters": upstream_counts()}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
