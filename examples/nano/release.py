"""Turn a finished stage into the published folder: weights, code and processor, the sampling settings, nothing else.

    python -m examples.nano.release --model STAGE/final-ema --out hub_cards/unimedvl-nano

Card, license, sheets and Git's own files that lie in the folder stay; the weights before go, and their report of
`unimedvl eval` with them.
"""

import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import torch
from typer import Option

from unimedvl.checkpoint.loading import load
from unimedvl.hub_cards.push_checks import SOURCE_FOLDERS
from unimedvl.modeling_unimedvl.upstream_layout_unimedvl import default_generation_config
from unimedvl.processing.chat_template_unimedvl import CHAT_TEMPLATE
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json
from unimedvl.utils.whole_files import scratch_folder, sync_files

from .model import nano_presets

CACHE = ".cache"  # which a push leaves out
KEPT = ("README.md", "LICENSE", "samples.png", "edits.png", ".git", ".gitattributes", CACHE)
OUTDATED = ("evaluation", ".eval_results", "__pycache__")  # by other weights and code
WRITTEN = (
    "*_unimedvl.py",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def save_rounded(model: Any, processor: UniMedVLProcessor, folder: Path) -> None:
    """Save a model of float32 weights and its processor; the weights take half the room, as bfloat16.

    The configuration still names float32, so that whoever loads the folder without asking for a type computes in it:
    most processors have no arithmetic for bfloat16.
    """
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=rounded)
    processor.save_pretrained(folder)


def release(model_folder: str | Path, out: str | Path) -> None:
    """Write the checkpoint `model_folder` to `out` as it is published.

    Raises:
        ValueError: if the checkpoint is not whole, or if `out` holds it, or anything that no release has written.
    """
    out = Path(out).resolve()
    if Path(model_folder).resolve().is_relative_to(out):
        raise ValueError(f"{out} holds the checkpoint {model_folder} itself: choose another folder.")
    before = sorted(path for path in out.iterdir() if path.name not in KEPT) if out.is_dir() else []
    config = out / "config.json"
    if before and not (config.is_file() and read_json(config).get("model_type") == "unimedvl"):
        raise ValueError(f"{out} holds {before[0].name} and no published model: choose an empty folder.")
    for path in before:
        if path.name not in OUTDATED and not any(fnmatch(path.name, pattern) for pattern in WRITTEN):
            raise ValueError(f"{out} holds {path.name}, which no release has written: choose another folder.")
    model = load(model_folder, dtype="float32", device="cpu").model
    processor = UniMedVLProcessor.from_pretrained(model_folder)
    # The code that travels along is of now, while the stages may have kept a template of their beginning.
    processor.chat_template = CHAT_TEMPLATE
    settings: Any = default_generation_config(model.config)
    settings.task_presets = nano_presets(settings.task_presets)
    model.generation_config = settings
    cache = out / CACHE
    # In the folder, and so on its disk: a full one leaves the release before as it is.
    with scratch_folder(cache / "release") as partial:
        save_rounded(model, processor, partial)
        sync_files(partial)
        made = {path.name: path for path in partial.iterdir()}
        for path in before:
            if path.name not in made:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, path in made.items():
            # The nano of a checkout holds links to the code that was just saved.
            if (out / name).resolve().parent not in SOURCE_FOLDERS:
                path.replace(out / name)
    if not any(cache.iterdir()):
        cache.rmdir()


def main(
    model: Annotated[str, Option(help="Checkpoint folder of a finished stage.")],
    out: Annotated[str, Option(help="Folder to publish.")],
) -> None:
    release(model, out)


if __name__ == "__main__":
    sys.exit(run_module(main))
