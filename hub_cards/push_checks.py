"""What must hold of a folder before a byte of it leaves for the Hub.

It holds known files, and no pickles, secrets, links, folders of this machine or notes about people.
"""

import re
import string
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import ModelCard
from PIL import Image

from unimedvl import modeling_unimedvl, processing
from unimedvl.checkpoint.folder import PICKLE_SUFFIXES
from unimedvl.checkpoint.provenance import PROVENANCE_KEYS

# Links into these are sent as the files they lead to: the nano of a checkout keeps no second copy of its code.
SOURCE_FOLDERS = tuple(Path(package.__path__[0]).resolve() for package in (modeling_unimedvl, processing))
SECRETS = {
    "an access token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})\b"
    ),
    "a cloud key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|(?i:aws_secret_access_key)[\"']?\s*[:=]\s*[\"']?\S"),
    "an API key": re.compile(
        r"\b(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|glpat-[A-Za-z0-9_-]{20,}|xox[abpr]-[A-Za-z0-9-]{10,})"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# Labels with a value behind them, DICOM tags of group 0010 as tools print them, and as DICOM JSON names them.
PATIENT = re.compile(
    r"""\b(patient'?s?[ _]?(?:name|id|birth[ _]?date|address)|(?:accession|medical[ _]?record)[ _]?number|MRN|DOB)"""
    r"""["']?[ \t]*[:=][ \t]*["']?[^\s"',}{\]\[]"""
    r"""|(\(0010,[01]\d[0-9a-f]{2}\)[ \t]*\w)"""
    r"""|["'](0010[01]\d[0-9a-f]{2})["'][ \t]*:""",
    re.IGNORECASE,
)
HOME = re.compile(r"(?<![\w./:-])(?:/(?:home|Users)/|/root/|[A-Za-z]:[\\/]+Users[\\/]+)[\w.-]+")
PATH = re.compile(r"(?<![\w./:<-])/(?:[\w.+-]+/)+[\w.+-]+")
# Every machine has these: a path below them says nothing about this one.
SYSTEM = ("/bin/", "/dev/", "/etc/", "/lib/", "/opt/", "/proc/", "/sbin/", "/sys/", "/usr/")
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
HEADER_LIMIT = 100_000_000  # as safetensors itself


def refuse_links(folder: Path) -> None:
    """Raise ValueError where a folder holds a link to anything but this package's model and processor code."""
    for path, name in _inside(folder):
        if path.is_symlink() and path.resolve().parent not in SOURCE_FOLDERS:
            raise ValueError(f"{name} is a link: replace it by the file itself.")


def checked_files(folder: Path, kind: str, patterns: Iterable[str], leave_out: Collection[str] = ()) -> list[str]:
    """Every file of a folder, after checking that each may travel.

    Args:
        folder: what is to be published.
        kind: what it is, for messages.
        patterns: names, or paths where they hold a slash, of the files that belong to it.
        leave_out: relative paths that stay here.

    Returns:
        Paths relative to the folder, with forward slashes, in order.

    Raises:
        ValueError: naming the first file that may not travel, and why.
    """
    refuse_links(folder)
    files = []
    for path, name in _inside(folder):
        if name in leave_out or path.is_dir():
            continue
        if path.suffix in PICKLE_SUFFIXES:
            raise ValueError(f"{name} looks like a pickle, which can run code on loading: remove it.")
        if not any(fnmatch(name if "/" in pattern else path.name, pattern) for pattern in patterns):
            raise ValueError(f"{name} is no part of {kind}: remove it from the folder.")
        _check_content(path, name)
        files.append(name)
    return files


def _inside(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything below a folder but caches, in order, with its relative path."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not {"__pycache__", ".cache", ".git"} & set(relative.parts):
            yield path, relative.as_posix()


def _check_content(path: Path, name: str) -> None:
    if path.suffix == ".parquet":  # checked record by record, where it is read
        return
    if path.suffix in IMAGES:
        check_image_notes(path, name)
        return
    content = _header(path) if path.suffix == ".safetensors" else path.read_bytes()
    check_text(content.decode("utf-8", errors="replace"), name, is_code=path.suffix == ".py")


def check_text(text: str, name: str, is_code: bool = False) -> None:
    """Refuse a text that holds a key, names a folder of this machine or states who a patient is.

    Args:
        text: what is read.
        name: where it stands, for messages, which repeat nothing of a person.
        is_code: whether names of a patient's fields are code.

    Raises:
        ValueError: naming what was found.
    """
    for kind, pattern in SECRETS.items():
        if pattern.search(text):
            raise ValueError(f"{name} holds {kind}: remove it, and revoke it.")
    if found := next(_local_paths(text), None):
        raise ValueError(f"{name} names the folder {found!r} of this machine: take it out.")
    if not is_code and (noted := PATIENT.search(text)):
        label = next(group for group in noted.groups() if group)
        raise ValueError(f"{name} states a {label!r}, which may be a person's: take it out.")


def _header(path: Path) -> bytes:
    """Names and metadata of a safetensors file, without its tensors."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(min(length, HEADER_LIMIT))


def _local_paths(text: str) -> Iterator[str]:
    """Paths in a text that name a person's home, or exist on this machine and not on every one."""
    for found in HOME.finditer(text):
        yield found[0]
    for found in PATH.finditer(text):
        path = found[0].rstrip(string.punctuation)
        if not path.startswith(SYSTEM) and Path(path).exists():
            yield path


def check_image_notes(file: Path | BinaryIO, name: str) -> None:
    """Refuse an image that carries notes other than our own about how it was made.

    Raises:
        ValueError: if it is no image, or holds EXIF, comments or texts: cameras and people write into them.
    """
    try:
        with Image.open(file) as image:
            image.load()
            noted = [*getattr(image, "text", {}), *(key for key in ("exif", "comment") if image.info.get(key))]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is no image that can be read: remove it.") from error
    foreign = [key for key in noted if key not in PROVENANCE_KEYS]
    if foreign:
        raise ValueError(f"{name} carries notes ({', '.join(map(str, foreign))}): save the image without them.")


def check_card(folder: Path, what: str = "model") -> None:
    """Check the card of a folder.

    Args:
        folder: with README.md.
        what: whose card it is, for messages.

    Raises:
        ValueError: if there is none, or it states no license, or not that this is not for diagnosis.
    """
    if not (folder / "README.md").is_file():
        raise ValueError(f"{str(folder)!r} has no README.md: write a {what} card with license and intended use.")
    try:
        card = ModelCard.load(folder / "README.md")
    except ValueError as error:
        raise ValueError(f"the front matter of README.md is no YAML: {' '.join(str(error).split())}") from error
    if not card.data.license:
        raise ValueError(f"the {what} card names no license: add `license:` to the front matter of README.md.")
    if not re.search(r"not\b.{0,40}\b(diagnos|clinical)", card.text, re.IGNORECASE | re.DOTALL):
        raise ValueError(f"the {what} card does not say that it is not for diagnosis: add it to README.md.")
