"""The command lines of modules run with `python -m`: options by a function's signature, errors in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from safetensors import SafetensorError

from unimedvl.utils.command_line import comma_separated, require, run_module

pytestmark = pytest.mark.medium

PROGRAM = f"python -m {__spec__.name}"
TO_RAISE: list[BaseException] = []


def work(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="Folder of records.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    batch_size: Annotated[int, typer.Option(help="Records at once.")] = 4,
) -> str:
    if TO_RAISE:
        raise TO_RAISE.pop()
    return f"{records} {batch_size} {words}"


def ended(error, capsys, *flags):
    """The exit code of a module whose work raises the error, and what it says on stderr."""
    TO_RAISE.append(error)
    code = run_module(work, ["records", *flags])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def test_what_the_function_returns_is_printed(capsys):
    assert run_module(work, ["--batch-size", "2", "somewhere", "a=1", "b=-2"]) == 0
    assert capsys.readouterr() == ("somewhere 2 ['a=1', 'b=-2']\n", "")
    assert run_module(work, ["somewhere", "--debug"]) == 0
    assert capsys.readouterr() == ("somewhere 4 None\n", "")


def test_help_is_the_modules_docstring_and_its_options(capsys):
    assert run_module(work, ["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: {PROGRAM} [OPTIONS] ") and __doc__ in out
    for part in ("RECORDS", "Folder of records.", "KEY=VALUE", "--batch-size", "Records at once.", "--debug", "-h"):
        assert part in out, part
    assert "--json" not in out and "completion" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument 'RECORDS'"),
        (["records", "--batch-size", "few"], "'--batch-size': .*integer"),
        (["records", "--batchsize", "3"], "No such option: --batchsize .*--batch-size"),
        (["records", "--batch-size"], "requires an argument"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    assert run_module(work, words) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"{PROGRAM}: .*{said}.* \\(see {PROGRAM} --help\\)\n", err), err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines"), ": two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "records"), ": records: No such file or directory\n"),
        (SafetensorError("header too small"), ": header too small\n"),
        (MemoryError(), ": out of memory"),
    ],
)
def test_what_a_user_can_fix_is_one_line(error, said, capsys):
    code, printed = ended(error, capsys)
    assert code == 2 and printed.startswith(PROGRAM + said) and printed.count("\n") == 1 and "Traceback" not in printed
    code, printed = ended(error, capsys, "--debug")
    assert code == 2 and "Traceback" in printed and printed.splitlines()[-1].startswith(PROGRAM)


def test_an_interruption_is_one_line(capsys):
    assert ended(KeyboardInterrupt(), capsys) == (130, f"{PROGRAM}: interrupted\n")


def test_our_own_faults_keep_their_traceback(capsys):
    try:
        json.loads("{}")["key"]
    except KeyError as error:
        with pytest.raises(KeyError):
            ended(error, capsys)


def test_lists_are_divided_by_commas():
    assert comma_separated("a, b,,c ") == ["a", "b", "c"]
    assert comma_separated(None) == comma_separated("") == []


def test_a_missing_extra_is_named():
    require("train", "json")
    with pytest.raises(ValueError, match=r"^no_such_package is missing: pip install 'unimedvl\[train\]'\.$"):
        require("train", "json", "no_such_package")


MODULES = (
    "unimedvl.training.run",
    "unimedvl.evaluation.specialists.train",
    "unimedvl.unimed5m.quality.separation",
    "unimedvl.unimed5m.quality.train_scorer",
)


@pytest.mark.parametrize("module", MODULES)
def test_the_packages_modules_speak_one_dialect(module):
    wrong = subprocess.run([sys.executable, "-m", module, "--debuk"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith(f"python -m {module}: No such option: --debuk") and wrong.stderr.count("\n") == 1
    assert "--debug" in wrong.stderr
