"""Checkpoint folders: where one is, whether it is whole, and what it holds, all without loading a weight.

Everything is read from JSON files and from the headers of safetensors files. Pickled weights are never opened.
Files of the upstream layout are found and read by `modeling_unimedvl/upstream_weights_unimedvl.py`.
"""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import validate_repo_id

from ..modeling_unimedvl.upstream_layout_unimedvl import is_upstream_layout
from ..modeling_unimedvl.upstream_weights_unimedvl import (
    AUTOENCODER_FILES,
    PICKLE_SUFFIXES,
    WEIGHT_NAMES,
    StoredTensor,
    indexed_files,
    read_headers,
    upstream_tensors,
)
from ..utils.digests import hash_ends
from ..utils.errors import first_line
from ..utils.json_files import read_json

# The nano checkpoint, part of the wheel and of a checkout alike: the default model of the command line.
NANO_DIRECTORY = Path(__file__).resolve().parents[1] / "hub_cards" / "unimedvl-nano"
# Code is not in the list: the command line runs the installed classes, never a repository's.
SETTINGS_PATTERNS = ("*.json", "*.jinja", "*.txt")
DOWNLOAD_PATTERNS = (*SETTINGS_PATTERNS, "*.safetensors")

# First match wins; the patterns hold for our weight names and for those of the upstream layout.
PARTS = (
    ("autoencoder", r"^(model\.vae|vae_model|encoder|decoder)\."),
    ("generation expert", r"_moe_gen\b"),
    ("latent projections", r"\b(vae2llm|llm2vae|time_embedder)\."),
    ("position tables", r"\b(latent_pos_embed|vit_pos_embed)\."),
    ("vision transformer", r"\bvit_model\."),
    ("connector", r"\bconnector\."),
    ("embeddings and output head", r"\b(embed_tokens|lm_head)\."),
    ("understanding expert", r"\blanguage_model\."),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose files are all there.

    Attributes:
        directory: the folder.
        name: how people call it: a Hub id, or the name of the folder.
        revision: the commit hash for a Hub id, else `weights:` and a fingerprint of the weight files.
        layout: "transformers", or "upstream" for the layout of the BAGEL and UniMedVL releases.
        tensors: where every tensor lies, by name.
    """

    directory: Path
    name: str
    revision: str
    layout: str
    tensors: dict[str, StoredTensor]


def default_model() -> str:
    """The nano checkpoint that comes with the package.

    Raises:
        ValueError: if this installation came without it.
    """
    if not (NANO_DIRECTORY / "config.json").is_file():
        raise ValueError("this installation has no nano checkpoint: name a model, --model FOLDER or HUB_ID.")
    return str(NANO_DIRECTORY)


def open_checkpoint(model: str | os.PathLike, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint, downloading it if it is a Hub id, and check that it is whole.

    Args:
        model: a folder, or a Hub id `owner/name`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: if there is no such folder or repository, or if it is not a whole UniMedVL checkpoint; the message
            says what to do.
    """
    directory, name, commit = _locate(os.fspath(model), revision)
    if is_upstream_layout(directory):
        layout, tensors = "upstream", upstream_tensors(directory)[0]
    else:
        layout, tensors = "transformers", {stored.key: stored for stored in read_headers(_weight_files(directory))}
    files = sorted({stored.file for stored in tensors.values()})
    return Checkpoint(directory, name, commit or fingerprint(files), layout, tensors)


def peek_checkpoint(model: str | os.PathLike, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint like `open_checkpoint`, but download only settings and headers of weights of a Hub id.

    Args:
        model: a folder, or a Hub id `owner/name`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: for what `open_checkpoint` refuses, or if the Hub does not give the headers.
    """
    if Path(model).expanduser().exists():
        return open_checkpoint(model, revision)
    directory, name, commit = _locate(os.fspath(model), revision, SETTINGS_PATTERNS)
    assert commit is not None, "what is no local path is a Hub id"
    api = HfApi()
    tensors = {}
    try:
        layout, files = _remote_weight_files(directory, set(api.list_repo_files(name, revision=commit)))
        for file in files:
            for key, part in api.parse_safetensors_file_metadata(name, file, revision=commit).tensors.items():
                # No value is ever read by this record, so where the file's data begin does not matter.
                offset = part.data_offsets[0]
                tensors[key] = StoredTensor(directory / file, key, part.dtype, tuple(part.shape), offset)
    except (HfHubHTTPError, SafetensorsParsingError) as error:
        raise ValueError(f"cannot read the weights of {model!r} on the Hub: {first_line(error)}") from error
    return Checkpoint(directory, name, commit, layout, tensors)


def _remote_weight_files(directory: Path, present: set[str]) -> tuple[str, list[str]]:
    """Layout of a repository whose settings lie in `directory`, and its weight files among those `present`."""
    if is_upstream_layout(directory):
        main = [f"{name}.safetensors" for name in WEIGHT_NAMES]
        groups = [[file for file in group if file in present][:1] for group in (main, AUTOENCODER_FILES)]
        return "upstream", [file for group in groups for file in group]
    _require_model_type(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return "transformers", sorted({str(file) for file in read_json(index).get("weight_map", {}).values()})
    return "transformers", ["model.safetensors"]


def _locate(
    model: str, revision: str | None, patterns: tuple[str, ...] = DOWNLOAD_PATTERNS
) -> tuple[Path, str, str | None]:
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{model!r} is a local folder and has no revisions: leave --revision out.")
        return path, path.resolve().name, None
    if path.exists():
        raise ValueError(f"{model!r} is a file: give the folder of a checkpoint, or a Hub id like owner/name.")
    try:
        validate_repo_id(model)
        looks_local = model.count("/") != 1 or model.startswith((".", "~"))
    except HFValidationError:
        looks_local = True
    if looks_local:
        raise ValueError(f"there is no folder {model!r}: give a checkpoint folder, or a Hub id like owner/name.")
    try:
        directory = Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ValueError(f"{model!r} is no folder and cannot be downloaded: check the path or the network.") from error
    except HfHubHTTPError as error:
        raise ValueError(f"cannot get {model!r} from the Hub: {first_line(error)}") from error
    return directory, model, directory.name


def _require_model_type(directory: Path) -> None:
    model_type = read_json(directory / "config.json").get("model_type")
    if model_type != "unimedvl":
        raise ValueError(f"{str(directory)!r} is a checkpoint of type {model_type!r}, not of 'unimedvl'.")


def _weight_files(directory: Path) -> list[Path]:
    _require_model_type(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return indexed_files(index)
    single = directory / "model.safetensors"
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles and not single.is_file():
        raise ValueError(
            f"{str(directory)!r} holds pickled weights ({pickles[0]}), which are never loaded: save safetensors."
        )
    return [single]


def fingerprint(files: Iterable[Path]) -> str:
    """`weights:` and 16 hexadecimal digits that distinguish checkpoints."""
    return f"weights:{hash_ends(files)[:16]}"


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to, by our name or upstream's."""
    return next((part for part, pattern in PARTS if re.search(pattern, name)), "other")


def count_parts(tensors: dict[str, StoredTensor]) -> dict[str, int]:
    """Number of values in each part of the model, largest part first."""
    counts: dict[str, int] = {}
    for name, stored in tensors.items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + math.prod(stored.shape)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
