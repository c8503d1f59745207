"""What a person's visit holds: files in a folder of its own, opened images, conversations. Nothing outlives it.

Gradio keeps uploads in a cache that all visits share. A handler that receives one moves it into its session's folder,
which is removed when the page is closed or reloaded, when nothing happened for an hour, or when the program ends.
"""

import math
import secrets
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from unimedvl.checkpoint.provenance import save_generated_image
from unimedvl.processing.medical_formats_unimedvl import Opened, opened
from unimedvl.processing.pixel_windows_unimedvl import convert_to_rgb
from unimedvl.processing.view_unimedvl import View
from unimedvl.utils.errors import expected_errors

from .room import Room, page_room, remove_old, total_room
from .sources import Source, named

IDLE_SECONDS = 3600
MAX_SESSIONS = 256
# Sessions that hold a volume in memory; the others open theirs again.
OPEN_SESSIONS = 2
# Files of each kind that are kept for a browser which may still be loading one, and their longer side in pixels.
KEPT_FILES, VIEW_SIDE = 4, 1024
SESSIONS = "sessions"
CLOSED = "The page was closed or reloaded meanwhile, and its files are gone."


@dataclass
class Conversation:
    """Turns of a conversation.

    Attributes:
        began: when it did, in the seconds of `time.monotonic`; what was asked earlier is no part of it.
        messages: for the processor: `{"role", "content"}`, content a list of text and image items. Images are paths,
            so that they take room on disk only.
        shown: the same for the page, images as paths of PNG files.
        attached: SHA-256 of the sources that the model has seen, by key and view.
    """

    began: float = -math.inf
    messages: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    attached: dict[tuple[str, View], str] = field(default_factory=dict)

    @property
    def digests(self) -> list[str]:
        """Of everything that the model has seen, each once."""
        return list(dict.fromkeys(self.attached.values()))


@dataclass(frozen=True)
class Segmentation:
    """The last mask that was made.

    Attributes:
        image: what was segmented.
        mask: what was made of it.
        truth: the true mask, where one was given.
        source: where the image is from, in the view that it was segmented in.
        prompt, seed, settings: what the mask was made with.
    """

    image: Image.Image
    mask: Image.Image
    truth: Image.Image | None
    source: Source
    prompt: str
    seed: int
    settings: dict[str, Any]


class Session:
    """One visit.

    Args:
        folder: made here; it must not exist.
        room: what all sessions share.

    Attributes:
        sources: the images, in the order in which they were added.
        selected: index of the one that is shown; meaningless without sources.
        asked, interleaved: the conversations of two tabs.
        made: path of the image that was made last, by tab.
        segmentation: see `Segmentation`.
        stop: ends what is being made, when it is set.
    """

    def __init__(self, folder: Path, room: Room):
        folder.mkdir(parents=True)
        self.folder, self.used = folder, time.monotonic()
        self.sources: list[Source] = []
        self.selected = 0
        self.asked, self.interleaved = Conversation(), Conversation()
        self.made: dict[str, Path] = {}
        self.segmentation: Segmentation | None = None
        self.stop = threading.Event()
        self._stopped, self._closed = -math.inf, False
        self._rooms = (page_room(folder), room)
        self._passing: dict[str, list[Path]] = {}
        self._held: tuple[Path, Opened, ExitStack] | None = None
        # Sliders send their events faster than a large volume is read.
        self._reading = threading.RLock()

    def begin(self, arrived: float = math.inf) -> threading.Event:
        """A request begins: the event that stops it, and no other one.

        Args:
            arrived: when the request did. The event is set where the person has stopped everything since.
        """
        self.stop = threading.Event()
        if arrived <= self._stopped:
            self.stop.set()
        return self.stop

    def end(self, arrived: float) -> None:
        """Stop what was asked for before this moment, running or waiting."""
        self._stopped = max(self._stopped, arrived)
        self.stop.set()

    def place(self, name: str, size: int = 0) -> Path:
        """A path inside a new folder of the session, with a name that people will see.

        Args:
            name: of the file.
            size: in bytes, where it is known.

        Raises:
            ValueError: if the session has been closed, or keeps as much as it may.
        """
        if self._closed:
            raise ValueError(CLOSED)
        for room in self._rooms:
            room.take(size)
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        return folder / name

    def image(self, source: Source) -> Image.Image:
        """What the model sees of a source: 8 bits, windowed and upright, in full size.

        Raises:
            ValueError: one sentence, for what can not be shown.
        """
        if self._closed:
            raise ValueError(CLOSED)
        with self._reading:
            try:
                if self._held is None or self._held[0] != source.path:
                    self._release()
                    stack = ExitStack()
                    self._held = (source.path, stack.enter_context(opened(source.path)), stack)
                return self._held[1].image(source.view)
            except expected_errors() as error:
                raise ValueError(named(error, source.path, source.name)) from None

    def view(self, source: Source) -> Path:
        """A PNG file of `image`, of at most `VIEW_SIDE` pixels, for the page."""
        return self.passing("view", self.write(self.image(source), "view.png"))

    def passing(self, kind: str, path: Path) -> Path:
        """The same file, which is deleted after `KEPT_FILES` newer ones of its kind."""
        kept = self._passing.setdefault(kind, [])
        kept.append(path)
        while len(kept) > KEPT_FILES:
            shutil.rmtree(kept.pop(0).parent, ignore_errors=True)
        return path

    def attach(self, image: Image.Image) -> Path:
        """A PNG file of an image as the model sees it, in full size."""
        path = self.place("attached.png")
        convert_to_rgb(image).save(path, compress_level=1)
        return path

    def write(self, image: Image.Image, name: str) -> Path:
        """A PNG file of an image that nobody generated, of at most `VIEW_SIDE` pixels."""
        small = image.convert("RGB")
        small.thumbnail((VIEW_SIDE, VIEW_SIDE))
        path = self.place(name)
        small.save(path)
        return path

    def write_generated(self, image: Image.Image, name: str, **record: Any) -> Path:
        """A PNG file of a generated image with its provenance, see `save_generated_image`."""
        path = self.place(name)
        save_generated_image(image, path, **record)
        return path

    def remove(self, index: int) -> None:
        """Forget a source and delete its file."""
        source = self.sources.pop(index)
        with self._reading:
            self._release()
        if source.path.is_relative_to(self.folder):
            shutil.rmtree(source.path.parent, ignore_errors=True)
        self.selected = max(0, min(self.selected, len(self.sources) - 1))

    def rest(self) -> None:
        """Let go of the volume in memory, unless it is being read."""
        if self._reading.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._reading.release()

    def close(self) -> None:
        """Stop what runs, and delete everything."""
        self._closed = True
        self.end(time.monotonic())
        with self._reading:
            self._release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _release(self) -> None:
        if self._held is not None:
            self._held[2].close()
            self._held = None


class Sessions:
    """All visits, by Gradio's hash of the page.

    Args:
        root: folder under which every session has its own, beside what Gradio keeps.
        idle_seconds: after which `close_idle` closes a session, and deletes an upload that no session took.

    Attributes:
        room: what all sessions and Gradio may keep together.
    """

    def __init__(self, root: Path, idle_seconds: float = IDLE_SECONDS):
        self._root, self._idle = root, idle_seconds
        self.room = total_room(root)
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, key: str | None) -> Session:
        """The session of a page, which is made on its first request.

        Raises:
            ValueError: for one more than `MAX_SESSIONS`.
        """
        key = key or ""
        with self._lock:
            if key not in self._sessions:
                if len(self._sessions) >= MAX_SESSIONS:
                    raise ValueError("The application has as many visitors as it takes: try again later.")
                self._sessions[key] = Session(self._root / SESSIONS / secrets.token_hex(16), self.room)
            session = self._sessions[key]
            session.used = time.monotonic()
            others = sorted(self._sessions.values(), key=lambda each: each.used)[:-OPEN_SESSIONS]
        for other in others:
            other.rest()
        return session

    def close_idle(self) -> None:
        """End the sessions that had no request for a while, and delete uploads of that age that no session took."""
        now = time.monotonic()
        for key, session in list(self._sessions.items()):
            if now - session.used > self._idle:
                self.close(key)
        remove_old(self._root, SESSIONS, self._idle)

    def close(self, key: str | None) -> None:
        """End the session of a page; without one there is nothing to do."""
        with self._lock:
            session = self._sessions.pop(key or "", None)
        if session is not None:
            session.close()

    def close_all(self) -> None:
        """End every session."""
        for key in list(self._sessions):
            self.close(key)
