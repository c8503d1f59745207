"""The weight files of a BAGEL or UniMedVL release: which they are, what lies in them, and what we call each tensor.

Names differ from ours only in prefixes, and in the autoencoder, whose names are diffusers' here and FLUX's there.
Values never change: the attention layers of the autoencoder are 1x1 convolutions there and linear layers here, which
is the same numbers under another shape.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Not the names in it: vLLM sends this code to its processes by value, and `safe_open` says that it is built in.
import safetensors
import torch

# The main weights, best first: the reference takes the averaged weights, and their bfloat16 copy if there is one.
WEIGHT_NAMES = ("ema_bf16", "ema", "model_bf16", "model")
AUTOENCODER_FILES = ("ae.safetensors", "vae_model.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

SAME_NAMES = ("connector", "vae2llm", "llm2vae", "time_embedder", "latent_pos_embed", "vit_pos_embed")
PREFIXES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vit_model.vision_model.", "model.vit_model."),
    *((f"{name}.", f"model.{name}.") for name in SAME_NAMES),
)
AUTOENCODER_HALVES = ("encoder.", "decoder.")
# Tensors, by our names, that a model for understanding only does without.
GENERATION_HALF = re.compile(r"_moe_gen\.|^model\.(vae|vae2llm|llm2vae|time_embedder|latent_pos_embed)\.")
# Shape (out, in) here, (out, in, 1, 1) in a release.
POINTWISE = re.compile(r"^model\.vae\.(en|de)coder\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor: its file, its name there, its safetensors type name, its shape and its first byte."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


# --------------------------------------------------------------------------------------------------------------------
# Files


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        ValueError: if there is no such file, or if it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: get the whole checkpoint.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): get it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object: get it again.")
    return content


def weight_files(folder: str | os.PathLike, weights: str | None = None) -> list[Path]:
    """The files of an upstream folder that hold the main weights, then the autoencoder's where it has one of its own.

    Args:
        folder: a folder in the upstream layout.
        weights: which main weights to take, one of `WEIGHT_NAMES`; the first that is there by default.

    Raises:
        ValueError: if the weights are missing or come only as pickles.
    """
    folder = Path(folder)
    names: tuple[str, ...] = WEIGHT_NAMES
    if weights is not None:
        names = (str(weights).removesuffix(".safetensors"),)
        if names[0] not in WEIGHT_NAMES:
            raise ValueError(f"weights must be one of {', '.join(WEIGHT_NAMES)}, not {weights!r}.")
    files: list[Path] = []
    for name in names:
        single, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
        files = [single] if single.is_file() else indexed_files(index) if index.is_file() else []
        if files:
            break
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise ValueError(f"{folder} holds pickled weights ({pickles[0]}), which are never read: save safetensors.")
        raise ValueError(f"{folder} holds no {' or '.join(f'{name}.safetensors' for name in names)}: get it.")
    if not any(path.name in AUTOENCODER_FILES for path in files):
        files += [folder / name for name in AUTOENCODER_FILES if (folder / name).is_file()][:1]
    return files


def indexed_files(index: Path) -> list[Path]:
    """The weight files that a `*.safetensors.index.json` names.

    Raises:
        ValueError: if the index is broken, names a file outside its folder, or one of its files is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map: get it again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name}, named in {index.name}, is missing: get the whole checkpoint.")
    return [index.parent / name for name in names]


def read_headers(files: Iterable[Path]) -> list[StoredTensor]:
    """Every tensor of the files, from their headers alone.

    Raises:
        ValueError: if a file is missing or damaged, or is not a safetensors file.
    """
    stored = []
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is missing: get the whole checkpoint, with safetensors weights.")
        try:
            with safetensors.safe_open(path, framework="np"), open(path, "rb") as handle:
                start = 8 + int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(start - 8))
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}): get it again; pickles are never read."
            ) from error
        header.pop("__metadata__", None)
        for key, entry in header.items():
            offset = start + entry["data_offsets"][0]
            stored.append(StoredTensor(path, key, entry["dtype"], tuple(entry["shape"]), offset))
    return stored


def map_tensor(stored: StoredTensor) -> torch.Tensor:
    """A tensor mapped from its file: pages are read on use, take no anonymous memory, and are copied when written to.

    Each tensor has a map of its own, since Linux refuses a private map of a file larger than the machine's memory.
    """
    dtype = FLOAT_TYPES[stored.dtype]
    size = torch.Size(stored.shape).numel() * dtype.itemsize
    content = np.memmap(stored.file, dtype=np.uint8, mode="c", offset=stored.offset, shape=(size,))
    if stored.offset % dtype.itemsize:
        # Old writers do not align.
        content = content.copy()
    return torch.from_numpy(content).view(dtype).view(stored.shape)


def upstream_tensors(
    folder: str | os.PathLike, weights: str | None = None
) -> tuple[dict[str, StoredTensor], list[str]]:
    """All tensors of an upstream folder under the reference's names, and the names of those it has no use for.

    `module.` left over by parallel training is taken out of names. An autoencoder inside the main file
    (`vae_model.*`) counts only where no file of its own is there, as in the reference; `vae_batch_norm.*` never does.

    Raises:
        ValueError: if files are missing or damaged, or if a tensor is there twice.
    """
    tensors: dict[str, StoredTensor] = {}
    inner_autoencoder: dict[str, StoredTensor] = {}
    unused = []
    for stored in read_headers(weight_files(folder, weights)):
        name = ".".join(part for part in stored.key.split(".") if part != "module")
        if name.startswith("vae_batch_norm."):
            unused.append(stored.key)
            continue
        group = inner_autoencoder if name.startswith("vae_model.") else tensors
        name = name.removeprefix("vae_model.")
        if name in group:
            raise ValueError(
                f"The tensor {name} is twice in {folder} ({group[name].file.name}, {stored.file.name}): keep one."
            )
        group[name] = stored
    if any(name.startswith(AUTOENCODER_HALVES) for name in tensors):
        unused += [stored.key for stored in inner_autoencoder.values()]
    else:
        tensors.update(inner_autoencoder)
    return tensors, unused


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes


def autoencoder_modules(levels: int, layers_per_block: int) -> dict[str, str]:
    """FLUX module name to diffusers module name, for an autoencoder with `levels` resolutions.

    Args:
        levels: number of resolutions.
        layers_per_block: residual layers of each resolution of the encoder; the decoder has one more.
    """
    modules = {}

    def resnet(theirs: str, ours: str):
        modules.update({f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in ("norm1", "conv1", "norm2", "conv2")})
        modules[f"{theirs}.nin_shortcut"] = f"{ours}.conv_shortcut"

    for half in ("encoder", "decoder"):
        modules.update({f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"})
        modules[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        attention = f"{half}.mid_block.attentions.0"
        modules[f"{half}.mid.attn_1.norm"] = f"{attention}.group_norm"
        modules.update({f"{half}.mid.attn_1.{leaf}": f"{attention}.to_{leaf}" for leaf in "qkv"})
        modules[f"{half}.mid.attn_1.proj_out"] = f"{attention}.to_out.0"
        for index in range(2):
            resnet(f"{half}.mid.block_{index + 1}", f"{half}.mid_block.resnets.{index}")
    for level in range(levels):
        # FLUX numbers the decoder's levels by resolution, diffusers in the order in which they run.
        up, up_block = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        down, down_block = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for layer in range(layers_per_block):
            resnet(f"{down}.block.{layer}", f"{down_block}.resnets.{layer}")
        for layer in range(layers_per_block + 1):
            resnet(f"{up}.block.{layer}", f"{up_block}.resnets.{layer}")
        modules[f"{down}.downsample.conv"] = f"{down_block}.downsamplers.0.conv"
        modules[f"{up}.upsample.conv"] = f"{up_block}.upsamplers.0.conv"
    return modules


class WeightNames:
    """The two-way table of tensor names for an autoencoder with `levels` resolutions.

    Args:
        levels: number of resolutions.
        layers_per_block: residual layers of each resolution of the encoder.
    """

    def __init__(self, levels: int, layers_per_block: int):
        self._diffusers = autoencoder_modules(levels, layers_per_block)
        self._flux = {ours: theirs for theirs, ours in self._diffusers.items()}
        assert len(self._flux) == len(self._diffusers), "two modules of the autoencoder share a name"

    def to_ours(self, name: str) -> str | None:
        """Our name of an upstream tensor, or None if it is not one of the layout."""
        for theirs, ours in PREFIXES:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        module, _, leaf = name.rpartition(".")
        return f"model.vae.{self._diffusers[module]}.{leaf}" if module in self._diffusers else None

    def to_upstream(self, name: str) -> str | None:
        """The upstream name of a tensor of ours, or None if the layout has no place for it."""
        for theirs, ours in PREFIXES:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        module, _, leaf = name.removeprefix("model.vae.").rpartition(".")
        if not name.startswith("model.vae.") or module not in self._flux:
            return None
        return f"{self._flux[module]}.{leaf}"


def upstream_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which upstream stores the tensor of ours called `name`."""
    return (*shape, 1, 1) if POINTWISE.match(name) else shape


def model_shapes(model_class: type[torch.nn.Module], config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, without allocating it."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def require_exact_fit(
    folder: str | os.PathLike,
    found: Mapping[str, StoredTensor],
    known: Mapping[str, tuple[int, ...]],
    required: Iterable[str],
):
    """Check names, shapes and types of a checkpoint's tensors.

    Args:
        folder: for the message.
        found: the tensors by name.
        known: shapes of all tensors that may be there.
        required: names of those that must.

    Raises:
        ValueError: naming the first tensors that are unknown, missing, of another shape, or no floating-point numbers.
    """
    shared = [name for name in found if name in known]
    problems = {
        "unknown": [name for name in found if name not in known],
        "missing": [name for name in required if name not in found],
        "misshapen": [
            f"{name} {list(found[name].shape)}, expected {list(known[name])}"
            for name in shared
            if found[name].shape != known[name]
        ],
        "of another type": [f"{name} {found[name].dtype}" for name in shared if found[name].dtype not in FLOAT_TYPES],
    }
    described = [
        f"{len(names)} {problem} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if described:
        raise ValueError(
            f"the tensors of {folder} do not fit the model: {', '.join(described)}: get a whole checkpoint."
        )
