"""The command line of modules run with `python -m`: options by docstring, user errors in one line."""

import argparse
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import describe_error, expected_errors


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
