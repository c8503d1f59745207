"""How images get into a session: uploads, DICOM series among them, and the examples."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from unimedvl.hub_cards.demo_images import BRAIN, CT, FUNDUS, MRI, SECTION, ULTRASOUND, PackageImage
from unimedvl.processing.dicom_encodings_unimedvl import HEADER_BYTES, is_dicom
from unimedvl.processing.view_unimedvl import View

from .sessions import Session
from .sources import Source, open_source

MAX_SOURCES = 8
# Files of one upload: a series may have hundreds.
MAX_FILES = 512
EXAMPLES: dict[str, PackageImage] = {
    "Fundus photograph": FUNDUS,
    "CT slice": CT,
    "MRI": MRI,
    "Ultrasound": ULTRASOUND,
    "Tissue section": SECTION,
    "Brain volume (NIfTI)": BRAIN,
}


def examples() -> list[str]:
    """Names of the example images whose packages are installed."""
    found = []
    for name, image in EXAMPLES.items():
        try:
            if image.path().is_file():
                found.append(name)
        except AssertionError:
            continue
    return found


def take_file(session: Session, file: str) -> Path:
    """Move an uploaded file into the session, with the name that the person gave it.

    Raises:
        ValueError: if it is not there. Gradio has one place for all uploads of the same contents and name, so that
            another page may have taken it.
    """
    path = Path(file)
    try:
        target = session.place(path.name, path.stat().st_size)
        shutil.move(path, target)
    except FileNotFoundError:
        raise ValueError(f"{path.name!r} is not there any more: upload it again.") from None
    _remove_folder(path.parent)
    return target


def _remove_folder(folder: Path) -> None:
    """Delete what Gradio made for an upload, a folder named after its contents, unless another upload is in it."""
    with suppress(OSError):
        folder.rmdir()


def take_files(session: Session, files: Sequence[str]) -> list[Source]:
    """Move uploaded files into the session and open them; several DICOM files of one series are one source.

    Args:
        session: whose folder receives them.
        files: paths in Gradio's cache. They are gone afterwards, also where they are refused.

    Raises:
        ValueError: one sentence, for the first file that can not be shown, or where there are too many.
    """
    # The same file twice in one upload is one file.
    given, moved = list(dict.fromkeys(files)), []
    try:
        if len(given) > MAX_FILES:
            raise ValueError(f"{len(given)} files at once: upload at most {MAX_FILES}.")
        for file in given:
            moved.append(take_file(session, file))
        sources = _opened_together(session, moved)
        if len(session.sources) + len(sources) > MAX_SOURCES:
            raise ValueError(f"There is room for {MAX_SOURCES} images: remove some first.")
    except BaseException:
        for path in moved:
            shutil.rmtree(path.parent, ignore_errors=True)
        for path in map(Path, given):
            path.unlink(missing_ok=True)
            _remove_folder(path.parent)
        raise
    session.sources += sources
    session.selected = len(session.sources) - 1
    return sources


def _opened_together(session: Session, paths: list[Path]) -> list[Source]:
    if len(paths) > 1 and all(_is_dicom(path) for path in paths):
        folder = session.place("series")
        folder.mkdir()
        for number, path in enumerate(paths):
            # Scanners give the same name to files of different folders.
            shutil.copy2(path, folder / f"{number:04d}-{path.name}")
        try:
            series = open_source(folder, f"Series of {len(paths)} DICOM files")
        except ValueError:
            # Files of several series, or with several frames: each is shown by itself.
            shutil.rmtree(folder.parent, ignore_errors=True)
        else:
            for path in paths:
                shutil.rmtree(path.parent, ignore_errors=True)
            return [series]
    if len(paths) > MAX_SOURCES:
        raise ValueError(f"{len(paths)} files that are no one DICOM series: upload at most {MAX_SOURCES} images.")
    return [open_source(path, path.name) for path in paths]


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return is_dicom(stream.read(HEADER_BYTES))


def take_example(session: Session, name: str) -> Source:
    """Open an example image, which stays where its package has it.

    Raises:
        ValueError: if there is none of that name, or the session is full.
    """
    if name not in EXAMPLES:
        raise ValueError(f"There is no example {name!r}: choose one of {', '.join(EXAMPLES)}.")
    if len(session.sources) >= MAX_SOURCES:
        raise ValueError(f"There is room for {MAX_SOURCES} images: remove some first.")
    example = EXAMPLES[name]
    source = open_source(example.path(), name, View(**example.view) if example.view else None)
    session.sources.append(source)
    session.selected = len(session.sources) - 1
    return source
