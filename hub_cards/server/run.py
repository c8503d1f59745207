"""Starting the application: with uvicorn in this process."""

import logging
import sys
import warnings

import uvicorn

from .app import load_application
from .settings import Settings

log = logging.getLogger("unimedvl.server")

GRACE_SECONDS = 30


def start_logging() -> None:
    """Our own lines on stderr: routes, statuses and times; the libraries' own may quote what a user sent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("unimedvl.server")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    for library in ("transformers", "pydicom", "nibabel", "PIL", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def run(settings: Settings, host: str, port: int) -> None:
    """Load the model, then listen until a signal ends it; what runs then has half a minute to end.

    Args:
        settings: see `Settings`.
        host, port: where to listen.

    Raises:
        ValueError: if the model cannot be loaded, or the port cannot be had.
    """
    start_logging()
    application = load_application(settings)
    log.info("the model is loaded: http://%s:%d/v1 answers. %s", host, port, settings.notice)
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    try:
        server.run()
    # uvicorn logs why and ends the process where it cannot listen.
    except SystemExit as ended:
        raise ValueError(f"cannot listen on {host}:{port}: choose another --port or --host.") from ended
