"""The command line of modules run with `python -m`: user errors are one line."""

import json

import pytest
from safetensors import SafetensorError

from unimedvl.utils.module_commands import module_parser, one_line_errors


def ended(error, capsys, *arguments):
    """What a module says on stderr whose work raises the error."""
    parser = module_parser("Does some work.")
    with pytest.raises(SystemExit) as stopped, one_line_errors(parser, parser.parse_args(arguments).debug):
        raise error
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines"), "error: two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "records"), "error: records: No such file or directory\n"),
        (SafetensorError("header too small"), "error: header too small\n"),
        (MemoryError(), "error: out of memory"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, said, capsys):
    told = ended(error, capsys)
    assert said in told and told.count("\n") == 1 and "Traceback" not in told
    assert "Traceback" in ended(error, capsys, "--debug")


def test_an_interruption_is_told(capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors(module_parser("Does some work."), debug=False):
        raise KeyboardInterrupt
    assert stopped.value.code == 130 and capsys.readouterr().err.endswith(": interrupted\n")


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(KeyError), one_line_errors(module_parser("Does some work."), debug=False):
        json.loads("{}")["key"]
