"""Command lines read off the signatures of functions: the `unimedvl` command, and the modules run with `python -m`.

What a user can fix ends in one line on stderr and exit code 2, or 130 after Ctrl-C. Anything else is a fault of this
package and keeps its traceback.
"""

import functools
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from .errors import describe_error, expected_errors

# What a sub-command returns: its result for programs (`--json`), and as text for people.
Result = tuple[dict[str, Any], str]


def _flag(name: str, meaning: str) -> inspect.Parameter:
    annotation = Annotated[bool, typer.Option(f"--{name}", help=meaning)]
    return inspect.Parameter(f"{name}_", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


JSON = _flag("json", "Print one JSON object instead of text.")
DEBUG = _flag("debug", "Show the whole traceback of an error.")


def new_app(documentation: str | None = None, **settings: Any) -> typer.Typer:
    """An app without colors, boxes, completion or tracebacks of its own.

    Args:
        documentation: what `--help` says, with its line breaks.
        **settings: further arguments of `typer.Typer`.
    """
    return typer.Typer(
        help=_verbatim(documentation),
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def add_command(
    app: typer.Typer,
    function: Callable[..., Any],
    documentation: str | None = None,
    *,
    name: str | None = None,
    as_json: bool = True,
) -> None:
    """Make a function a sub-command with `--debug`; what it returns is printed.

    Args:
        documentation: what `--help` says; the function's docstring by default.
        name: of the sub-command; the function's by default.
        as_json: whether the function returns a `Result`, which `--json` prints as JSON.
    """
    app.command(name, help=_verbatim(documentation or function.__doc__))(printing(function, as_json=as_json))


def printing(function: Callable[..., Any], *, as_json: bool) -> Callable[..., None]:
    """A function of the same parameters and those of `--debug` and `--json` that prints what `function` returns.

    Args:
        function: returns text, None, or a `Result`.
        as_json: whether it returns a `Result`, which `--json` prints as JSON.
    """

    @functools.wraps(function)
    def run(*arguments: Any, debug_: bool = False, json_: bool = False, **options: Any) -> None:
        # `run_app` looks for `--debug` among the words typed: parsing them can fail, too.
        del debug_
        result = function(*arguments, **options)
        if result is not None and as_json:
            record, text = result
            result = json.dumps(record, ensure_ascii=False) if json_ else text
        if result is not None:
            print(result)

    signature = inspect.signature(function, eval_str=True)
    flags = [JSON, DEBUG] if as_json else [DEBUG]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *flags], return_annotation=None
    )
    return run


def _verbatim(documentation: str | None) -> str | None:
    """Documentation whose lines `--help` leaves as they are: each paragraph carries Click's mark for that."""
    if documentation is None:
        return None
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in inspect.cleandoc(documentation).split("\n\n"))


def run_app(app: typer.Typer, program: str, arguments: Sequence[str] | None = None, memory: str | None = None) -> int:
    """Run a command line.

    Args:
        program: its name in messages and in `--help`.
        arguments: the words typed after that name; those of the process by default.
        memory: what helps where memory is short.

    Returns:
        The exit code: 0, or 2 after an error that the user can fix (one line on stderr says how), 130 after Ctrl-C, or
        141 where the reader of the output left.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = get_command(app)
    try:
        _require_text(words)
        _invoke(command, program, words)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _report(program, "interrupted", 130)
    except BrokenPipeError:
        # The reader of our output left (`unimedvl info | head`): nothing more to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except typer.TyperException as error:
        # Pydantic's mark of what Typer itself found.
        message = error.format_message().replace(": Value error, ", ": ").rstrip(".")
        return _report(program, f"{message} (see {_path(command, program, words)} --help)", 2)
    except expected_errors() as error:
        if "--debug" in words:
            traceback.print_exc()
        return _report(program, describe_error(error) if memory is None else describe_error(error, memory), 2)


def _require_text(words: list[str]) -> None:
    """Raises ValueError for a word that is not text: Python keeps undecodable bytes of arguments as lone surrogates,
    which no tokenizer, file or terminal takes."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            shown = word.encode("ascii", "backslashreplace").decode("ascii").replace("\\udc", "\\x")
            raise ValueError(
                f"the argument '{shown}' is not text in the encoding {sys.getfilesystemencoding()}: type it in that "
                "encoding, or rename the file."
            ) from None


def _path(command: Any, program: str, words: list[str]) -> str:
    """The words that lead to the sub-command which was typed."""
    path = [program]
    for word in words:
        if (command := getattr(command, "commands", {}).get(word)) is None:
            break
        path.append(word)
    return " ".join(path)


def _invoke(command: Any, program: str, words: list[str]) -> None:
    """Parse and run without the handlers of Typer's own `__call__`, which give a closed pipe another exit code."""
    try:
        with command.make_context(program, list(words)) as context:
            command.invoke(context)
    except typer.Exit as ended:
        # After `--help` and `--version`.
        assert ended.exit_code == 0, ended.exit_code


def _report(program: str, message: str, code: int) -> int:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return code


def run_module(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> int:
    """Run a function as the command of its module: options by its signature, `--help` by the module's docstring.

    Args:
        arguments: the words typed after the module's name; those of the process by default.

    Returns:
        The exit code of `run_app`.
    """
    module = sys.modules[function.__module__]
    app = new_app()
    add_command(app, function, module.__doc__, as_json=False)
    # A module run with `python -m` is called `__main__`, and its specification knows its name; a script has none.
    name = f"-m {module.__spec__.name}" if module.__spec__ else str(module.__file__)
    return run_app(app, f"python {name}", arguments)


def comma_separated(text: str | None) -> list[str]:
    """The parts of `A,B`, without spaces around them and without empty ones."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def require(extra: str, *modules: str) -> None:
    """Check that the packages of an optional extra are installed, without importing them.

    Raises:
        ValueError: if one is missing.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} is missing: pip install 'unimedvl[{extra}]'.")
