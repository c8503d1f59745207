"""What several sub-commands share: options that choose a model or read an image, loading, and the notice."""

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from ..checkpoint.provenance import NOTICE as NOTICE
from ..utils.digests import hash_file, hash_files

if TYPE_CHECKING:
    from PIL import Image

    from ..checkpoint.loading import Loaded

# Options that name a checkpoint and say how to load it.
Model = Annotated[
    str | None, Option(metavar="M", help="Folder or Hub id of a checkpoint or adapter (default: the nano checkpoint).")
]
Base = Annotated[
    str | None, Option(metavar="B", help="Folder or Hub id of an adapter's base (default: the one that it names).")
]
Revision = Annotated[str | None, Option(metavar="R", help="Commit, tag or branch of a Hub id (pin a commit).")]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], Option(help="Number type of the weights.")]
Device = Annotated[str, Option(metavar="D", help="cpu, cuda, cuda:1, ...")]
Quantize = Annotated[Literal["nf4", "int8"] | None, Option(help="Load in 4 or 8 bits (needs bitsandbytes).")]

# Options that name input images and choose what to show of a DICOM or NIfTI file.
Images = Annotated[
    list[str] | None,
    Option("--image", metavar="FILE", help="PNG, JPEG, TIFF, DICOM file or series, NIfTI; may be repeated."),
]
Window = Annotated[tuple[float, float] | None, Option(metavar="CENTER WIDTH", help="Intensity window.")]
Frame = Annotated[int | None, Option(metavar="N", help="Frame of a multi-frame DICOM, TIFF or GIF, from 0.")]
Plane = Annotated[str | None, Option(metavar="P", help="Plane of a NIfTI volume: axial, coronal or sagittal.")]
Slice = Annotated[int | None, Option("--slice", metavar="N", help="Slice of a NIfTI volume or DICOM series, from 0.")]
PercentilesOf = Annotated[
    Literal["volume", "slice"] | None, Option(help="Whose percentiles are black and white (default: the volume's).")
]
AllowUrl = Annotated[bool, Option("--allow-url", help="Let --image be an http(s) URL.")]

Seed = Annotated[int | None, Option(metavar="S", help="Seed of all random draws (default: a new one).")]


def silence_libraries() -> None:
    """Keep libraries' advice to programmers off the terminal. They read these settings when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def load_images(sources: list[str] | None, *, allow_url: bool, **view: Any) -> list["Image.Image"]:
    """Every `--image` as an 8-bit PIL image, windowed and upright.

    Args:
        sources: paths, or addresses with `--allow-url`.
        allow_url: whether `--allow-url` was given.
        **view: fields of `View` about what to show; None where the user did not choose.

    Raises:
        ValueError: if a file is missing or is no image, or for an address without `--allow-url`.
    """
    from ..processing.medical_formats_unimedvl import open_image
    from ..processing.view_unimedvl import View

    chosen = {name: value for name, value in view.items() if value is not None}
    sources = sources or []
    if chosen and not sources:
        flag = {"slice_index": "slice", "percentiles_of": "percentiles-of"}
        first = next(iter(chosen))
        raise ValueError(f"--{flag.get(first, first)} needs an --image to act on.")
    for source in sources:
        if "://" in source and not allow_url:
            raise ValueError(f"{source!r} is a URL: download the image first, or pass --allow-url.")
    shown = View(**chosen, allow_url=allow_url)
    return [open_image(source, shown) for source in sources]


def image_hashes(sources: list[str] | None) -> list[str]:
    """SHA-256 of every `--image` that is a file, and of names and contents together where it is a folder."""
    paths = [Path(source) for source in sources or []]
    return [_image_hash(path) for path in paths if path.exists()]


def _image_hash(path: Path) -> str:
    if path.is_file():
        return hash_file(path)
    return hash_files((file.name, file) for file in sorted(path.iterdir()) if file.is_file())


def choose_seed(seed: int | None) -> int:
    """The seed that was asked for, or a new one, so that every result can be repeated.

    Raises:
        ValueError: if it does not fit a torch generator.
    """
    if seed is None:
        return secrets.randbelow(1 << 31)
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"--seed must lie in 0 .. 2**63 - 1, not {seed}.")
    return seed


def load_model(model: str | None, **options: Any) -> "Loaded":
    """Load the checkpoint that the user named, without the libraries' chatter.

    Args:
        model: folder or Hub id; the nano checkpoint by default.
        **options: further arguments of `load`.
    """
    from ..checkpoint.loading import load

    silence_loading()
    return load(model, **options)


def silence_loading() -> None:
    """Keep transformers' advice, and bars where nobody watches, off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def say(message: str) -> None:
    """A line for the person at the terminal: stderr, so that stdout holds results only."""
    print(message, file=sys.stderr)
