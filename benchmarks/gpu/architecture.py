"""The 14B architecture with random weights made on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from unimedvl.checkpoint.compute import cache_bytes_per_token
from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind
from unimedvl.modeling_unimedvl.configuration_unimedvl import (
    UniMedVLConfig,
    UniMedVLTextConfig,
    UniMedVLVAEConfig,
    UniMedVLVisionConfig,
)
from unimedvl.modeling_unimedvl.flow_unimedvl import sinusoidal_position_table
from unimedvl.modeling_unimedvl.modeling_unimedvl import PositionEmbedding, UniMedVLForConditionalGeneration

WEIGHT_SPREAD = 0.02


@dataclass(frozen=True)
class Size:
    """What is measured at: the 14B sizes on a GPU, or a rehearsal of the same steps.

    Attributes:
        config: makes the configuration; keyword arguments change its text part.
        sides: pixels along one side of the images that are denoised, small and large.
        compiled_sides: of these, the ones that are also run compiled.
        vit_grid: patches (rows, columns) of an input image.
        updates: updates that are timed, without the warm-up.
        image_updates: updates of the whole image of each side: one less than its points in time.
        prefill_grid: patches (rows, columns) of the image that a prompt of the decoder begins with.
        prompt_tokens, new_tokens, batch: of text decoding.
        training_layers, training_images, text_tokens: the cut for training; noised images in its pack, and the tokens
            of each text.
        matmul_side, copy_bytes: what the ceilings are measured with.
        block: hidden size, heads, image tokens and text tokens of the reference block.
        compile_backend: of `torch.compile`; a rehearsal traces without compiling.
        flex_stance: of the compiler around flex attention; a rehearsal runs its plain form.
        golden_tests: golden tests that run, none for all.
    """

    name: str
    config: Callable[..., UniMedVLConfig]
    sides: tuple[int, int]
    compiled_sides: tuple[int, ...]
    vit_grid: tuple[int, int]
    updates: int
    image_updates: tuple[int, int]
    prefill_grid: tuple[int, int]
    prompt_tokens: int
    new_tokens: int
    batch: int
    training_layers: int
    training_images: int
    text_tokens: int
    matmul_side: int
    copy_bytes: int
    block: tuple[int, int, int, int]
    compile_backend: str
    flex_stance: str
    golden_tests: tuple[str, ...] = ()


def full_config(**text: Any) -> UniMedVLConfig:
    """The 14B sizes, which are the configuration's defaults."""
    return UniMedVLConfig(
        text_config=UniMedVLTextConfig(**text),
        vision_config=UniMedVLVisionConfig(),
        vae_config=UniMedVLVAEConfig(),
    )


def tiny_config(**text: Any) -> UniMedVLConfig:
    """Every part at a few thousand weights, with heads of 64 channels, which all attention kernels take."""
    sizes = {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
    }
    names = ("pad", "bos", "eos", "vision_start", "vision_end", "latent", "image")
    token_ids: dict[str, Any] = {f"{name}_token_id": 300 + index for index, name in enumerate(names)}
    return UniMedVLConfig(
        text_config=UniMedVLTextConfig(**(sizes | text)),
        vision_config=UniMedVLVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            patch_size=6,
            image_size=48,
        ),
        vae_config=UniMedVLVAEConfig(
            block_out_channels=[8, 8, 16],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        max_latent_size=8,
        vit_max_num_patch_per_side=8,
        **token_ids,
    )


SIZES = {
    "full": Size(
        name="full",
        config=full_config,
        sides=(512, 1024),
        compiled_sides=(512, 1024),
        vit_grid=(28, 28),
        updates=6,
        image_updates=(19, 49),
        prefill_grid=(70, 70),
        prompt_tokens=512,
        new_tokens=48,
        batch=16,
        training_layers=3,
        training_images=3,
        text_tokens=400,
        matmul_side=8192,
        copy_bytes=2 << 30,
        block=(3072, 24, 4096, 512),
        compile_backend="inductor",
        flex_stance="default",
    ),
    "tiny": Size(
        name="tiny",
        config=tiny_config,
        sides=(32, 64),
        compiled_sides=(32,),
        vit_grid=(3, 4),
        updates=2,
        image_updates=(3, 3),
        prefill_grid=(5, 4),
        prompt_tokens=12,
        new_tokens=4,
        batch=3,
        training_layers=1,
        training_images=2,
        text_tokens=9,
        matmul_side=64,
        copy_bytes=1 << 16,
        block=(64, 2, 24, 8),
        compile_backend="eager",
        flex_stance="force_eager",
        golden_tests=("test_text.py",),
    ),
}


def on_meta(config: UniMedVLConfig) -> UniMedVLForConditionalGeneration:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return UniMedVLForConditionalGeneration(config)


@torch.no_grad()
def random_model(
    config: UniMedVLConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> UniMedVLForConditionalGeneration:
    """A model whose weights are drawn on the device in their final dtype, so that no other copy ever exists.

    Norm weights are 1, biases 0, everything else normal with a standard deviation of 0.02; position tables and rotary
    frequencies hold what they have to.
    """
    outline: Any = on_meta(config)
    model: UniMedVLForConditionalGeneration = outline.to(dtype).to_empty(device=device).eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, WEIGHT_SPREAD)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for module in model.modules():
        if isinstance(module, PositionEmbedding):
            module.pos_embed.copy_(sinusoidal_position_table(module.pos_embed.shape[1], module.side))
    language_model = model.model.language_model
    language_model.rotary_emb = type(language_model.rotary_emb)(config.text_config).to(device)
    empty = [name for name, _ in model.named_buffers() if ".rotary_emb." not in f".{name}"]
    assert not empty, f"buffers without values: {', '.join(empty)}"
    model.generation_config.pad_token_id = config.pad_token_id
    return model


def drawn_ids(config: UniMedVLConfig, count: int, seed: int = 0) -> list[int]:
    """Ordinary token ids: none of them is special."""
    special = [getattr(config, f"{name}_token_id") for name in ("bos", "vision_start", "image", "latent")]
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(special) - 1, (count,), generator=generator).tolist()


def prompt(
    config: UniMedVLConfig,
    device: torch.device,
    text_tokens: int,
    vit_grid: tuple[int, int] | None = None,
    vae_side: int | None = None,
    rows: int = 1,
) -> dict[str, torch.Tensor]:
    """Prompts of equal length: an input image as VAE and ViT blocks where asked for, then a text of drawn ids.

    Args:
        text_tokens: tokens of the text without its two markers.
        vit_grid: patches (rows, columns) of the input image.
        vae_side: pixels along the side of the same image for the autoencoder.
        rows: prompts in the batch (without images).
    """
    blocks: list[tuple[int, int, int]] = []
    images: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    if vae_side is not None:
        blocks.append((config.latent_token_id, BlockKind.CLEAN, (vae_side // config.pixels_per_latent_token) ** 2))
        images["latent_pixel_values"] = torch.rand(1, 3, vae_side, vae_side, generator=generator) * 2 - 1
        images["latent_image_sizes"] = torch.tensor([[vae_side, vae_side]])
    if vit_grid is not None:
        vision: Any = config.vision_config
        patches, patch = vit_grid[0] * vit_grid[1], vision.patch_size
        blocks.append((config.image_token_id, BlockKind.VIT, patches))
        images["pixel_values"] = torch.rand(patches, 3 * patch**2, generator=generator) * 2 - 1
        images["image_grid_thw"] = torch.tensor([[1, *vit_grid]])
    assert rows == 1 or not images
    ids: list[int] = []
    kinds: list[int] = []
    for token, kind, count in blocks:
        ids += [config.vision_start_token_id, *[token] * count, config.vision_end_token_id]
        kinds += [0, *[int(kind)] * count, 0]
    start: Any = config.bos_token_id
    end: Any = config.eos_token_id
    batch = [[*ids, start, *drawn_ids(config, text_tokens, row), end] for row in range(rows)]
    inputs = {"input_ids": torch.tensor(batch), **images}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if images:
        width = inputs["input_ids"].shape[1]
        inputs["mm_token_type_ids"] = torch.tensor([kinds + [0] * (width - len(kinds))])
    return {name: value.to(device) for name, value in inputs.items()}


def decode_bytes(model: Any, context: int, rows: int) -> int:
    """Bytes that one decoding step has to read: the weights of a text token once, and each row's keys and values."""
    parts = [model.model.language_model.layers, model.model.language_model.norm, model.lm_head]
    weights = sum(
        parameter.numel() * parameter.element_size()
        for part in parts
        for name, parameter in part.named_parameters()
        if "_moe_gen" not in name
    )
    return weights + rows * context * cache_bytes_per_token(model.config)
