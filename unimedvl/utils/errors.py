"""Errors that the user can mend, in one line: of the `unimedvl` command and of the modules run with `python -m`."""

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


def expected_errors() -> tuple[type[BaseException], ...]:
    """What bad input raises. Anything else is a fault of this package and keeps its traceback."""
    return (ValueError, OSError, ImportError, MemoryError, *_loaded_errors())


def _loaded_errors() -> list[type[BaseException]]:
    """Error classes of libraries, without importing a library that the failed command never needed."""
    classes = []
    if "torch" in sys.modules:
        classes.append(sys.modules["torch"].OutOfMemoryError)
    if "safetensors" in sys.modules:
        classes.append(sys.modules["safetensors"].SafetensorError)
    # huggingface_hub speaks HTTP through one of these, depending on its version.
    classes += [sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules]
    return classes


def describe_error(error: BaseException, memory: str = "choose a smaller size, or a machine with more memory") -> str:
    """What went wrong, in one line.

    Args:
        memory: what helps where memory is short.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {memory}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def module_parser(documentation: str) -> argparse.ArgumentParser:
    """The parser of a module run with `python -m`, by its docstring, for `one_line_errors`."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser, debug: bool) -> Iterator[None]:
    """Within it, an expected error ends the program as a wrong argument of `parser` does: one line, exit code 2; or
    130 after Ctrl-C.

    Args:
        debug: whether its traceback is shown before.
    """
    try:
        yield
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    except expected_errors() as error:
        if debug:
            traceback.print_exc()
        parser.exit(2, f"{parser.prog}: error: {describe_error(error)}\n")
