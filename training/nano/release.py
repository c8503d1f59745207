"""Turn a finished stage into the published folder: weights, code and processor, the sampling settings, nothing else.

    python -m unimedvl.training.nano.release --model STAGE/final-ema --out hub_cards/unimedvl-nano

Card, licence, sheets and Git's own files that lie in the folder stay; the weights before go, and their report of
`unimedvl eval` with them.
"""

import argparse
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from unimedvl.errors import one_line_errors
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.published_layout_unimedvl import default_generation_config
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

from .model import nano_presets

REPORT = "evaluation"
KEPT = ("README.md", "LICENSE", "samples.png", "edits.png", ".git", ".gitattributes")


def release(model_folder: str | Path, out: str | Path) -> None:
    """Write the checkpoint `model_folder` to `out` as it is published.

    Raises:
        ValueError: if `out` holds anything but a published folder, or the checkpoint itself.
    """
    out = Path(out)
    others = sorted(path for path in out.iterdir() if path.name not in KEPT) if out.is_dir() else []
    config = out / "config.json"
    published = config.is_file() and json.loads(config.read_text()).get("model_type") == "unimedvl"
    foreign = [path.name for path in others if not published or (path.is_dir() and path.name != REPORT)]
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]}, which is of no published model: choose an empty folder.")
    if Path(model_folder).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the checkpoint {model_folder} itself: choose another folder.")
    model = UniMedVLForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32)
    processor = UniMedVLProcessor.from_pretrained(model_folder)
    model.generation_config = default_generation_config(model.config)
    model.generation_config.task_presets = nano_presets(model.generation_config.task_presets)
    out.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that a full disk leaves the release before as it is.
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for path in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in Path(partial).iterdir():
            path.rename(out / path.name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint folder of a finished stage")
    parser.add_argument("--out", required=True, help="folder to publish")
    arguments = parser.parse_args(argv)
    with one_line_errors(parser):
        release(arguments.model, arguments.out)


if __name__ == "__main__":
    main()
