"""Finding the library that can run a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import file_exists

from unimedvl.checkpoint.adapter_folder import Adapter, base_source, open_adapter
from unimedvl.checkpoint.folder import ADAPTER_SETTINGS, is_adapter, locate

from ..distributed import join
from .base import Model
from .diffusers_pipelines import DiffusersModel
from .transformers_models import TransformersModel

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_model(
    path: str,
    *,
    revision: str | None = None,
    base: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    steps: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load what a folder holds: a diffusers pipeline (`model_index.json`), a transformers model, or a PEFT adapter
    (`adapter_config.json`) on its base.

    Args:
        path: folder or Hub id.
        revision: branch, tag or commit of a Hub id.
        base: folder or Hub id of an adapter's base; the one that it names by default.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
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
    if (adapter := find_adapter(path, revision)) is not None:
        path, options["revision"] = base_source(adapter, base)
        return TransformersModel(path, adapter=adapter, **options)
    if base is not None:
        raise ValueError(f"{path} holds no adapter, and only an adapter has a base: leave --base out.")
    if is_pipeline(path, revision):
        return DiffusersModel(path, **options)
    return TransformersModel(path, **options)


def find_adapter(path: str, revision: str | None = None) -> Adapter | None:
    """The PEFT adapter of a folder or Hub repository, None where it holds something else.

    Raises:
        ValueError: if the adapter is not whole.
    """
    if Path(path).is_dir():
        found = is_adapter(Path(path))
    else:
        found = _holds(path, ADAPTER_SETTINGS, revision) and not _holds(path, "config.json", revision)
    return open_adapter(locate(path, revision)) if found else None


def is_pipeline(path: str, revision: str | None) -> bool:
    """Whether a folder or Hub repository holds a diffusers pipeline."""
    return _holds(path, "model_index.json", revision)


def _holds(path: str, name: str, revision: str | None) -> bool:
    if Path(path).is_dir():
        return (Path(path) / name).is_file()
    return file_exists(path, name, revision=revision)


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
