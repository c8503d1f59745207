"""The two calls that a benchmark makes, and finding the library that answers them for a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ..distributed import join

Conversation = list[dict[str, Any]]
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(Protocol):
    """A model that a benchmark can ask.

    Attributes:
        name: for people.
        abilities: among "text" (text from text), "text_from_image", "image" (a picture from text) and
            "image_from_image".
        settings: what a manifest should say about it, values that JSON can hold.
    """

    name: str
    abilities: frozenset[str]
    settings: dict[str, Any]

    def write(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[tuple[str, float | None]]:
        """The answer to each conversation without sampling, and the geometric mean of its tokens' probabilities."""
        ...

    def draw(self, conversations: Sequence[Conversation], preset: str, seeds: Sequence[int]) -> list[Image.Image]:
        """A picture for each conversation, from the noise of its own seed."""
        ...


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
        steps: sampler steps of generated pictures; the checkpoint's own by default.
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
        from .diffusers_pipelines import DiffusersModel

        return DiffusersModel(path, **options)
    from .transformers_models import TransformersModel

    return TransformersModel(path, **options)


def is_pipeline(path: str, revision: str | None) -> bool:
    """Whether a folder or Hub repository holds a diffusers pipeline."""
    if Path(path).is_dir():
        return (Path(path) / "model_index.json").is_file()
    from huggingface_hub import file_exists

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


def last_text(conversation: Conversation) -> str:
    """The texts of the last user message."""
    users = [message for message in conversation if message["role"] == "user"]
    return "\n".join(item["text"] for item in users[-1]["content"] if item["type"] == "text")


def pictures_of(conversation: Conversation) -> list[Image.Image]:
    """The pictures of a conversation in their order."""
    return [item["image"] for message in conversation for item in message["content"] if item["type"] == "image"]
