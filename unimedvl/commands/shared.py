"""What several sub-commands share: arguments that choose a model or read an image, loading, and the notice."""

import argparse
import json
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.digests import hash_file

if TYPE_CHECKING:
    from PIL import Image

    from ..checkpoint.loading import Loaded

NOTICE = "For research use only: not a medical device, not for diagnosis or treatment."


def silence_libraries() -> None:
    """Keep libraries' advice to programmers off the terminal. They read these settings when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Announces optional kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a checkpoint and say how to load it."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", help="checkpoint folder or Hub id (default: the nano checkpoint)")
    group.add_argument("--revision", metavar="R", help="commit, tag or branch of a Hub id (pin a commit)")
    group.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    group.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument("--quantize", choices=("nf4", "int8"), help="load in 4 or 8 bits (needs bitsandbytes)")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that name input images and choose what to show of a DICOM or NIfTI file."""
    group = parser.add_argument_group("input images (PNG, JPEG, TIFF, DICOM, NIfTI)")
    group.add_argument("--image", action="append", default=[], metavar="FILE", help="repeat for several images")
    group.add_argument("--window", nargs=2, type=float, metavar=("CENTER", "WIDTH"), help="intensity window")
    group.add_argument("--frame", type=int, metavar="N", help="frame of a multi-frame DICOM, TIFF or GIF, from 0")
    group.add_argument("--plane", metavar="P", help="plane of a NIfTI volume: axial, coronal or sagittal")
    group.add_argument("--slice", type=int, dest="slice_index", metavar="N", help="slice of a NIfTI volume, from 0")
    group.add_argument("--allow-url", action="store_true", help="let --image be an http(s) URL")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about repeatability and the form of what is printed."""
    parser.add_argument("--seed", type=int, metavar="S", help="seed of all random draws (default: a new one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def load_images(arguments: argparse.Namespace) -> list["Image.Image"]:
    """Every `--image` as an 8-bit PIL picture, windowed and upright.

    Raises:
        ValueError: if a file is missing or is no image, or for an address without `--allow-url`.
    """
    from ..processing.medical_formats_unimedvl import load_medical_image

    options = {
        name: getattr(arguments, name)
        for name in ("window", "frame", "plane", "slice_index")
        if getattr(arguments, name) is not None
    }
    if options and not arguments.image:
        raise ValueError(f"--{next(iter(options)).partition('_')[0]} needs an --image to act on.")
    for source in arguments.image:
        if "://" in source and not arguments.allow_url:
            raise ValueError(f"{source!r} is a URL: download the image first, or pass --allow-url.")
    return [load_medical_image(source, allow_url=arguments.allow_url, **options) for source in arguments.image]


def image_hashes(arguments: argparse.Namespace) -> list[str]:
    """SHA-256 of every `--image` that is a file."""
    return [hash_file(source) for source in arguments.image if Path(source).is_file()]


def choose_seed(arguments: argparse.Namespace) -> int:
    """The seed that was asked for, or a new one, so that every result can be repeated.

    Raises:
        ValueError: if it does not fit a torch generator.
    """
    if arguments.seed is None:
        return secrets.randbelow(1 << 31)
    if not 0 <= arguments.seed < 1 << 63:
        raise ValueError(f"--seed must lie in 0 .. 2**63 - 1, not {arguments.seed}.")
    return arguments.seed


def load_model(arguments: argparse.Namespace, *, understanding_only: bool = False) -> "Loaded":
    """Load the checkpoint that the arguments name, without the libraries' chatter."""
    from transformers.utils import logging as transformers_logging

    from ..checkpoint.loading import load

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    return load(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        quantize=arguments.quantize,
        understanding_only=understanding_only,
    )


def say(message: str) -> None:
    """A line for the person at the terminal: stderr, so that stdout holds results only."""
    print(message, file=sys.stderr)


def print_result(arguments: argparse.Namespace, record: dict[str, Any], text: str) -> None:
    """The result on stdout: `record` with `--json`, else `text`."""
    print(json.dumps(record, ensure_ascii=False) if arguments.json else text)
