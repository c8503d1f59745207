"""Synthetic checkpoints in the upstream BAGEL / UniMedVL layout, of any size, written without holding them.

Names and shapes are spelled out here on their own: they are what the converter is tested against.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

BLOCK = 1 << 20
NUM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}
TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}
POSITION_TABLES = ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed")
BROKEN_ROOT_CONFIG = '{"name": "BAGEL-7B-MoT",}\n'


@dataclass(frozen=True)
class Sizes:
    """Sizes of an upstream model; every number differs from the others of its kind, so that a mix-up shows."""

    hidden: int = 32
    intermediate: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 160
    vit_hidden: int = 24
    vit_intermediate: int = 40
    vit_layers: int = 3
    vit_heads: int = 2
    vit_patch: int = 6
    vit_side: int = 9
    latent_side: int = 12
    latent_patch: int = 2
    latent_channels: int = 6
    channels: tuple[int, ...] = (32, 64, 32)
    res_blocks: int = 1

    @property
    def token_values(self) -> int:
        return self.latent_patch**2 * self.latent_channels


TWO_GIGABYTES = Sizes(
    hidden=1024,
    intermediate=4096,
    layers=30,
    heads=16,
    kv_heads=4,
    vocabulary=50000,
    vit_hidden=384,
    vit_intermediate=1536,
    vit_layers=6,
    vit_heads=6,
    vit_patch=14,
    vit_side=32,
    latent_side=32,
    latent_channels=16,
    channels=(64, 128, 256),
    res_blocks=2,
)


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return {**shapes, f"{name}.bias": (outputs,)} if bias else shapes


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def convolution(name: str, inputs: int, outputs: int, kernel: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def main_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of `ema.safetensors`."""
    hidden, head = sizes.hidden, sizes.hidden // sizes.heads
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (sizes.vocabulary, hidden),
        "language_model.lm_head.weight": (sizes.vocabulary, hidden),
        "vit_pos_embed.pos_embed": (sizes.vit_side**2, hidden),
        "latent_pos_embed.pos_embed": (sizes.latent_side**2, hidden),
    }
    for expert in ("", "_moe_gen"):
        shapes[f"language_model.model.norm{expert}.weight"] = (hidden,)
        for layer in range(sizes.layers):
            prefix = f"language_model.model.layers.{layer}"
            for name in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{prefix}.{name}{expert}.weight"] = (hidden,)
            attention = f"{prefix}.self_attn"
            for name, width in (("q", hidden), ("k", sizes.kv_heads * head), ("v", sizes.kv_heads * head)):
                shapes |= linear(f"{attention}.{name}_proj{expert}", hidden, width)
            shapes |= linear(f"{attention}.o_proj{expert}", hidden, hidden, bias=False)
            shapes |= {f"{attention}.{name}_norm{expert}.weight": (head,) for name in "qk"}
            for name in ("gate", "up"):
                shapes |= linear(f"{prefix}.mlp{expert}.{name}_proj", hidden, sizes.intermediate, bias=False)
            shapes |= linear(f"{prefix}.mlp{expert}.down_proj", sizes.intermediate, hidden, bias=False)
    vit, width = "vit_model.vision_model", sizes.vit_hidden
    shapes |= linear(f"{vit}.embeddings.patch_embedding", 3 * sizes.vit_patch**2, width)
    shapes[f"{vit}.embeddings.position_embedding.weight"] = (sizes.vit_side**2, width)
    for layer in range(sizes.vit_layers):
        prefix = f"{vit}.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{prefix}.self_attn.{name}", width, width)
        shapes |= norm(f"{prefix}.layer_norm1", width) | norm(f"{prefix}.layer_norm2", width)
        shapes |= linear(f"{prefix}.mlp.fc1", width, sizes.vit_intermediate)
        shapes |= linear(f"{prefix}.mlp.fc2", sizes.vit_intermediate, width)
    shapes |= norm(f"{vit}.post_layernorm", width)
    shapes |= linear("connector.fc1", width, hidden) | linear("connector.fc2", hidden, hidden)
    shapes |= linear("time_embedder.mlp.0", 256, hidden) | linear("time_embedder.mlp.2", hidden, hidden)
    shapes |= linear("vae2llm", sizes.token_values, hidden) | linear("llm2vae", hidden, sizes.token_values)
    return shapes


def autoencoder_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of `ae.safetensors`: the FLUX autoencoder."""
    shapes: dict[str, tuple[int, ...]] = {}

    def resnet(name: str, inputs: int, outputs: int):
        nonlocal shapes
        shapes |= norm(f"{name}.norm1", inputs) | convolution(f"{name}.conv1", inputs, outputs)
        shapes |= norm(f"{name}.norm2", outputs) | convolution(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            shapes |= convolution(f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(half: str, width: int):
        nonlocal shapes
        resnet(f"{half}.mid.block_1", width, width)
        shapes |= norm(f"{half}.mid.attn_1.norm", width)
        for name in ("q", "k", "v", "proj_out"):
            shapes |= convolution(f"{half}.mid.attn_1.{name}", width, width, 1)
        resnet(f"{half}.mid.block_2", width, width)

    channels = sizes.channels
    shapes |= convolution("encoder.conv_in", 3, channels[0])
    width = channels[0]
    for level, outputs in enumerate(channels):
        for block in range(sizes.res_blocks):
            resnet(f"encoder.down.{level}.block.{block}", width, outputs)
            width = outputs
        if level < len(channels) - 1:
            shapes |= convolution(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", width)
    shapes |= norm("encoder.norm_out", width) | convolution("encoder.conv_out", width, 2 * sizes.latent_channels)
    shapes |= convolution("decoder.conv_in", sizes.latent_channels, width)
    middle("decoder", width)
    for level in reversed(range(len(channels))):
        for block in range(sizes.res_blocks + 1):
            resnet(f"decoder.up.{level}.block.{block}", width, channels[level])
            width = channels[level]
        if level:
            shapes |= convolution(f"decoder.up.{level}.upsample.conv", width, width)
    shapes |= norm("decoder.norm_out", width) | convolution("decoder.conv_out", width, 3)
    return shapes


def write_random(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], seed: int = 0) -> None:
    """A safetensors file of random values in [-1, 1): name to (safetensors type name, shape)."""
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    ordered = dict(sorted(tensors.items(), key=lambda entry: -NUM_BYTES[entry[1][0]]))
    for name, (dtype, shape) in ordered.items():
        end = offset + torch.Size(shape).numel() * NUM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = torch.Generator().manual_seed(seed)
    values = 2 * torch.rand(2 * BLOCK, generator=generator) - 1
    blocks = {name: values.to(dtype) for name, dtype in TORCH_TYPES.items()}
    with open(path, "wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for dtype, shape in ordered.values():
            left = torch.Size(shape).numel()
            while left:
                start = int(torch.randint(BLOCK, (), generator=generator))
                piece = blocks[dtype][start : start + min(left, BLOCK)]
                handle.write(piece.view(torch.uint8).numpy())
                left -= len(piece)


def write_upstream(
    folder: Path,
    sizes: Sizes | None = None,
    *,
    weights: str = "ema",
    autoencoder: str | None = "ae.safetensors",
    dtype: str = "BF16",
    declared_vit_layers: int | None = None,
    root: str | None = "bagel",
    rename: Callable[[str], str] = str,
    keep: Callable[[str], bool] = bool,
    extra: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
    autoencoder_inside: bool = False,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write an upstream folder.

    Args:
        weights: name of the main weight file.
        autoencoder: name of the autoencoder's file, or None for none.
        dtype: type of all tensors but the position tables and the autoencoder, which are float32.
        declared_vit_layers: what `vit_config.json` counts; one more than there are by default.
        root: "bagel" for a stale root config, "broken" for one that is no JSON, None for none.
        rename: applied to the names of the main file.
        keep: which tensors to write.
        extra: further or replaced tensors of the main file.
        autoencoder_inside: put the autoencoder into the main file as `vae_model.*`, too.
        shards: number of main weight files, joined by an index.
    """
    sizes = sizes or Sizes()
    folder.mkdir(parents=True, exist_ok=True)
    main = {rename(name): (dtype, shape) for name, shape in main_shapes(sizes).items() if keep(name)}
    main.update({rename(name): ("F32", main[rename(name)][1]) for name in POSITION_TABLES if rename(name) in main})
    flux = {name: ("F32", shape) for name, shape in autoencoder_shapes(sizes).items() if keep(name)}
    if autoencoder_inside:
        main.update({rename(f"vae_model.{name}"): entry for name, entry in flux.items()})
    main.update(extra or {})
    if shards == 1:
        write_random(folder / f"{weights}.safetensors", main, seed)
    else:
        files = [f"{weights}-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
        weight_map = {name: files[index % shards] for index, name in enumerate(main)}
        for index, file in enumerate(files):
            part = {name: main[name] for name in main if weight_map[name] == file}
            write_random(folder / file, part, seed + 10 + index)
        if autoencoder is not None:
            weight_map.update(dict.fromkeys(flux, autoencoder))
        index_file = folder / f"{weights}.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if autoencoder is not None:
        write_random(folder / autoencoder, flux, seed + 1)
    write_configs(folder, sizes, declared_vit_layers, root)
    return folder


def write_configs(folder: Path, sizes: Sizes, declared_vit_layers: int | None = None, root: str | None = "bagel"):
    """The configuration files of an upstream folder."""
    llm = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 4096,
        "max_window_layers": sizes.layers,
        "use_sliding_window": False,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 150,
        "eos_token_id": 151,
    }
    vit = {
        "model_type": "siglip_vision_model",
        "hidden_size": sizes.vit_hidden,
        "intermediate_size": sizes.vit_intermediate,
        "num_hidden_layers": sizes.vit_layers + 1 if declared_vit_layers is None else declared_vit_layers,
        "num_attention_heads": sizes.vit_heads,
        "patch_size": sizes.vit_patch,
        "image_size": sizes.vit_side * sizes.vit_patch,
    }
    # Stale on purpose, as in the release: every number of it is wrong.
    stale = {
        "model_type": "bagel",
        "llm_config": {**llm, "hidden_size": 3584},
        "vit_config": {**vit, "num_hidden_layers": 99},
        "vae_config": {"z_channels": 99, "downsample": 3, "scale_factor": 0.25, "shift_factor": 0.5},
        "latent_patch_size": 7,
        "max_latent_size": 32,
        "vit_max_num_patch_per_side": 5,
        "connector_act": "gelu",
        "interpolate_pos": True,
        "timestep_shift": 4.0,
    }
    (folder / "llm_config.json").write_text(json.dumps(llm, indent=4))
    (folder / "vit_config.json").write_text(json.dumps(vit, indent=4))
    if root is not None:
        (folder / "config.json").write_text(BROKEN_ROOT_CONFIG if root == "broken" else json.dumps(stale))


def write_tokenizer_files(folder: Path, ids: Mapping[str, int]) -> None:
    """Files in the form of Qwen2's tokenizer, whose added tokens are `ids`."""
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {str(number): {"content": token, "special": True} for token, number in ids.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
