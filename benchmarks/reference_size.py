"""The size at which speed is counted and compared on a processor, and its inputs.

It replaces the model of 46 M weights that an audit compared with the original code: hidden size 512, 6 layers,
8 query and 2 key/value heads, 4,096 ids, a ViT of 4 layers and 192 channels, an autoencoder of 5.3 M weights. The
audit left the width of the MLPs and the lengths of its prompts open. The values here give its closed form of a
guidance branch at 256 pixels (8.758 GFLOP without the time embedding), its operations of a guided update (642 from
text, 643 with an image) and, within 1 %, its bytes (268 and 455 MB), all at the tree that was audited.
"""

from typing import Any

import torch

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.configuration_unimedvl import (
    UniMedVLConfig,
    UniMedVLTextConfig,
    UniMedVLVAEConfig,
    UniMedVLVisionConfig,
)

from .gpu.architecture import drawn_ids, prompt, random_model

DEVICE = torch.device("cpu")
# Tokens of the prompts' text without its two markers, and patches of the image that is edited.
TEXT_TOKENS = 316
VIT_GRID = (18, 18)
# The counted pack; side of its noised images in latent tokens, and patches of its ViT images.
PACK_SAMPLES, PACK_TOKENS = 6, 2908
NOISED_SIDE, PACKED_GRID = 16, (16, 16)
SPECIAL_TOKENS = ("pad", "bos", "eos", "vision_start", "vision_end", "latent", "image")


def reference_config(**text: Any) -> UniMedVLConfig:
    """The configuration; keyword arguments change its text part."""
    sizes: dict[str, Any] = {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
    }
    token_ids: dict[str, Any] = {f"{name}_token_id": 4000 + index for index, name in enumerate(SPECIAL_TOKENS)}
    return UniMedVLConfig(
        text_config=UniMedVLTextConfig(**(sizes | text)),
        vision_config=UniMedVLVisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3
        ),
        vae_config=UniMedVLVAEConfig(block_out_channels=[32, 64, 128, 128]),
        **token_ids,
    )


def reference_model(**text: Any) -> Any:
    """The model with random float32 weights."""
    return random_model(reference_config(**text), DEVICE, torch.float32)


def image_prompt(config: UniMedVLConfig, side: int, edited: bool = False) -> dict[str, torch.Tensor]:
    """A text, with the image of `side` pixels before it that is `edited`."""
    image: dict[str, Any] = {"vit_grid": VIT_GRID, "vae_side": side} if edited else {}
    return prompt(config, DEVICE, TEXT_TOKENS, **image)


def training_pack(
    config: UniMedVLConfig, samples: int = PACK_SAMPLES, tokens: int = PACK_TOKENS, only: int | None = None
) -> dict[str, Any]:
    """A pack of samples in turn from text to an image, and from an image and a question to an answer.

    Args:
        samples: number of samples.
        tokens: of the whole pack.
        only: the number of the one sample that is packed; all by default.
    """
    side, grid = NOISED_SIDE, PACKED_GRID
    kinds = [number % 2 == 0 for number in range(samples)]
    fixed = sum(side**2 + 4 if is_drawn else grid[0] * grid[1] + 6 for is_drawn in kinds)
    words = [(tokens - fixed + number) // samples for number in range(samples)]
    blocks: list[list[Block]] = []
    for number, (is_drawn, count) in enumerate(zip(kinds, words, strict=True)):
        ids = drawn_ids(config, count, seed=number)
        text = [Block(BlockKind.TEXT, token_ids=ids), Block(BlockKind.NOISED, grid=(side, side))]
        question, answer = ids[: count // 2], ids[count // 2 :]
        seen = [
            Block(BlockKind.VIT, grid=grid),
            Block(BlockKind.TEXT, token_ids=question),
            Block(BlockKind.TEXT, token_ids=answer, loss=True),
        ]
        blocks.append(text if is_drawn else seen)
    if only is not None:
        blocks, kinds = [blocks[only]], [kinds[only]]
    names = ("bos", "eos", "vision_start", "vision_end", "image", "latent")
    pack: dict[str, Any] = dict(
        pack_samples(blocks, **{f"{name}_token_id": getattr(config, f"{name}_token_id") for name in names})
    )
    vae: Any = config.vae_config
    vision: Any = config.vision_config
    cells, noised = side * config.latent_patch_size, sum(kinds)
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    viewed = len(kinds) - noised
    if viewed:
        pack["pixel_values"] = draw(viewed * grid[0] * grid[1], 3 * vision.patch_size**2).clamp(-1, 1)
        pack["image_grid_thw"] = torch.tensor([[1, *grid]] * viewed)
    if noised:
        pack["latent_values"] = [draw(vae.latent_channels, cells, cells) for _ in range(noised)]
        pack["flow_noise"] = draw(noised * side**2, config.latent_dim)
        pack["flow_timesteps"] = draw(noised).sigmoid()
    return pack
