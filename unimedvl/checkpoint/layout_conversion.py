"""Checkpoints from the upstream BAGEL / UniMedVL layout to ours and back, exact in every name and byte.

Everything is checked before anything is written.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling_unimedvl.configuration_unimedvl import (
    UniMedVLConfig,
    UniMedVLTextConfig,
    UniMedVLVAEConfig,
    UniMedVLVisionConfig,
)
from ..modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from ..modeling_unimedvl.upstream_layout_unimedvl import (
    build_config,
    default_generation_config,
    derive_config,
    is_upstream_layout,
)
from ..modeling_unimedvl.upstream_weights_unimedvl import (
    AUTOENCODER_HALVES,
    FLOAT_TYPES,
    GENERATION_HALF,
    WEIGHT_NAMES,
    WeightNames,
    indexed_files,
    model_shapes,
    read_headers,
    require_exact_fit,
    upstream_shape,
    upstream_tensors,
)
from ..utils.json_files import read_json, write_json
from .writer import OutgoingTensor, new_folder, total_bytes, write_files

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes:
        output: the new folder.
        config: the configuration of the checkpoint.
        num_tensors, num_bytes: how many tensors, and their size without headers.
        weight_files: names of the weight files.
        unused: tensors of the source that neither the reference nor we use, left out.
        tokenizer_files: names of the tokenizer files that were copied.
    """

    output: Path
    config: UniMedVLConfig
    num_tensors: int
    num_bytes: int
    weight_files: tuple[str, ...]
    unused: tuple[str, ...]
    tokenizer_files: tuple[str, ...]


def convert_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
    finish: Callable[[Path], None] | None = None,
) -> ConversionReport:
    """Convert a folder in the upstream layout into a transformers checkpoint.

    Args:
        source: the upstream folder. Symbolic links, as in the Hub's cache, are followed.
        output: the folder to write; it must not exist, or be empty.
        dtype: "float32", "bfloat16" or "float16" for all tensors; as stored by default.
        max_shard_size: largest weight file, in bytes or like "500MB".
        weights: "ema_bf16", "ema", "model_bf16" or "model"; the first of these that is there by default.
        overrides: `visual_gen=False` to leave the generation half out, and special token ids by their field names
            for a folder without tokenizer files.
        progress: show a progress bar on a terminal.
        finish: called with the folder when all but the weights is in it, to add files such as a processor; an
            exception cancels the conversion.

    Raises:
        ValueError: before anything is written, if the source is not whole, or if the output cannot be written;
            afterwards, with nothing left behind, if a value does not fit `dtype` or the disk is full.
    """
    source, target = _source_folder(source), _target_folder(output)
    if not is_upstream_layout(source):
        raise ValueError(
            f"{source} is not in the upstream layout: it needs llm_config.json and vit_config.json, and no "
            "config.json of a checkpoint that is already converted."
        )
    target_type, overrides = _float_type(dtype), dict(overrides or {})
    tensors, unused = upstream_tensors(source, weights)
    config = _build_config(source, derive_config(source, tensors, overrides))
    names = _weight_names(config)
    if overrides.get("visual_gen") is False:
        tensors = {key: stored for key, stored in tensors.items() if not _is_generation(names.to_ours(key))}
    full, required = _expected(config)
    known = {_upstream_name(names, name): upstream_shape(name, shape) for name, shape in full.items()}
    require_exact_fit(source, tensors, known, [_upstream_name(names, name) for name in required])
    items = {}
    for key, stored in tensors.items():
        name = names.to_ours(key)
        assert name is not None, key
        items[name] = OutgoingTensor(stored, full[name], target_type or FLOAT_TYPES[stored.dtype])
    items = {name: items[name] for name in full if name in items}
    if target_type is not None:
        config.dtype = target_type
    shards = _split(items, max_shard_size)
    tokenizer_files = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    with new_folder(target, total_bytes(items)) as partial:
        if len(shards) > 1:
            weight_map = {name: file for file, group in shards.items() for name in group}
            write_json(
                partial / SAFE_WEIGHTS_INDEX_NAME,
                {"metadata": {"total_size": total_bytes(items)}, "weight_map": weight_map},
                indent=2,
            )
        config.save_pretrained(partial)
        default_generation_config(config).save_pretrained(partial)
        _copy(source, partial, tokenizer_files)
        custom_object_save(UniMedVLForConditionalGeneration, partial)
        if finish is not None:
            finish(partial)
        write_files({partial / name: group for name, group in shards.items()}, progress)
    return ConversionReport(
        target, config, len(items), total_bytes(items), tuple(shards), tuple(unused), tokenizer_files
    )


def export_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    weights: str = "ema",
    progress: bool = True,
    finish: Callable[[Path], None] | None = None,
) -> ConversionReport:
    """Write a checkpoint of ours in the upstream layout, for the reference's own code.

    The layout has one file for the model and one for the autoencoder, however large.

    Args:
        source: folder of a checkpoint of ours.
        output: the folder to write; it must not exist, or be empty.
        dtype: as for `convert_checkpoint`.
        weights: name of the main weight file, one of "ema_bf16", "ema", "model_bf16", "model".
        progress, finish: as for `convert_checkpoint`.

    Raises:
        ValueError: as for `convert_checkpoint`.
    """
    source, target = _source_folder(source), _target_folder(output)
    if is_upstream_layout(source) or not (source / "config.json").is_file():
        raise ValueError(f"{source} is not a checkpoint of ours: give a folder that convert or save_pretrained wrote.")
    if weights not in WEIGHT_NAMES:
        raise ValueError(f"weights must be one of {', '.join(WEIGHT_NAMES)}, not {weights!r}.")
    target_type = _float_type(dtype)
    config = _build_config(source, read_json(source / "config.json"))
    index = source / SAFE_WEIGHTS_INDEX_NAME
    files = indexed_files(index) if index.is_file() else [source / SAFE_WEIGHTS_NAME]
    tensors = {stored.key: stored for stored in read_headers(files)}
    names = _weight_names(config)
    full, required = _expected(config)
    require_exact_fit(source, tensors, full, required)
    groups: dict[str, dict[str, OutgoingTensor]] = {f"{weights}.safetensors": {}, "ae.safetensors": {}}
    for name, stored in tensors.items():
        item = OutgoingTensor(stored, upstream_shape(name, stored.shape), target_type or FLOAT_TYPES[stored.dtype])
        key = _upstream_name(names, name)
        groups["ae.safetensors" if key.startswith(AUTOENCODER_HALVES) else f"{weights}.safetensors"][key] = item
    vae = config.vae_config
    assert isinstance(vae, UniMedVLVAEConfig)
    if groups["ae.safetensors"] and not vae.mid_block_add_attention:
        raise ValueError(
            f"the upstream layout holds FLUX autoencoders, and that of {source} has no attention in its middle: keep "
            "it in the layout of transformers."
        )
    groups = {file: group for file, group in groups.items() if group}
    num_bytes = sum(map(total_bytes, groups.values()))
    tokenizer_files = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    with new_folder(target, num_bytes) as partial:
        for file, content in _upstream_configs(config).items():
            write_json(partial / file, content, indent=2)
        _copy(source, partial, tokenizer_files)
        if finish is not None:
            finish(partial)
        write_files({partial / name: group for name, group in groups.items()}, progress)
    return ConversionReport(target, config, len(tensors), num_bytes, tuple(groups), (), tokenizer_files)


def _upstream_configs(config: UniMedVLConfig) -> dict[str, dict]:
    """The three configuration files of the upstream layout, by file name."""
    text, vision, vae = config.text_config, config.vision_config, config.vae_config
    assert isinstance(text, UniMedVLTextConfig) and text.rope_parameters is not None
    assert isinstance(vision, UniMedVLVisionConfig) and isinstance(vae, UniMedVLVAEConfig)
    copied = (
        *("hidden_act", "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings"),
        *("max_window_layers", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"),
        *("attention_dropout", "use_cache", "use_sliding_window", "vocab_size", "freeze_und"),
    )
    llm = {name: getattr(text, name) for name in copied}
    rope = dict(text.rope_parameters)
    llm.update(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        rope_theta=rope.pop("rope_theta"),
        tie_word_embeddings=False,
        qk_norm=True,
        layer_module="Qwen2MoTDecoderLayer",
        torch_dtype=str(config.dtype or torch.float32).removeprefix("torch."),
    )
    llm.update({name: getattr(text, name) for name in ("head_dim", "sliding_window") if getattr(text, name, None)})
    if rope.get("rope_type", "default") != "default":
        llm["rope_scaling"] = rope
    vit = {
        name: getattr(vision, name)
        for name in (
            *("attention_dropout", "hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps"),
            *("num_attention_heads", "num_channels", "patch_size"),
        )
    }
    # The reference's loaders drop the last layer of what this file declares.
    vit.update(model_type="siglip_vision_model", num_hidden_layers=vision.num_hidden_layers + 1)
    channels = vae.block_out_channels
    root = {
        name: getattr(config, name)
        for name in (
            *("visual_gen", "latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side"),
            *("connector_act", "interpolate_pos", "timestep_shift"),
        )
    }
    root.update(
        model_type="bagel",
        visual_und=True,
        llm_config=llm,
        vit_config=vit,
        vae_config={
            "resolution": 256,
            "in_channels": vae.in_channels,
            "out_ch": vae.out_channels,
            "ch": channels[0],
            "ch_mult": [width // channels[0] for width in channels],
            "num_res_blocks": vae.layers_per_block,
            "z_channels": vae.latent_channels,
            "downsample": vae.downsample,
            "scale_factor": vae.scaling_factor,
            "shift_factor": vae.shift_factor,
            # The reference's autoencoder always has 32: for ours to read back.
            **({} if vae.norm_num_groups == 32 else {"norm_num_groups": vae.norm_num_groups}),
        },
    )
    return {"config.json": root, "llm_config.json": llm, "vit_config.json": vit}


# --------------------------------------------------------------------------------------------------------------------
# Checks and plans


def _source_folder(source: str | os.PathLike) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(source)!r}: give the folder of a downloaded checkpoint.")
    return folder


def _target_folder(output: str | os.PathLike) -> Path:
    target = Path(output).expanduser().resolve()
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists():
        raise ValueError(f"{target} exists already: choose another output folder, or empty it first.")
    return target


def _float_type(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    choices = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.bfloat16, torch.float16)}
    name = str(dtype).removeprefix("torch.")
    if name not in choices:
        raise ValueError(f"dtype must be one of {', '.join(choices)}, not {dtype!r}.")
    return choices[name]


def _build_config(folder: Path, fields: dict) -> UniMedVLConfig:
    if fields.get("model_type") != UniMedVLConfig.model_type:
        raise ValueError(f"{folder} is a checkpoint of type {fields.get('model_type')!r}, not of 'unimedvl'.")
    config = build_config(UniMedVLConfig, folder, fields)
    assert isinstance(config, UniMedVLConfig)
    return config


def _weight_names(config: UniMedVLConfig) -> WeightNames:
    vae = config.vae_config
    assert isinstance(vae, UniMedVLVAEConfig)
    return WeightNames(len(vae.block_out_channels), vae.layers_per_block)


def _upstream_name(names: WeightNames, name: str) -> str:
    upstream = names.to_upstream(name)
    if upstream is None:
        raise ValueError(f"the upstream layout has no place for {name}: only FLUX autoencoders fit it.")
    return upstream


def _is_generation(name: str | None) -> bool:
    return name is not None and GENERATION_HALF.search(name) is not None


def _expected(config: UniMedVLConfig) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Shapes of all tensors that a checkpoint may hold, and the names of those that it must hold.

    A checkpoint for understanding may keep what it has of the generation half: it is not read, and not lost.
    """
    full_config = UniMedVLConfig.from_dict({**config.to_dict(), "visual_gen": True})
    full = model_shapes(UniMedVLForConditionalGeneration, full_config)
    return full, [name for name in full if config.visual_gen or not _is_generation(name)]


def _split(items: dict[str, OutgoingTensor], max_shard_size: int | str) -> dict[str, dict[str, OutgoingTensor]]:
    """Weight file name to its tensors."""
    try:
        plan = split_state_dict_into_shards_factory(
            items,
            get_storage_size=lambda item: item.num_bytes,
            filename_pattern=SAFE_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors"),
            max_shard_size=max_shard_size,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"max_shard_size must be a size like 5GB or 500MB, not {max_shard_size!r}.") from error
    return {file: {name: items[name] for name in group} for file, group in plan.filename_to_tensors.items()}


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        shutil.copyfile(source / name, target / name)
