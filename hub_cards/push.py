"""Publishing a checkpoint or adapter folder on the Hub: the checks that come first, and the push."""

import os
import re
import tempfile
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from unimedvl import modeling_unimedvl, processing
from unimedvl.checkpoint.folder import PICKLE_SUFFIXES, is_adapter, open_checkpoint
from unimedvl.utils.errors import first_line

from .adapters import ADAPTER_PATTERNS, RUN_MARK, stage_adapter

# What a checkpoint repository holds; everything else in the folder is a mistake or somebody's private file.
PUBLISHED_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.py",
    "*.md",
    "*.txt",
    "*.yaml",
    "*.png",
    "LICENSE*",
    "NOTICE*",
    "SHA256SUMS",
    ".gitattributes",
)
# Links into these are sent as the files they lead to: the nano of a checkout keeps no second copy of its code.
SOURCE_FOLDERS = tuple(Path(package.__path__[0]).resolve() for package in (modeling_unimedvl, processing))
SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


def check_folder(directory: str | os.PathLike, base: str | None = None) -> list[str]:
    """The files that a push would send, after checking that the folder is fit to be published.

    Args:
        directory: the folder of a checkpoint in the transformers layout, or of a PEFT adapter.
        base: Hub id of an adapter's base; the one that the adapter names by default.

    Returns:
        Paths relative to the folder, with forward slashes, in order.

    Raises:
        ValueError: if the folder is not a whole checkpoint, if it holds pickles, access tokens, unknown files or links
            to anything but this package's model and processor code, or if it has no card with a license.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(directory)!r}: give the folder of a checkpoint.")
    if is_adapter(folder):
        with tempfile.TemporaryDirectory() as staged:
            stage_adapter(folder, Path(staged), base)
            _check_card(Path(staged))
        return _files(folder, "an adapter", ADAPTER_PATTERNS, leave_out=(RUN_MARK,))
    if base is not None:
        raise ValueError(f"{str(directory)!r} holds no adapter, and only an adapter has a base: leave --base out.")
    checkpoint = open_checkpoint(folder)
    if checkpoint.layout != "transformers":
        raise ValueError(f"{str(directory)!r} is in the upstream layout: run `unimedvl convert` first.")
    files = _files(folder, "a checkpoint", PUBLISHED_PATTERNS)
    _check_card(folder)
    return files


def _files(folder: Path, kind: str, patterns: Iterable[str], leave_out: Collection[str] = ()) -> list[str]:
    """Every file of the folder, after checking that each may travel."""
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if "__pycache__" in relative.parts or ".cache" in relative.parts or relative.as_posix() in leave_out:
            continue
        if path.is_symlink() and path.resolve().parent not in SOURCE_FOLDERS:
            raise ValueError(f"{relative} is a link: replace it by the file itself.")
        if path.is_dir():
            continue
        if path.suffix in PICKLE_SUFFIXES:
            raise ValueError(f"{relative} looks like a pickle, which can run code on loading: remove it.")
        if not any(fnmatch(path.name, pattern) for pattern in patterns):
            raise ValueError(f"{relative} is no part of {kind}: remove it from the folder.")
        if path.suffix not in (".safetensors", ".png") and SECRET.search(path.read_bytes()):
            raise ValueError(f"{relative} holds an access token: remove it, and revoke the token.")
        files.append(relative.as_posix())
    return files


def _check_card(folder: Path) -> None:
    if not (folder / "README.md").is_file():
        raise ValueError(f"{str(folder)!r} has no README.md: write a model card with license and intended use.")
    card = ModelCard.load(folder / "README.md")
    if not card.data.license:
        raise ValueError("the model card names no license: add `license:` to the front matter of README.md.")
    if not re.search(r"not\b.{0,40}\b(diagnos|clinical)", card.text, re.IGNORECASE | re.DOTALL):
        raise ValueError("the model card does not say that the model is not for diagnosis: add it to README.md.")


def push_folder(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    message: str | None = None,
    base: str | None = None,
) -> str:
    """Create the repository if needed and send the folder in one commit.

    Args:
        directory: a folder of a checkpoint or an adapter that passes `check_folder`.
        repo_id: `owner/name`.
        private: create the repository as private; an existing one keeps its visibility.
        message: commit message.
        base: Hub id of an adapter's base, which is written into the adapter's settings and card on the Hub; the
            folder stays as it is.

    Returns:
        The hash of the new commit: what users should pin as `revision`.

    Raises:
        ValueError: if the folder or the id is not fit, there is no token, or the Hub refuses.
    """
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not a Hub id: write owner/name.")
    files = check_folder(directory, base)
    folder = Path(directory)
    if not is_adapter(folder):
        return _upload(folder, files, repo_id, private, message or "Upload UniMedVL checkpoint")
    with tempfile.TemporaryDirectory() as staged:
        stage_adapter(folder, Path(staged), base)
        return _upload(Path(staged), files, repo_id, private, message or "Upload UniMedVL adapter")


def _upload(folder: Path, files: list[str], repo_id: str, private: bool, message: str) -> str:
    api = HfApi(library_name="unimedvl")
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=files, commit_message=message)
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ValueError(f"the Hub refused the push to {repo_id!r}: {first_line(error)}") from error
    return commit.oid
