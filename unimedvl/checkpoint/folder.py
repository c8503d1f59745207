"""Checkpoint folders: where one is, whether it is whole, and what it holds, all without loading a weight.

Everything is read from JSON files and from the headers of safetensors files. Pickled weights are never opened.
Files of the upstream layout are found and read by `modeling_unimedvl/upstream_weights_unimedvl.py`.
"""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
from ..utils.hub_errors import explain
from ..utils.json_files import read_json

# The nano checkpoint, part of the wheel and of a checkout alike: the default model of the command line.
NANO_DIRECTORY = Path(__file__).resolve().parents[1] / "hub_cards" / "unimedvl-nano"
# What recipes call it, from a checkout's root; elsewhere the name leads to the one of the package.
NANO_NAME = "hub_cards/unimedvl-nano"
# Where a training run puts its finished model, in its folder.
FINISHED = "final"
# What PEFT calls the settings of an adapter.
ADAPTER_SETTINGS = "adapter_config.json"
# Code is not in the list: the command line runs the installed classes, never a repository's.
SETTINGS_PATTERNS = ("*.json", "*.jinja", "*.txt", "README.md")
DOWNLOAD_PATTERNS = (*SETTINGS_PATTERNS, "*.safetensors")

# Begins the revisions of local folders, which are fingerprints of their weights.
LOCAL_REVISION = "weights:"
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
# Parts that only drawing needs.
DRAWING_PARTS = ("autoencoder", "generation expert", "latent projections")


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
    tensors: dict[str, StoredTensor] = field(repr=False)

    @property
    def source(self) -> tuple[str, str | None]:
        """Where this machine finds it again: the Hub id and the commit, or the whole path of the folder and None."""
        local = self.revision.startswith(LOCAL_REVISION)
        return (str(self.directory.resolve()), None) if local else (self.name, self.revision)


class Place(NamedTuple):
    """A folder on this machine: its path, how people call it, and the commit where it is a download of the Hub."""

    directory: Path
    name: str
    commit: str | None


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
    return open_place(locate(model, revision))


def open_place(place: Place) -> Checkpoint:
    """The checkpoint in a folder that `locate` found.

    Raises:
        ValueError: if it is not a whole UniMedVL checkpoint.
    """
    directory, name, commit = place
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
    directory, name, commit = locate(model, revision, SETTINGS_PATTERNS)
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
        raise ValueError(
            f"cannot read the weights of {model!r} on the Hub: {explain(error, name, revision)}"
        ) from error
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


def locate(
    model: str | os.PathLike, revision: str | None = None, patterns: tuple[str, ...] = DOWNLOAD_PATTERNS
) -> Place:
    """The folder of a checkpoint or an adapter, downloaded if it is a Hub id.

    Args:
        model: a folder, or a Hub id `owner/name`.
        revision: branch, tag or commit of a Hub id.
        patterns: files to download.

    Raises:
        ValueError: if there is no such folder or repository.
    """
    model = os.fspath(model)
    path = Path(model).expanduser()
    if model == NANO_NAME and not path.exists():
        path = NANO_DIRECTORY
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{model!r} is a local folder and has no revisions: leave --revision out.")
        return Place(path, path.resolve().name, None)
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
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ValueError(
                f"cannot get {model!r} from the Hub: {explain(error.__cause__, model, revision)}"
            ) from error
        raise ValueError(f"{model!r} is no folder and cannot be downloaded: check the path or the network.") from error
    except HfHubHTTPError as error:
        raise ValueError(f"cannot get {model!r} from the Hub: {explain(error, model, revision)}") from error
    return Place(directory, model, directory.name)


def is_adapter(directory: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    whole = ("config.json", "model.safetensors", "model.safetensors.index.json")
    return (directory / ADAPTER_SETTINGS).is_file() and not any((directory / name).is_file() for name in whole)


def _require_model_type(directory: Path) -> None:
    if is_adapter(directory):
        raise ValueError(
            f"{str(directory)!r} holds an adapter, and a whole checkpoint is needed here: `unimedvl merge` makes one."
        )
    if not (directory / "config.json").is_file() and (directory / FINISHED).is_dir():
        raise ValueError(f"{str(directory)!r} is the folder of a training run: give {str(directory / FINISHED)!r}.")
    model_type = read_json(directory / "config.json").get("model_type")
    if model_type != "unimedvl":
        raise ValueError(f"{str(directory)!r} is a checkpoint of type {model_type!r}, not of 'unimedvl'.")


def _weight_files(directory: Path) -> list[Path]:
    _require_model_type(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return indexed_files(index)
    single = directory / "model.safetensors"
    if not single.is_file() and (directory / "shards").is_dir():
        raise ValueError(
            f"{str(directory)!r} holds what a training run resumes from: finish the run, and give its folder "
            f"{FINISHED!r}."
        )
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles and not single.is_file():
        raise ValueError(
            f"{str(directory)!r} holds pickled weights ({pickles[0]}), which are never loaded: save safetensors."
        )
    return [single]


def fingerprint(files: Iterable[Path]) -> str:
    """`weights:` and 16 hexadecimal digits that distinguish checkpoints."""
    return f"{LOCAL_REVISION}{hash_ends(files)[:16]}"


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to, by our name or upstream's."""
    return next((part for part, pattern in PARTS if re.search(pattern, name)), "other")


def understanding_tensors(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that answering needs; drawing needs them all."""
    return {name: stored for name, stored in tensors.items() if part_of(name) not in DRAWING_PARTS}


def count_parts(tensors: dict[str, StoredTensor]) -> dict[str, int]:
    """Number of values in each part of the model, largest part first."""
    counts: dict[str, int] = {}
    for name, stored in tensors.items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + math.prod(stored.shape)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
