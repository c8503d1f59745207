"""What ran: digests of checkpoints, commits and versions, which distinguish runs and let one be repeated."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from ..utils.digests import hash_files

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


def weights_digest(path: str) -> str:
    """The digest of everything in a checkpoint's folder that decides its answers.

    Args:
        path: a folder, or a Hub id.

    Returns:
        SHA-256 over names and contents of weights, presets, tokenizers, templates and code, in the order of the names,
        as hexadecimal digits; "" for a Hub id.
    """
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

    for name in ("config.json", "model_index.json"):
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
