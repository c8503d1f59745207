"""The untrained checkpoint from which the nano's stages start: random weights, a trained autoencoder, maybe a ViT."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_model
from transformers import AutoTokenizer

from unimedvl.checkpoint.loading import load
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.upstream_layout_unimedvl import default_generation_config
from unimedvl.utils.json_files import read_json

from .model import VISION_FILE, build_config, build_processor, initialize_attention, initialize_vision, nano_presets


def prepare_start(work: Path, autoencoder: str, vision: Path | None, seed: int) -> int:
    """Write the untrained checkpoint with its autoencoder and, if given, its pre-trained ViT; returns its size."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    trained, arguments = load_autoencoder(autoencoder)
    config = build_config(tokenizer, arguments)
    torch.manual_seed(seed)
    model = UniMedVLForConditionalGeneration(config)
    initialize_attention(model.model.language_model)
    model.model.vae.load_state_dict(trained)
    if vision is None:
        initialize_vision(model.model.vit_model)
    else:
        load_model(model.model.vit_model, vision / VISION_FILE)
    settings: Any = default_generation_config(config)
    settings.task_presets = nano_presets(settings.task_presets)
    model.generation_config = settings
    model.save_pretrained(work / "start")
    build_processor(tokenizer, config).save_pretrained(work / "start")
    return sum(parameter.numel() for parameter in model.parameters())


def load_autoencoder(folder: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and configuration of a trained autoencoder: its own folder, or a checkpoint that holds one."""
    if read_json(Path(folder) / "config.json").get("model_type") == "unimedvl":
        model = load(folder, device="cpu").model
        return model.model.vae.state_dict(), model.config.vae_config.to_dict()
    autoencoder = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return autoencoder.state_dict(), dict(autoencoder.config)
