"""Publishing on the Hub: a checkpoint, an adapter, a dataset or a Space; the checks that come first, and the push."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from unimedvl.checkpoint.folder import is_adapter, open_checkpoint
from unimedvl.utils.errors import connection_errors, first_line
from unimedvl.utils.hub_errors import explain

from .adapters import ADAPTER_PATTERNS, stage_adapter
from .model_card import pin_revision, pinned_revision
from .push_checks import check_card, checked_files, refuse_links

# What a checkpoint repository holds; everything else in the folder is a mistake or somebody's private file.
CHECKPOINT_PATTERNS = (
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
SPACE_PATTERNS = (
    "app.py",
    "README.md",
    "requirements.txt",
    "packages.txt",
    "*.png",
    "*.css",
    "LICENSE*",
    ".gitattributes",
)
CARD = "README.md"
# Of an earlier push in other shards: libraries would load one file in place of the index beside it.
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Repository:
    """What a folder becomes on the Hub.

    Attributes:
        kind: "checkpoint", "adapter", "dataset" or "space".
        repo_type: the Hub's word for it.
        files: relative paths that are sent.
        sdk: what a Space runs on, as its card says.
    """

    kind: str
    repo_type: str
    files: list[str]
    sdk: str | None = None


def check_folder(directory: str | os.PathLike, base: str | None = None) -> Repository:
    """What a push would send, after checking that the folder is fit to be published.

    Args:
        directory: the folder of a checkpoint in the transformers layout, of a PEFT adapter, of a dataset that
            `unimedvl data publish` wrote, or of a Space.
        base: Hub id of an adapter's base; the one that the adapter names by default.

    Raises:
        ValueError: if the folder is not whole; if it holds pickles, access tokens, names of patients, folders of this
            machine, unknown files or links to anything but this package's model and processor code; or if it has no
            card with a license and intended use.
    """
    with _checked(Path(directory), base) as (_, repository):
        return repository


@contextmanager
def _checked(folder: Path, base: str | None) -> Iterator[tuple[Path, Repository]]:
    """The folder that is sent, and what of it: of an adapter a copy that names its base as others find it."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}: give the folder of a checkpoint.")
    if not is_adapter(folder):
        if base is not None:
            raise ValueError(f"{str(folder)!r} holds no adapter, and only an adapter has a base: leave --base out.")
        yield folder, _check_as_it_is(folder)
        return
    refuse_links(folder)  # a copy would hold what they lead to
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        stage_adapter(folder, staged, base)
        check_card(staged)
        yield staged, Repository("adapter", "model", checked_files(staged, "an adapter", ADAPTER_PATTERNS))


def _check_as_it_is(folder: Path) -> Repository:
    """Check a folder of a Space, a dataset or a checkpoint."""
    if sdk := _space_sdk(folder):
        check_card(folder, "Space")
        if not (folder / "app.py").is_file():
            raise ValueError(f"{str(folder)!r} has no app.py: write the Space again, `unimedvl ui --space`.")
        return Repository("space", "space", checked_files(folder, "a Space", SPACE_PATTERNS), sdk)
    if (folder / "statistics.json").is_file():
        from .dataset_checks import check_dataset

        return Repository("dataset", "dataset", check_dataset(folder))
    checkpoint = open_checkpoint(folder)
    if checkpoint.layout != "transformers":
        raise ValueError(f"{str(folder)!r} is in the upstream layout: run `unimedvl convert` first.")
    files = checked_files(folder, "a checkpoint", CHECKPOINT_PATTERNS)
    check_card(folder)
    return Repository("checkpoint", "model", files)


def _space_sdk(folder: Path) -> str | None:
    """What the card of a Space says that it runs on; None for every other folder."""
    if not (folder / CARD).is_file():
        return None
    try:
        return ModelCard.load(folder / CARD).data.to_dict().get("sdk")
    except ValueError:  # front matter that is no YAML, which the check of the card names
        return None


def push_folder(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    message: str | None = None,
    base: str | None = None,
) -> tuple[Repository, str]:
    """Create the repository if needed and send the folder; the same call resumes a push that was interrupted.

    The snippets of a model card pin the commit that holds the weights. It is known once they are there, so that the
    card follows in a commit of its own.

    Args:
        directory: a folder that passes `check_folder`.
        repo_id: `owner/name`.
        private: create the repository as private; one that is there must be.
        message: commit message.
        base: Hub id of an adapter's base, which is written into the adapter's settings and card on the Hub; the
            folder stays as it is.

    Returns:
        What was sent, and the hash of the last commit: what users should pin as `revision`.

    Raises:
        ValueError: if the folder or the id is not fit, the repository is public and should be private, there is no
            token, the Hub refuses, or cannot be reached.
    """
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not a Hub id: write owner/name.")
    with _checked(Path(directory), base) as (folder, repository):
        message = message or f"Upload UniMedVL {repository.kind}"
        return repository, _send(folder, repository, repo_id, private, message)


def _send(folder: Path, repository: Repository, repo_id: str, private: bool, message: str) -> str:
    api, kind = HfApi(library_name="unimedvl"), repository.repo_type
    with _one_line(repo_id):
        there = api.repo_exists(repo_id, repo_type=kind)
        if private and there and not api.repo_info(repo_id, repo_type=kind).private:
            raise ValueError(f"{repo_id!r} is there and public: make it private on the Hub, or leave --private out.")
        if repository.kind == "dataset":
            from unimedvl.unimed5m.publish import push_to_hub

            push_to_hub(folder, repo_id, private, files=repository.files, message=message)
            return str(api.repo_info(repo_id, repo_type=kind).sha)
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True, space_sdk=repository.sdk)
        if repository.kind == "space":
            return api.upload_folder(
                folder_path=folder,
                repo_id=repo_id,
                repo_type=kind,
                allow_patterns=repository.files,
                commit_message=message,
            ).oid
        published = _card_there(api, repo_id, kind)
        # An empty repository gets the card with all else: at no time it holds weights without a license.
        first = [name for name in repository.files if name != CARD or published is None]
        head = api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type=kind,
            allow_patterns=first,
            delete_patterns=WEIGHTS,
            commit_message=message,
        ).oid
        written = (folder / CARD).read_text(encoding="utf-8")
        pinned = published and pinned_revision(published, repo_id)
        if not pinned or _contents(api, repo_id, kind, pinned) != _contents(api, repo_id, kind, head):
            pinned = head
        text = pin_revision(written, pinned, repo_id)
        if text != (written if published is None else published):
            card = CommitOperationAdd(CARD, text.encode())
            head = api.create_commit(repo_id, [card], commit_message="Card", repo_type=kind).oid
    return head


def _card_there(api: HfApi, repo_id: str, kind: str) -> str | None:
    """The card that the repository holds; None for none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(api.hf_hub_download(repo_id, CARD, repo_type=kind, local_dir=folder)).read_text("utf-8")
        except RemoteEntryNotFoundError:
            return None


def _contents(api: HfApi, repo_id: str, kind: str, revision: str) -> dict[str, str]:
    """Hash by name of every file but the card."""
    listed = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=kind)
    return {entry.path: blob for entry in listed if (blob := getattr(entry, "blob_id", None)) and entry.path != CARD}


@contextmanager
def _one_line(repo_id: str) -> Iterator[None]:
    """Errors of the Hub and of the way to it, as what a user can do."""
    refusals = (HfHubHTTPError, LocalTokenNotFoundError)
    # A download that finds neither the Hub nor a copy here ends in the second.
    broken: tuple[type[BaseException], ...] = (*connection_errors(), LocalEntryNotFoundError)
    expected: tuple[type[BaseException], ...] = (*refusals, RuntimeError, *broken)
    try:
        yield
    except expected as error:
        # huggingface_hub wraps what ends the upload of a large file into a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, refusals):
            raise ValueError(f"the Hub refused the push to {repo_id!r}: {explain(cause, repo_id)}") from error
        if isinstance(cause, broken):
            raise ValueError(
                f"the connection to the Hub ended during the push to {repo_id!r} ({first_line(cause)}): run the same "
                "command again, what has arrived is not sent twice."
            ) from error
        raise
