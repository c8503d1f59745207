"""Finding the library that can run a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import file_exists

from ..distributed import join
from .base import Model
from .diffusers_pipelines import DiffusersModel
from .transformers_models import TransformersModel

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_model(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    steps: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a checkpoint by what it holds: a diffusers pipeline (`model_index.json`), or a transformers model.

    Args:
        path: folder or Hub id.
        device: "auto" (this process's CUDA device, else the CPU) or a torch device name.
        steps: sampler steps of generated images; the checkpoint's own by default.
        trust_remote_code: let code of the repository run.

    Raises:
        ValueError: if there is no such folder, or no library can load it.
    """
    folder = Path(path)
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise ValueError(f"there is no folder {path}: give the folder of a checkpoint, or a Hub id (owner/name).")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    options: dict[str, Any] = {
        "revision": revision,
        "dtype": DTYPES[dtype],
        "device": _device(device),
        "steps": steps,
        "trust_remote_code": trust_remote_code,
    }
    if is_pipeline(path, revision):
        return DiffusersModel(path, **options)
    return TransformersModel(path, **options)


def is_pipeline(path: str, revision: str | None) -> bool:
    """Whether a folder or Hub repository holds a diffusers pipeline."""
    if Path(path).is_dir():
        return (Path(path) / "model_index.json").is_file()
    return file_exists(path, "model_index.json", revision=revision)


def _device(name: str) -> torch.device:
    state = join(name)
    if name == "auto":
        return state.device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"the device {name!r} is not available here: choose cpu, or leave it out.") from error
    return device
