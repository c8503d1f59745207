"""Errors as people read them: one sentence on the page, and in the log neither names of files nor what was typed."""

import functools
import html
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import gradio as gr

from unimedvl.utils.errors import describe_error, expected_errors

LOGGER = logging.getLogger("unimedvl.ui")
SHOWN_SECONDS = 30
MEMORY = "choose a smaller image, or a machine with more memory"


def readable(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler, or a generator of one, whose errors the page shows as one sentence without a trace."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def yielding(*arguments: Any, **options: Any) -> Iterator[Any]:
            with _shown():
                yield from handler(*arguments, **options)

        return yielding

    @functools.wraps(handler)
    def returning(*arguments: Any, **options: Any) -> Any:
        with _shown():
            return handler(*arguments, **options)

    return returning


def problem(sentence: str) -> gr.Error:
    """What to raise for the page to show a sentence."""
    # Gradio renders messages as HTML, and a sentence may quote the name of a file.
    return gr.Error(html.escape(sentence), duration=SHOWN_SECONDS, print_exception=False)


class _TypeOnly:
    """Takes the place of the module `traceback` in Gradio, which prints what requests hold."""

    @staticmethod
    def print_exc(*arguments: Any, **options: Any) -> None:
        error = sys.exception()
        LOGGER.error("%s before or after a handler", type(error).__name__)


@contextmanager
def traces_without_words() -> Iterator[None]:
    """Let Gradio log only the types of errors outside of handlers, such as values that no control sends."""
    from gradio import queueing, routes

    modules: tuple[Any, ...] = (queueing, routes)
    before = [module.traceback for module in modules]
    for module in modules:
        module.traceback = _TypeOnly
    try:
        yield
    finally:
        for module, kept in zip(modules, before, strict=True):
            module.traceback = kept


@contextmanager
def _shown() -> Iterator[None]:
    try:
        yield
    except (gr.Error, GeneratorExit):
        raise
    except expected_errors() as error:
        text = describe_error(error, MEMORY)
        if isinstance(error, OSError) and error.filename:
            # Folders of the machine are nobody's business.
            text = text.replace(str(error.filename), PurePath(error.filename).name)
        raise problem(_sentence(text)) from None
    # Whatever else happens is a fault of this package: its place is logged, its words may quote a patient.
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        LOGGER.error("%s in %s, line %s", type(error).__name__, frame.name, frame.lineno)
        raise problem(
            f"A fault in the program ({type(error).__name__}), not in what you gave it: please report it."
        ) from None


def _sentence(text: str) -> str:
    """With a capital letter, as messages of the command line have none; names of settings stay as they are."""
    return text if "_" in text.partition(" ")[0] else text[:1].upper() + text[1:]
