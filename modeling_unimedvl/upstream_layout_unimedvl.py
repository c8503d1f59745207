"""The upstream layout of BAGEL and UniMedVL, read without trusting its configuration files.

An upstream folder holds `llm_config.json`, `vit_config.json`, one main weight file (`ema.safetensors` or a sibling),
the FLUX autoencoder in `ae.safetensors` and Qwen2.5 tokenizer files. Its root `config.json` is absent, broken or stale
in some repositories, and `vit_config.json` counts the ViT layers before or after the reference drops the last one; so
sizes come from the headers of the weight files wherever the weights know them.
"""

import copy
import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .flow_unimedvl import TASK_PRESETS
from .upstream_weights_unimedvl import (
    AUTOENCODER_HALVES,
    FLOAT_TYPES,
    GENERATION_HALF,
    StoredTensor,
    WeightNames,
    map_tensor,
    model_shapes,
    read_json,
    require_exact_fit,
    upstream_shape,
    upstream_tensors,
)

logger = logging.get_logger(__name__)

TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_dropout",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "use_cache",
    "freeze_und",
)
VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "patch_size",
    "num_channels",
)
# Settings that no weight determines.
ROOT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "connector_act": str,
    "interpolate_pos": bool,
    "timestep_shift": (int, float),
}
# Reference's name to ours, in `ae_params.json` or the root config's `vae_config`.
AUTOENCODER_FIELDS = {
    "scale_factor": "scaling_factor",
    "shift_factor": "shift_factor",
    "norm_num_groups": "norm_num_groups",
}
EMBEDDING = "language_model.model.embed_tokens.weight"
LATENT_MODULES = ("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")

# Each special token and its id in the Qwen2.5 tokenizers. The first four are markers of turns and images; the
# placeholders after them never reach an embedding.
SPECIAL_TOKENS = {
    "bos_token_id": ("<|im_start|>", 151644),
    "eos_token_id": ("<|im_end|>", 151645),
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
    "image_token_id": ("<|image_pad|>", 151655),
    "latent_token_id": ("<|vision_pad|>", 151654),
    "pad_token_id": ("<|endoftext|>", 151643),
}
MARKERS = tuple(SPECIAL_TOKENS)[:4]
QWEN_VOCABULARY = 151657


def root_config(folder: Path) -> dict:
    """The root `config.json`, or {} where it is absent or broken, as in some upstream repositories."""
    try:
        return read_json(folder / "config.json")
    except ValueError:
        return {}


def is_upstream_layout(folder: str | os.PathLike | None) -> bool:
    """Whether a local folder is in the upstream layout: both part configurations, and no root config of ours."""
    if folder is None or not os.path.isdir(folder):
        return False
    if not all(os.path.isfile(os.path.join(folder, name)) for name in ("llm_config.json", "vit_config.json")):
        return False
    root = root_config(Path(folder))
    return not (root.get("model_type") == "unimedvl" and "text_config" in root)


# --------------------------------------------------------------------------------------------------------------------
# Configuration

VISION_POSITIONS = "vit_model.vision_model.embeddings.position_embedding.weight"


def upstream_config_dict(
    folder: str | os.PathLike, weights: str | None = None, overrides: Mapping[str, Any] | None = None
) -> dict:
    """Fields of `UniMedVLConfig` for an upstream folder.

    Args:
        folder: the folder.
        weights: which main weights to read the sizes from (see `weight_files`).
        overrides: values that the caller sets: `visual_gen` and special token ids. Other keys are ignored.

    Raises:
        ValueError: if files or tensors are missing, or if the sizes contradict one another.
    """
    return derive_config(Path(folder), upstream_tensors(folder, weights)[0], overrides or {})


def derive_config(folder: Path, tensors: Mapping[str, StoredTensor], overrides: Mapping[str, Any]) -> dict:
    """`upstream_config_dict` for tensors whose headers are already read."""
    llm, vit = read_json(folder / "llm_config.json"), read_json(folder / "vit_config.json")
    root = root_config(folder)
    if not any(name.startswith("vit_model.") for name in tensors) or "connector.fc1.weight" not in tensors:
        raise ValueError(f"{folder} has no vision transformer or no connector: get a checkpoint that has both.")
    vocabulary = _shape(folder, tensors, EMBEDDING, 2)[0]
    has_latents = any(name.startswith(LATENT_MODULES) for name in tensors)
    has_autoencoder = any(name.startswith(AUTOENCODER_HALVES) for name in tensors)
    visual_gen = overrides.get("visual_gen")
    visual_gen = has_latents if visual_gen is None else bool(visual_gen)
    if visual_gen and not has_autoencoder:
        raise ValueError(
            f"{folder} has no ae.safetensors: put it there, or load with visual_gen=False to understand images only."
        )
    config: dict[str, Any] = {
        "model_type": "unimedvl",
        "architectures": ["UniMedVLForConditionalGeneration"],
        "visual_gen": visual_gen,
        "text_config": {**_chosen(folder / "llm_config.json", llm, TEXT_FIELDS), "vocab_size": vocabulary},
        "vision_config": {
            **_chosen(folder / "vit_config.json", vit, VISION_FIELDS),
            "num_hidden_layers": _count_vision_layers(folder, tensors, vit.get("num_hidden_layers")),
            "num_positions": _shape(folder, tensors, VISION_POSITIONS, 2)[0],
        },
        "vit_max_num_patch_per_side": _side(folder, tensors, "vit_pos_embed.pos_embed"),
        **_special_token_ids(folder, llm, vocabulary, overrides),
    }
    config.update({name: root[name] for name, kind in ROOT_FIELDS.items() if isinstance(root.get(name), kind)})
    stored_type = FLOAT_TYPES.get(tensors[EMBEDDING].dtype)
    if stored_type is not None:
        config["dtype"] = str(stored_type).removeprefix("torch.")
    if has_autoencoder:
        config["vae_config"] = _autoencoder_config(folder, tensors, root)
    if visual_gen:
        config["max_latent_size"] = _side(folder, tensors, "latent_pos_embed.pos_embed")
        values = _shape(folder, tensors, "vae2llm.weight", 2)[1]
        channels = config["vae_config"]["latent_channels"]
        config["latent_patch_size"] = math.isqrt(values // channels)
        if config["latent_patch_size"] ** 2 * channels != values:
            raise ValueError(
                f"vae2llm.weight takes {values} values per token, which is no square patch of the {channels} latent "
                f"channels in {folder}: use the autoencoder that belongs to these weights."
            )
    return config


def _chosen(path: Path, content: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    chosen = {name: content[name] for name in names if content.get(name) is not None}
    for name, value in chosen.items():
        if name in SIZES and (type(value) is not int or value < 1):
            raise ValueError(f"{path} says {name} is {value!r}, which is no positive integer: get it again.")
    if chosen.get("hidden_size", 0) % chosen.get("num_attention_heads", 1) and "head_dim" not in chosen:
        raise ValueError(f"{path} has a hidden_size that its num_attention_heads do not divide: get it again.")
    return chosen


def _shape(folder: Path, tensors: Mapping[str, StoredTensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"the tensor {name} is missing in {folder}: get the whole checkpoint.")
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"the tensor {name} in {folder} has shape {list(shape)}, which it cannot have: get it again.")
    return shape


def _side(folder: Path, tensors: Mapping[str, StoredTensor], name: str) -> int:
    rows = _shape(folder, tensors, name, 2)[0]
    side = math.isqrt(rows)
    if side * side != rows:
        raise ValueError(f"the tensor {name} in {folder} has {rows} rows, which is no square grid: get it again.")
    return side


def _count(tensors: Mapping[str, StoredTensor], pattern: str) -> int:
    """How many different indices the pattern's group takes, which must be 0, 1, 2, ... without a gap."""
    indices = {int(match[1]) for match in map(re.compile(pattern).match, tensors) if match}
    return next(index for index in range(len(indices) + 1) if index not in indices)


def _count_vision_layers(folder: Path, tensors: Mapping[str, StoredTensor], declared: Any) -> int:
    layers = _count(tensors, r"vit_model\.vision_model\.encoder\.layers\.(\d+)\.")
    # The reference drops the last layer of the pretrained ViT; releases declare the number before or after that.
    if isinstance(declared, int) and declared - layers not in (0, 1):
        raise ValueError(
            f"the weights in {folder} hold {layers} whole ViT layers but vit_config.json counts {declared}: "
            "get the whole checkpoint."
        )
    return layers


def _autoencoder_config(folder: Path, tensors: Mapping[str, StoredTensor], root: Mapping[str, Any]) -> dict:
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    names = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    config: dict[str, Any] = {
        "in_channels": _shape(folder, tensors, "encoder.conv_in.weight", 4)[1],
        "out_channels": _shape(folder, tensors, "decoder.conv_out.weight", 4)[0],
        "latent_channels": _shape(folder, tensors, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "block_out_channels": [_shape(folder, tensors, name, 4)[0] for name in names],
    }
    stated = root.get("vae_config")
    stated = dict(stated) if isinstance(stated, dict) else {}
    if (folder / "ae_params.json").is_file():
        stated.update(read_json(folder / "ae_params.json"))
    for theirs, ours in AUTOENCODER_FIELDS.items():
        if isinstance(stated.get(theirs), (int, float)):
            config[ours] = stated[theirs]
    groups = config.get("norm_num_groups", 32)
    if not levels or groups < 1 or any(channels % groups for channels in config["block_out_channels"]):
        raise ValueError(
            f"the autoencoder in {folder} has {config['block_out_channels']} channels, which {groups} groups do not "
            "divide: state norm_num_groups in ae_params.json."
        )
    return config


def tokenizer_ids(folder: Path) -> dict[str, int] | None:
    """Id of each special token in a folder's tokenizer files, or None where there is no tokenizer.

    Raises:
        ValueError: if the files cannot be read.
    """
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        return None
    names = ("vocab.json", "added_tokens.json", "tokenizer_config.json", "tokenizer.json")
    vocab, added, config, whole = (read_json(folder / name) if (folder / name).is_file() else {} for name in names)
    try:
        ids = {**vocab, **added}
        decoder = config.get("added_tokens_decoder") or {}
        ids.update({entry["content"]: int(key) for key, entry in decoder.items()})
        content = (whole.get("model") or {}).get("vocab")
        ids.update(content if isinstance(content, dict) else {})
        ids.update({entry["content"]: entry["id"] for entry in whole.get("added_tokens") or []})
        return {token: int(ids[token]) for token, _ in SPECIAL_TOKENS.values() if token in ids}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the tokenizer files in {folder} cannot be read ({error!r}): get them again.") from error


def _special_token_ids(folder: Path, llm: Mapping[str, Any], vocabulary: int, overrides: Mapping[str, Any]) -> dict:
    """Ids from the caller, else from the tokenizer, else Qwen2.5's, else the last places of a small vocabulary."""
    known = tokenizer_ids(folder)
    ids: dict[str, Any]
    if known is not None:
        ids = {name: known[token] for name, (token, _) in SPECIAL_TOKENS.items() if token in known}
    elif vocabulary >= QWEN_VOCABULARY:
        ids = {name: default for name, (_, default) in SPECIAL_TOKENS.items()}
    else:
        ids = {name: llm[name] for name in ("bos_token_id", "eos_token_id") if isinstance(llm.get(name), int)}
        # The reference appends its four markers to a tokenizer in this order.
        following = range(max(ids.values(), default=vocabulary) + 1, vocabulary)
        ids.update(zip(tuple(SPECIAL_TOKENS)[2:6], following, strict=False))
    ids.update({name: overrides[name] for name in SPECIAL_TOKENS if overrides.get(name) is not None})
    for name, (token, _) in SPECIAL_TOKENS.items():
        if name == "pad_token_id" and name not in ids:
            ids[name] = None
        elif name in ids:
            if not isinstance(ids[name], int) or not 0 <= ids[name] < vocabulary:
                raise ValueError(f"{name} {ids[name]!r} is no row of the {vocabulary} embeddings in {folder}.")
        elif name in MARKERS:
            raise ValueError(f"Nothing in {folder} states the id of {token}: add tokenizer files, or give {name}=ID.")
        else:
            # A placeholder: any row that no other token uses.
            ids[name] = next(row for row in reversed(range(vocabulary)) if row not in ids.values())
    if known is None and not all(overrides.get(name) is not None for name in MARKERS):
        logger.warning_once(f"{folder} has no tokenizer files; assumed special token ids: {ids}.")
    return ids


def build_config(
    config_class: type[PreTrainedConfig], folder: str | os.PathLike, fields: dict, **changes
) -> PreTrainedConfig:
    """A configuration from the fields that a folder states.

    Raises:
        ValueError: if a field has a value that it cannot have.
    """
    try:
        return config_class.from_dict(fields, **changes)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the configuration files in {folder} cannot be used ({reason}): get them again.") from error


def default_generation_config(config: PreTrainedConfig) -> GenerationConfig:
    """The generation config of a converted checkpoint: special ids and task presets, nothing that changes text.

    Upstream's `generation_config.json` asks for sampling; the reference never reads it, and neither do we.
    """
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        task_presets=copy.deepcopy(TASK_PRESETS),
    )


# --------------------------------------------------------------------------------------------------------------------
# Loading without conversion


def prepare_direct_load(
    model_class: type[PreTrainedModel], folder: str | os.PathLike, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments for `from_pretrained(None, ...)` that load an upstream folder as it is.

    The state dict holds views of the mapped files under our names, so tensors stream in as from a checkpoint of ours.

    Args:
        model_class: the model to load.
        folder: a folder in the upstream layout.
        options: what the caller passed to `from_pretrained`; fields of the configuration may be among them.

    Raises:
        ValueError: if files are missing or damaged, or if the tensors do not fit the model exactly.
    """
    options = dict(options)
    tensors, _ = upstream_tensors(folder)
    config = options.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        config_class: Any = model_class.config_class
        fields = {field.name for field in dataclasses.fields(config_class)} - {"dtype"}
        changes = {name: options.pop(name) for name in list(options) if name in fields}
        if config is None:
            config = build_config(config_class, folder, derive_config(Path(folder), tensors, changes), **changes)
        else:
            config = config_class.from_pretrained(config, **changes)
    names = WeightNames(len(config.vae_config.block_out_channels), config.vae_config.layers_per_block)
    # The base model's weights are named without the head's prefix, and the head itself is left out.
    prefix = getattr(model_class, "omitted_prefix", "")
    shapes = {prefix + name: shape for name, shape in model_shapes(model_class, config).items()}
    if prefix:
        tensors = {key: stored for key, stored in tensors.items() if names.to_ours(key) != "lm_head.weight"}
    known = {names.to_upstream(name) or name: upstream_shape(name, shape) for name, shape in shapes.items()}
    if not config.visual_gen:
        tensors = {
            key: stored for key, stored in tensors.items() if not GENERATION_HALF.search(names.to_ours(key) or "")
        }
    require_exact_fit(folder, tensors, known, known)
    state_dict = {}
    for key, stored in tensors.items():
        name = names.to_ours(key)
        assert name is not None, "an exact fit leaves no unknown tensor"
        state_dict[name.removeprefix(prefix)] = map_tensor(stored).view(shapes[name])
    return {
        "generation_config": default_generation_config(config),
        **options,
        "config": config,
        "state_dict": state_dict,
    }
