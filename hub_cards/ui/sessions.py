"""What a person's visit holds: files in a folder of its own, opened images, conversations. Nothing outlives it.

Gradio keeps uploads in a cache that all visits share. A handler that receives one moves it into its session's folder,
which is removed when the page is closed or reloaded, when nothing happened for an hour, or when the program ends.
"""

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
from unimedvl.processing.view_unimedvl import View

from .sources import Source

IDLE_SECONDS = 3600
# Views that are kept for a browser which may still be loading one, and their longer side in pixels.
KEPT_VIEWS, VIEW_SIDE = 4, 1024


@dataclass
class Conversation:
    """Turns of a conversation.

    Attributes:
        messages: for the processor: `{"role", "content"}`, content a list of text and image items.
        shown: the same for the page, images as paths of PNG files.
        attached: which sources, in which view, the model has seen.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    attached: set[tuple[str, View]] = field(default_factory=set)


@dataclass
class Segmentation:
    """The last mask that was made: the image, its mask, and the true mask where one was given."""

    image: Image.Image
    mask: Image.Image
    truth: Image.Image | None


class Session:
    """One visit.

    Args:
        folder: made here; it must not exist.

    Attributes:
        sources: the images, in the order in which they were added.
        selected: index of the one that is shown; meaningless without sources.
        asked, interleaved: the conversations of two tabs.
        made: path of the image that was made last, by tab.
        segmentation: see `Segmentation`.
        stop: ends what is being made, when it is set.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder, self.used = folder, time.monotonic()
        self.sources: list[Source] = []
        self.selected = 0
        self.asked, self.interleaved = Conversation(), Conversation()
        self.made: dict[str, Path] = {}
        self.segmentation: Segmentation | None = None
        self.truth: Path | None = None
        self.stop = threading.Event()
        self._views: list[Path] = []
        self._held: tuple[Path, Opened, ExitStack] | None = None
        # Sliders send their events faster than a large volume is read.
        self._reading = threading.RLock()

    def begin(self) -> threading.Event:
        """A request begins: the event that stops it, and no other one."""
        self.stop = threading.Event()
        return self.stop

    def place(self, name: str) -> Path:
        """A path inside a new folder of the session, with a name that people will see."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        return folder / name

    def image(self, source: Source) -> Image.Image:
        """What the model sees of a source: 8 bits, windowed and upright, in full size.

        Raises:
            ValueError: one sentence, for what can not be shown.
        """
        with self._reading:
            if self._held is None or self._held[0] != source.path:
                self._release()
                stack = ExitStack()
                self._held = (source.path, stack.enter_context(opened(source.path)), stack)
            return self._held[1].image(source.view)

    def view(self, source: Source) -> Path:
        """A PNG file of `image`, of at most `VIEW_SIDE` pixels, for the page."""
        path = self.write(self.image(source), "view.png")
        self._views.append(path)
        while len(self._views) > KEPT_VIEWS:
            shutil.rmtree(self._views.pop(0).parent, ignore_errors=True)
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

    def close(self) -> None:
        """Stop what runs, and delete everything."""
        self.stop.set()
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
        root: existing folder under which every session has its own.
        idle_seconds: after which `close_idle` closes a session.
    """

    def __init__(self, root: Path, idle_seconds: float = IDLE_SECONDS):
        self._root, self._idle = root, idle_seconds
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, key: str | None) -> Session:
        """The session of a page, which is made on its first request."""
        key = key or ""
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = Session(self._root / "sessions" / secrets.token_hex(16))
            session = self._sessions[key]
            session.used = time.monotonic()
            return session

    def close_idle(self) -> None:
        """End the sessions that had no request for a while."""
        now = time.monotonic()
        for key, session in list(self._sessions.items()):
            if now - session.used > self._idle:
                self.close(key)

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
