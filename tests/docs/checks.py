"""Shell statements of documents held against the real parsers, without running them.

Every check raises AssertionError, or what the parser itself raises, for a command, an option, a file or a name that
does not exist.
"""

import functools
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from typer.main import get_command

from tests.docs.snippets import ROOT, Snippet
from unimedvl.commands.main import app
from unimedvl.evaluation.benchmarks import get_benchmark
from unimedvl.training.recipe import find_recipe, load_recipe
from unimedvl.unimed5m.builders.registry import get_source
from unimedvl.utils.command_line import add_command, new_app

CARDS = ROOT / "benchmarks" / "results" / "engines"
REQUIREMENTS = ROOT / "benchmarks" / "engines" / "requirements"
OTHER_MODULES = ("pytest", "build", "venv")
Words = Sequence[str]


def check(snippet: Snippet, page: str, variables: Mapping[str, str]) -> None:
    """Check a shell statement.

    Args:
        page: the page's text: recipes that it writes itself exist.
        variables: what the page has set before.
    """
    assert snippet.kind == "shell"
    known = {**os.environ, **variables}
    words = [re.sub(r"\$(\w+)", lambda match: known.get(match[1], match[0]), word) for word in snippet.words]
    for word in words:
        assert not word.startswith(str(ROOT)) or Path(word).exists(), f"{word} does not exist"
    # A synopsis names what may follow in brackets.
    words = [word for word in words if not word.startswith("[") and not word.endswith("]") or "unimedvl[" in word]
    words = [word for word in words if not re.fullmatch(r"\.\.\.\]?", word)]
    if snippet.program in CHECKS:
        CHECKS[snippet.program](words[1:], page)


def check_span(span: str) -> None:
    """Check a command in a sentence: the command and its options exist; arguments may be left out."""
    words = [re.sub(r"\[\w*|\]$", "", word) for word in shlex.split(span)]
    program, *rest = words
    if program == "unimedvl":
        command, rest = _descend(get_command(app), rest)
        _options_exist(command, rest)
    elif program == "python":
        _check_module(rest[1], rest[2:], "", only_options=True)
    else:
        CHECKS[program](rest, "")


def _descend(command: Any, words: Words) -> tuple[Any, list[str]]:
    """The sub-command that words lead to, and the words after its name."""
    words = list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", {}) or getattr(command, "invoke_without_command", False), (
        f"{' '.join(words[:1])} is no command: {', '.join(command.commands)}"
    )
    assert not getattr(command, "commands", {}) or not words or words[0].startswith("-"), f"{words[0]} is no command"
    return command, words


def _options_exist(command: Any, words: Words) -> None:
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    assert (unknown := {word for word in words if word.startswith("--")} - known) == set(), unknown


def _check_unimedvl(words: Words, page: str) -> None:
    command, rest = _descend(get_command(app), words)
    with command.make_context("unimedvl", list(rest)) as context:
        given = context.params
    if words[0] == "train":
        _check_recipe(rest, page)
    if "--source" in words and words[:2] == ["data", "build"]:
        assert given["source"] == "unimed-mini" or get_source(given["source"])
    for entry in given.get("benchmark") or ():
        assert get_benchmark(entry.partition("=")[0])


def _check_recipe(words: Words, page: str) -> None:
    """A recipe of the package is valid with its overrides; others the page writes."""
    recipe, *overrides = words
    written = f"> {recipe}" in page or recipe == "RECIPE.yaml"
    if not written:
        path = ROOT / recipe if recipe.startswith("training/") else find_recipe(recipe)
        assert load_recipe(path, overrides)


@functools.cache
def _help(*command: str) -> str:
    """What `COMMAND --help` prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True).stdout


def _options_are_helped(words: Words, *command: str) -> None:
    named = set(re.findall(r"--[\w-]+", _help(*command)))
    assert (unknown := {word for word in words if word.startswith("--")} - named) == set(), unknown


def _check_module(module: str, words: Words, page: str, only_options: bool = False) -> None:
    if module in OTHER_MODULES:
        for word in words:
            assert not word.startswith("tests/") or (ROOT / word).exists(), f"{word} does not exist"
        return
    if module == "vllm.entrypoints.openai.api_server":
        return _check_engine("vllm", words, page)
    specification = importlib.util.find_spec(module)
    assert specification is not None, f"there is no module {module}"
    if specification.submodule_search_locations is not None:
        specification = importlib.util.find_spec(f"{module}.__main__")
        assert specification is not None, f"{module} is a package that cannot be run"
    assert specification.origin is not None
    source = Path(specification.origin).read_text(encoding="utf-8")
    if function := re.search(r"run_module\((\w+)", source):
        single = new_app()
        add_command(single, getattr(importlib.import_module(module), function[1]), as_json=False)
        command: Any = get_command(single)
        _options_exist(command, words)
        if not only_options:
            command.make_context(module, list(words)).close()
            if module == "unimedvl.training.run":
                _check_recipe(words, page)
    elif any(word.startswith("--") for word in words):
        assert "argparse" in source, f"{module} takes no options"
        _options_are_helped(words, sys.executable, "-m", module)


def _check_python(words: Words, page: str) -> None:
    if words[0] == "-m":
        _check_module(words[1], words[2:], page)
    else:
        assert words[0] == "-c", f"python {words[0]}: neither -m nor -c"
        compile(words[1], "-c", "exec")


def _check_pip(words: Words, page: str) -> None:
    """Extras of ours exist, files exist, and engines have the versions that they were tested with."""
    described = ConfigParser()
    described.read(ROOT / "setup.cfg")
    tested = "\n".join(path.read_text() for path in REQUIREMENTS.glob("*.txt"))
    for number, word in enumerate(words):
        if extras := re.match(r"(?:unimedvl|\.)\[([\w,]+)\]$", word):
            assert set(extras[1].split(",")) <= set(described["options.extras_require"]), word
        if word in ("-c", "-r"):
            assert (ROOT / words[number + 1]).is_file(), words[number + 1]
        if "==" in word and words[0] == "install":
            pin = re.escape(word).replace(r"\-", "[-_]")
            assert re.search(rf"^{pin}$", tested, re.MULTILINE | re.IGNORECASE), f"{word} is not what was tested"


def _check_make(words: Words, page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if not re.match(r"\w+=", word)} <= targets, words


def _check_launcher(parser: Callable[[], Any], words: Words, page: str) -> None:
    """A launcher takes its options, and what it starts is checked as after `python`."""
    given = parser().parse_args(list(words))
    inner = words[len(words) - len(given.training_script_args) - 1 :]
    assert "-m" in words, "a launcher starts a module here"
    if inner[0] == "unimedvl":
        _check_unimedvl(inner[1:], page)
    else:
        _check_module(inner[0], inner[1:], page)


def _check_torchrun(words: Words, page: str) -> None:
    from torch.distributed.run import get_args_parser

    _check_launcher(get_args_parser, words, page)


def _check_accelerate(words: Words, page: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    _check_launcher(launch_command_parser, words[1:], page)


def _check_other(program: str, words: Words, page: str) -> None:
    """A program of the environment says in its help that it takes the options."""
    _options_are_helped(words, str(Path(sys.executable).with_name(program)), words[0])


def _check_bash(words: Words, page: str) -> None:
    # Below the folder of a copy of the checkout.
    path = ROOT / re.sub(r"^[A-Z]+/", "", words[0])
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0, words[0]


def _options_were_used(words: Words, command: str) -> None:
    """The options of a statement are among those of a command that was verified."""
    options = {word for word in words if word.startswith("--")}
    assert options and (unknown := options - set(shlex.split(command))) == set(), unknown


def _check_engine(engine: str, words: Words, page: str) -> None:
    _options_were_used(words, json.loads((CARDS / f"{engine}.json").read_text())["engine command"])


CHECKS: dict[str, Callable[[Words, str], None]] = {
    "unimedvl": _check_unimedvl,
    "python": _check_python,
    "python3.11": _check_python,
    "pip": _check_pip,
    "make": _check_make,
    "torchrun": _check_torchrun,
    "accelerate": _check_accelerate,
    "bash": _check_bash,
    "hf": functools.partial(_check_other, "hf"),
    "transformers": functools.partial(_check_other, "transformers"),
    "lmms-eval": functools.partial(_check_engine, "lmms-eval"),
    "lighteval": functools.partial(_check_engine, "lighteval"),
    "swift": functools.partial(_check_engine, "ms-swift"),
}
