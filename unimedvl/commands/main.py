"""The `unimedvl` command: its sub-commands, and how warnings reach the terminal."""

import os
import sys
import warnings
from typing import Annotated

import typer

from ..utils.command_line import add_command, new_app, run_app
from ..version import __version__
from . import ask, card, convert, data, eval, export_diffusers, generate, info, merge, push, serve, train, ui
from .shared import silence_libraries

MEMORY = "choose a smaller size, --quantize nf4, or a machine with more memory"

app = new_app("Medical image understanding and generation in one model.")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"unimedvl {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The options before the sub-command."""


add_command(app, ask.ask, ask.__doc__)
add_command(app, generate.generate, generate.__doc__)
add_command(app, train.train, train.__doc__, as_json=False)
add_command(app, convert.convert, convert.__doc__)
app.add_typer(data.app, name="data")
app.add_typer(eval.app, name="eval")
add_command(app, merge.merge, merge.__doc__)
add_command(app, export_diffusers.export_diffusers, export_diffusers.__doc__)
add_command(app, info.info, info.__doc__)
add_command(app, card.card, card.__doc__)
add_command(app, push.push, push.__doc__)
add_command(app, serve.serve, serve.__doc__, as_json=False)
add_command(app, ui.ui, ui.__doc__, as_json=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code of `run_app`.
    """
    silence_libraries()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return run_app(app, "unimedvl", argv, memory=MEMORY)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings reach the user as one line; the libraries' talk among themselves does not."""
    if issubclass(category, UserWarning) and "unimedvl" in os.path.basename(filename):
        print(f"unimedvl: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
