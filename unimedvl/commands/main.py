"""The `unimedvl` command: parses the arguments, runs one sub-command, turns errors into one line and exit code 2."""

import argparse
import os
import sys
import traceback
import warnings
from typing import NoReturn

from ..utils.errors import describe_error, expected_errors
from ..version import __version__
from . import ask, convert, data, eval, generate, info, push, train
from .shared import silence_libraries

MEMORY = "choose a smaller size, --quantize nf4, or a machine with more memory"
COMMANDS = (ask, generate, train, convert, data, eval, info, push)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; every sub-command module adds its own part."""
    parser = _Parser(prog="unimedvl", description="Medical image understanding and generation in one model.")
    parser.add_argument("--version", action="version", version=f"unimedvl {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        subparser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        0, or 2 for an error that the user can mend (one line on stderr says how), or 130 after Ctrl-C.
    """
    debug = "--debug" in (sys.argv if argv is None else argv)
    silence_libraries()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            arguments = build_parser().parse_args(argv)
            arguments.run(arguments)
            sys.stdout.flush()
            return 0
        except KeyboardInterrupt:
            return _report("interrupted", 130)
        except BrokenPipeError:
            # The reader of our output left (`unimedvl info | head`): nothing more to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except expected_errors() as error:
            if debug:
                traceback.print_exc()
            return _report(describe_error(error, memory=MEMORY), 2)


def _report(message: str, code: int) -> int:
    print(f"unimedvl: {message}", file=sys.stderr)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings reach the user as one line; the libraries' talk among themselves does not."""
    if issubclass(category, UserWarning) and "unimedvl" in os.path.basename(filename):
        print(f"unimedvl: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
