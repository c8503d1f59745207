"""The application as a server: started, reachable at an address, and ended without a trace of what was uploaded."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimedvl.checkpoint.loading import Loaded

    from .sessions import Sessions

# Of one uploaded file; what a file expands to has limits of its own, see `processing`.
MAX_UPLOAD = "256mb"
# How often sessions without requests, and uploads that no session took, are looked for.
SWEEP_SECONDS = 60


def theme() -> Any:
    """Gradio's theme with fonts of the person's machine, and colors of which texts are legible (WCAG 2, AA)."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        checkbox_label_text_color_selected="white",
        checkbox_label_text_color_selected_dark="white",
        link_text_color="*primary_800",
        link_text_color_dark="*primary_300",
    )


@contextmanager
def running(loaded: "Loaded", *, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """The application of a loaded checkpoint for the length of a block.

    Args:
        loaded: what `unimedvl.checkpoint.loading.load` returned.
        host: address to listen at; only this machine by default.
        port: the first free one from 7860 by default.

    Yields:
        Its URL.

    Raises:
        OSError: if the port is taken.
    """
    root = Path(tempfile.mkdtemp(prefix="unimedvl-ui-")).resolve()
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    # Where Gradio keeps uploads. Sessions lie inside, so that it serves their files without copies.
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from starlette.middleware import Middleware

        from .door import Door, hosts_of
        from .engine import Engine
        from .page import build
        from .readable import traces_without_words
        from .sessions import Sessions

        sessions = Sessions(root)
        page = build(Engine(loaded), sessions)
        here = files("unimedvl.hub_cards.ui")
        style, names = (here.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "names.js"))
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=["settings"],
            theme=theme(),
            css=style,
            js=names,
            app_kwargs={"middleware": [Middleware(Door, hosts=hosts_of(host), room=sessions.room)]},
        )
        ended = threading.Event()
        threading.Thread(target=_close_idle, args=(sessions, ended), daemon=True).start()
        try:
            with traces_without_words():
                yield url
        finally:
            ended.set()
            sessions.close_all()
            page.close(verbose=False)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _close_idle(sessions: "Sessions", ended: threading.Event) -> None:
    while not ended.wait(SWEEP_SECONDS):
        sessions.close_idle()


def serve(loaded: "Loaded", *, host: str = "127.0.0.1", port: int | None = None, announce: Any = None) -> None:
    """Run the application until the process is interrupted or asked to end.

    Args:
        loaded, host, port: see `running`.
        announce: called with the URL as soon as it answers.

    Raises:
        OSError: if the port is taken.
    """
    ended = threading.Event()
    # Only the main thread may ask for signals; elsewhere whoever started the thread ends the process.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
    with running(loaded, host=host, port=port) as url:
        if announce is not None:
            announce(url)
        ended.wait()
