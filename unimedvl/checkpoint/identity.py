"""What ran: digests of checkpoints, commits and versions, which distinguish runs and let one be repeated."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from ..modeling_unimedvl.upstream_weights_unimedvl import FLOAT_TYPES, PREFIXES, StoredTensor, map_tensor
from ..utils.digests import hash_files, hash_tensors

LIBRARIES = (
    "unimedvl",
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "numpy",
    "pillow",
    "scikit-image",
    "scipy",
    "sacrebleu",
    "rouge_score",
    "torchmetrics",
    "pycocoevalcap",
)
# Weights, and what else decides answers: presets, tokenizers, templates, code.
DECIDING = frozenset({".safetensors", ".json", ".jinja", ".py", ".txt", ".model"})
# Written into the folder by `unimedvl eval card` after a run: they decide nothing.
RESULTS = ("evaluation/results.json", "evaluation/manifest.json")
# Lies in the folder of a run, which may lie in the checkpoint's and decides nothing either.
RUN = "run.json"

# Values at either end of a tensor that `values_digest` looks at.
END_VALUES = 64
# Not trained on adapters' bases, and named or stored otherwise in upstream's layout.
_OUTSIDE = ("model.vae.", "model.latent_pos_embed.", "model.vit_pos_embed.", "encoder.", "decoder.")


def values_digest(tensors: Mapping[str, StoredTensor]) -> str:
    """A digest of a model's values: the same for every layout, split into files and type that holds bfloat16's digits.

    Any training step changes it, and so does a merged adapter, since both touch whole tensors. Only the ends of each
    tensor are read. The autoencoder and the position tables do not count.

    Args:
        tensors: where every tensor lies, by our name or upstream's.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    ends = {}
    for name, stored in tensors.items():
        ours = next((new + name.removeprefix(old) for old, new in PREFIXES if name.startswith(old)), name)
        # Packed weights of a quantized checkpoint are no numbers of the model.
        if ours.startswith(_OUTSIDE) or stored.dtype not in FLOAT_TYPES:
            continue
        values = map_tensor(stored).reshape(-1)
        ends[ours] = torch.cat([values[:END_VALUES], values[-END_VALUES:]]).to(torch.bfloat16)
    return hashlib.sha256(f"{sorted(ends)} {hash_tensors(ends)}".encode()).hexdigest()


def weights_digest(path: str, base: str | None = None) -> str:
    """The digest of everything in a checkpoint's folder that decides its answers.

    Args:
        path: a folder, or a Hub id.
        base: of an adapter, the folder or Hub id of its base, which decides the answers too.

    Returns:
        SHA-256 over names and contents of weights, presets, tokenizers, templates and code, in the order of the names,
        as hexadecimal digits; "" for a Hub id.
    """
    if base is not None:
        return hashlib.sha256(f"{weights_digest(path)} {weights_digest(base)}".encode()).hexdigest()
    folder = Path(path)
    if not folder.is_dir():
        return ""
    runs = {mark.parent for mark in folder.rglob(RUN)} - {folder}
    names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*"))}
    return hash_files(
        (name, file)
        for name, file in names.items()
        if runs.isdisjoint(file.parents) and file.suffix in DECIDING and file.is_file() and name not in RESULTS
    )


def hub_commit(repository: str, revision: str | None) -> str:
    """Commit of a Hub repository as it was loaded last, "" where the cache does not say."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "model_index.json", "adapter_config.json"):
        found = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name
    return ""


def versions() -> dict[str, str]:
    """Versions of the libraries that decide results, "" for what is not installed, and of Python."""
    return {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """Commit of the checkout that this code lies in, "" outside of one; "+" marks uncommitted changes."""
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "-C", folder, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
