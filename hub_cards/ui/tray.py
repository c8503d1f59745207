"""The images of a session, and the controls of what is shown of each: window, plane, slice, frame."""

from typing import Any

import gradio as gr

from .readable import readable
from .sessions import Session, Sessions
from .sources import CUSTOM, STORED, WINDOWS, Source, window_name
from .uploads import take_example, take_files

# Components that every handler here updates, in this order, see `updates`.
TRAY: tuple[str, ...] = (
    *("picker", "viewer", "details", "removal", "controls"),
    *("plane", "slice", "frame", "window", "custom", "center", "width"),
)
PLANE_NAMES = {
    "axial": "Axial",
    "coronal": "Coronal",
    "sagittal": "Sagittal",
    "axis-0": "Axis 0",
    "axis-1": "Axis 1",
    "axis-2": "Axis 2",
}
NO_IMAGE = "No image yet: upload one or take an example."


class Tray:
    """Handlers of the left column.

    Args:
        sessions: where a page's images are.
    """

    def __init__(self, sessions: Sessions):
        self._sessions = sessions

    @readable
    def add(self, files: list[str] | None, request: gr.Request) -> list[Any]:
        """Take uploaded files."""
        session = self._sessions.of(request.session_hash)
        if files:
            take_files(session, files)
        return updates(session)

    @readable
    def add_example(self, name: str, request: gr.Request) -> list[Any]:
        """Take an example image."""
        session = self._sessions.of(request.session_hash)
        take_example(session, name)
        return updates(session)

    @readable
    def add_made(self, tab: str, request: gr.Request) -> list[Any]:
        """Take the image that was made last in a tab."""
        session = self._sessions.of(request.session_hash)
        if tab not in session.made:
            raise ValueError("Nothing has been made here yet.")
        made = session.made[tab]
        copy = session.place(made.name)
        copy.write_bytes(made.read_bytes())
        take_files(session, [str(copy)])
        return updates(session)

    @readable
    def select(self, choice: int | None, request: gr.Request) -> list[Any]:
        """Show another image."""
        session = self._sessions.of(request.session_hash)
        if choice is not None and 0 <= int(choice) < len(session.sources):
            session.selected = int(choice)
        return updates(session)

    @readable
    def remove(self, request: gr.Request) -> list[Any]:
        """Remove the image that is shown."""
        session = self._sessions.of(request.session_hash)
        if session.sources:
            session.remove(session.selected)
        return updates(session)

    @readable
    def look(
        self,
        plane: str | None,
        slice_index: float | None,
        frame: float | None,
        window: str,
        center: float | None,
        width: float | None,
        request: gr.Request,
    ) -> list[Any]:
        """Show another part of the image."""
        session = self._sessions.of(request.session_hash)
        if not session.sources:
            return updates(session)
        source = session.sources[session.selected]
        chosen: tuple[float, float] | None = None
        if window == CUSTOM:
            start = source.view.window or WINDOWS["Soft tissue"]
            # Fields that are being typed in may be empty.
            chosen = (start[0] if center is None else float(center), start[1] if width is None else float(width))
        elif window != STORED:
            chosen = WINDOWS[window]
        shown = source.show(plane, _whole(slice_index), _whole(frame), chosen)
        image = session.view(shown)
        session.sources[session.selected] = shown
        return updates(session, str(image), custom=window == CUSTOM)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def updates(session: Session, image: str | None = None, custom: bool = False) -> list[Any]:
    """What the components of `TRAY` become.

    Args:
        session: whose images they show.
        image: path of the selected source's view, where it is already there.
        custom: whether the person sets center and width, also where a preset has the same.
    """
    if not session.sources:
        hidden = [gr.update(visible=False) for _ in TRAY[3:]]
        return [
            gr.update(choices=[], value=None, visible=False),
            gr.update(value=None, visible=False),
            NO_IMAGE,
            *hidden,
        ]
    source = session.sources[session.selected]
    image = str(session.view(source)) if image is None else image
    names = [(f"{number}. {each.name}", number - 1) for number, each in enumerate(session.sources, start=1)]
    view, window = source.view, CUSTOM if custom else window_name(source.view.window)
    center, width = view.window or WINDOWS["Soft tissue"]
    planes = [(PLANE_NAMES[plane], plane) for plane in source.planes if plane]
    is_custom = source.has_levels and window == CUSTOM
    return [
        gr.update(choices=names, value=session.selected, visible=True),
        gr.update(value=image, visible=True, label=f"Image {session.selected + 1}"),
        details(source),
        gr.update(visible=True),
        gr.update(visible=bool(source.planes) or source.frames > 1 or source.has_levels),
        gr.update(choices=planes, value=view.plane, visible=bool(planes)),
        gr.update(
            minimum=0,
            maximum=max(1, source.num_slices - 1),
            value=view.slice_index or 0,
            visible=source.num_slices > 1,
        ),
        gr.update(minimum=0, maximum=max(1, source.frames - 1), value=view.frame or 0, visible=source.frames > 1),
        gr.update(value=window, visible=source.has_levels),
        gr.update(visible=is_custom),
        gr.update(value=center),
        gr.update(value=width),
    ]


def details(source: Source) -> str:
    """One line about what is shown, without anything that the file says about a patient."""
    parts = [source.kind if source.kind != "image" else "Image"]
    if not source.planes and source.frames == 1:
        parts.append(f"{source.size[0]} x {source.size[1]} pixels")
    view = source.view
    if source.num_slices:
        plane = f"{PLANE_NAMES[view.plane].lower()} " if view.plane else ""
        parts.append(f"{plane}slice {(view.slice_index or 0) + 1} of {source.num_slices}")
    if source.frames > 1:
        parts.append(f"frame {(view.frame or 0) + 1} of {source.frames}")
    if view.window is not None:
        parts.append(f"window {view.window[0]:g} / {view.window[1]:g}")
    return " · ".join(parts)
