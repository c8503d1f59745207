"""Checkpoints from the released BAGEL / UniMedVL layout to ours and back, exact in every name and byte.

Everything is checked before anything is written. Tensors then pass through one piece at a time, from mapped files into
a folder that gets its name only when it is whole, so that neither memory nor an interruption limits the size.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .configuration_unimedvl import UniMedVLConfig
from .modeling_unimedvl import UniMedVLForConditionalGeneration
from .published_layout_unimedvl import default_generation_config, derive_config, is_published_layout
from .published_weights_unimedvl import (
    AUTOENCODER_HALVES,
    FLOAT_TYPES,
    GENERATION_HALF,
    WEIGHT_NAMES,
    StoredTensor,
    WeightNames,
    indexed_files,
    model_shapes,
    published_shape,
    published_tensors,
    read_headers,
    read_json,
    read_tensors,
    require_exact_fit,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
TYPE_NAMES = {dtype: name for name, dtype in FLOAT_TYPES.items()}
# Values that pass through memory at a time.
PIECE = 1 << 22


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


@dataclass(frozen=True)
class _Item:
    """A tensor on its way: where it lies, and the shape and type in which it is written."""

    stored: StoredTensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


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
    """Convert a folder in the released layout into a transformers checkpoint.

    Args:
        source: the released folder. Symbolic links, as in the Hub's cache, are followed.
        output: the folder to write; it must not exist, or be empty.
        dtype: "float32", "bfloat16" or "float16" for all tensors; as stored by default.
        max_shard_size: largest weight file, in bytes or like "500MB".
        weights: "ema_bf16", "ema", "model_bf16" or "model"; the first of these that is there by default.
        overrides: `visual_gen=False` to leave the generation half out, and special token ids by their field names
            for a folder without tokenizer files.
        progress: show a progress bar on a terminal.
        finish: called with the folder before it gets its name, to add files such as a processor; an exception
            cancels the conversion.

    Raises:
        ValueError: before anything is written, if the source is not whole, or if the output cannot be written;
            afterwards, with nothing left behind, if a value does not fit `dtype` or the disk is full.
    """
    source, target = _source_folder(source), _target_folder(output)
    if not is_published_layout(source):
        raise ValueError(
            f"{source} is not in the released layout: it needs llm_config.json and vit_config.json, and no config.json "
            "of an already converted checkpoint."
        )
    target_type, overrides = _float_type(dtype), dict(overrides or {})
    tensors, unused = published_tensors(source, weights)
    config = _build_config(source, derive_config(source, tensors, overrides))
    names = _weight_names(config)
    if overrides.get("visual_gen") is False:
        tensors = {key: stored for key, stored in tensors.items() if not _is_generation(names.to_ours(key))}
    full, required = _expected(config)
    known = {_published(names, name): published_shape(name, shape) for name, shape in full.items()}
    require_exact_fit(source, tensors, known, [_published(names, name) for name in required])
    items = {}
    for key, stored in tensors.items():
        name = names.to_ours(key)
        assert name is not None, key
        items[name] = _Item(stored, full[name], target_type or FLOAT_TYPES[stored.dtype])
    items = {name: items[name] for name in full if name in items}
    if target_type is not None:
        config.dtype = target_type
    shards = _split(items, max_shard_size)
    tokenizer_files = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    with _new_folder(target, _total(items)) as partial:
        _write_files({partial / name: group for name, group in shards.items()}, progress)
        if len(shards) > 1:
            weight_map = {name: file for file, group in shards.items() for name in group}
            _write_json(
                partial / SAFE_WEIGHTS_INDEX_NAME,
                {"metadata": {"total_size": _total(items)}, "weight_map": dict(sorted(weight_map.items()))},
            )
        config.save_pretrained(partial)
        default_generation_config(config).save_pretrained(partial)
        _copy(source, partial, tokenizer_files)
        code = sorted(path.name for path in Path(__file__).parent.glob("*_unimedvl.py"))
        _copy(Path(__file__).parent, partial, [name for name in code if name != Path(__file__).name])
        if finish is not None:
            finish(partial)
    return ConversionReport(target, config, len(items), _total(items), tuple(shards), tuple(unused), tokenizer_files)


def export_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    weights: str = "ema",
    progress: bool = True,
    finish: Callable[[Path], None] | None = None,
) -> ConversionReport:
    """Write a checkpoint of ours in the released layout, for the reference's own code.

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
    if is_published_layout(source) or not (source / "config.json").is_file():
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
    groups: dict[str, dict[str, _Item]] = {f"{weights}.safetensors": {}, "ae.safetensors": {}}
    for name, stored in tensors.items():
        item = _Item(stored, published_shape(name, stored.shape), target_type or FLOAT_TYPES[stored.dtype])
        key = _published(names, name)
        groups["ae.safetensors" if key.startswith(AUTOENCODER_HALVES) else f"{weights}.safetensors"][key] = item
    groups = {file: group for file, group in groups.items() if group}
    num_bytes = sum(map(_total, groups.values()))
    tokenizer_files = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    with _new_folder(target, num_bytes) as partial:
        _write_files({partial / name: group for name, group in groups.items()}, progress)
        for file, content in _published_configs(config).items():
            _write_json(partial / file, content)
        _copy(source, partial, tokenizer_files)
        if finish is not None:
            finish(partial)
    return ConversionReport(target, config, len(tensors), num_bytes, tuple(groups), (), tokenizer_files)


def _published_configs(config: UniMedVLConfig) -> dict[str, dict]:
    """The three configuration files of the released layout, by file name."""
    text, vision, vae = config.text_config, config.vision_config, config.vae_config
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
        sliding_window=text.sliding_window or text.max_position_embeddings,
        tie_word_embeddings=False,
        qk_norm=True,
        layer_module="Qwen2MoTDecoderLayer",
        torch_dtype=str(config.dtype or torch.float32).removeprefix("torch."),
    )
    if getattr(text, "head_dim", None) is not None:
        llm["head_dim"] = text.head_dim
    if rope.get("rope_type", "default") != "default":
        llm["rope_scaling"] = rope
    copied = ("attention_dropout", "hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps")
    vit = {name: getattr(vision, name) for name in (*copied, "num_attention_heads", "num_channels", "patch_size")}
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
            "norm_num_groups": vae.norm_num_groups,
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
    try:
        return UniMedVLConfig.from_dict(fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the configuration files in {folder} cannot be used ({reason}): get them again.") from error


def _weight_names(config: UniMedVLConfig) -> WeightNames:
    return WeightNames(len(config.vae_config.block_out_channels), config.vae_config.layers_per_block)


def _published(names: WeightNames, name: str) -> str:
    published = names.to_published(name)
    if published is None:
        raise ValueError(f"the released layout has no place for {name}: only FLUX autoencoders fit it.")
    return published


def _is_generation(name: str | None) -> bool:
    return name is not None and GENERATION_HALF.search(name) is not None


def _expected(config: UniMedVLConfig) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Shapes of all tensors that a checkpoint may hold, and the names of those that it must hold.

    A checkpoint for understanding may keep what it has of the generation half: it is not read, and not lost.
    """
    full_config = UniMedVLConfig.from_dict({**config.to_dict(), "visual_gen": True})
    full = model_shapes(UniMedVLForConditionalGeneration, full_config)
    return full, [name for name in full if config.visual_gen or not _is_generation(name)]


def _total(items: Mapping[str, _Item]) -> int:
    return sum(item.num_bytes for item in items.values())


def _split(items: dict[str, _Item], max_shard_size: int | str) -> dict[str, dict[str, _Item]]:
    """Weight file name to its tensors."""
    try:
        plan = split_state_dict_into_shards_factory(
            items,
            get_storage_size=lambda item: item.num_bytes,
            filename_pattern=SAFE_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors"),
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ValueError(f"max_shard_size must be a size like 5GB or 500MB, not {max_shard_size!r}.") from error
    return {file: {name: items[name] for name in group} for file, group in plan.filename_to_tensors.items()}


# --------------------------------------------------------------------------------------------------------------------
# Writing


@contextmanager
def _new_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends and disappears when it fails.

    It lies beside the target, so that giving it its name is one step. A killed run leaves it there unnamed; the next
    run into the same target clears it.
    """
    partial = target.with_name(f".{target.name}.partial")
    lock = FileLock(f"{partial}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        try:
            _clear(partial)
            free = shutil.disk_usage(target.parent).free
            if free < num_bytes:
                raise OSError(errno.ENOSPC, f"{num_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
            partial.mkdir()
            yield partial
            if target.is_dir():
                target.rmdir()
            partial.rename(target)
        finally:
            _clear(partial)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise ValueError(f"another run is writing {target}: wait for it, or choose another folder.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write {target} ({reason}): make room, or choose another folder.") from error


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _write_files(files: Mapping[Path, Mapping[str, _Item]], progress: bool) -> None:
    total = sum(map(_total, files.values()))
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Writing weights", disable=None if progress else True
    ) as bar:
        for path, items in files.items():
            write_safetensors(path, items, bar.update)


def write_safetensors(path: Path, items: Mapping[str, _Item], advance: Callable[[int], object]) -> None:
    """Write one safetensors file piece by piece.

    The library's own writer wants all tensors of a file at once, which for a cast 29 GB `ema.safetensors` no memory
    holds. The format: the header's length in 8 bytes, the header as JSON padded to 8 bytes, then the tensors without
    gaps, widest type first so that each is aligned.

    Raises:
        ValueError: if a finite value is too large for float16.
    """
    ordered = dict(sorted(items.items(), key=lambda entry: -entry[1].dtype.itemsize))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, item in ordered.items():
        span = [offset, offset + item.num_bytes]
        header[name] = {"dtype": TYPE_NAMES[item.dtype], "shape": list(item.shape), "data_offsets": span}
        offset = span[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in read_tensors({name: item.stored for name, item in ordered.items()}):
            for piece in tensor.reshape(-1).split(PIECE):
                cast = piece.to(ordered[name].dtype)
                if cast.dtype == torch.float16 and bool((cast.isinf() & ~piece.isinf()).any()):
                    raise ValueError(f"{name} holds values too large for float16: choose bfloat16 or float32.")
                handle.write(cast.view(torch.uint8).numpy())
                advance(cast.nbytes)
        handle.flush()
        os.fsync(handle.fileno())


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path, names) -> None:
    for name in names:
        shutil.copyfile(source / name, target / name)
