"""The folder of a Space: whole, pinned, and running the same application."""

import runpy
from importlib.metadata import requires
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from unimedvl.commands.main import main
from unimedvl.hub_cards.push import check_folder
from unimedvl.hub_cards.space import FILES, write_space
from unimedvl.version import __version__

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret
ROOT = Path(__file__).resolve().parents[2]


def test_the_folder_is_whole_and_says_what_it_runs(tmp_path):
    folder = tmp_path / "space"
    assert write_space(folder, "owner/name", COMMIT) == list(FILES)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    card = SpaceCard.load(folder / "README.md")
    assert card.data.sdk == "gradio" and card.data.app_file == "app.py" and card.data.models == ["owner/name"]
    assert "research use only" in card.text.lower() and COMMIT in card.text
    assert (folder / "requirements.txt").read_text().split() == [f"unimedvl[ui,hub]=={__version__}"]
    pushed = check_folder(folder)
    assert pushed.kind == "space" and sorted(pushed.files) == sorted(FILES)


def test_its_gradio_is_the_tested_one(tmp_path):
    write_space(tmp_path / "space", "owner/name", COMMIT)
    assert f"gradio=={SpaceCard.load(tmp_path / 'space' / 'README.md').data.sdk_version}\n" in (
        ROOT / "constraints.txt"
    ).read_text(encoding="utf-8")
    extras = [line for line in requires("unimedvl") or [] if 'extra == "ui"' in line]
    assert any(line.startswith("gradio") for line in extras), extras


def test_the_program_loads_the_commit_and_serves_it(tmp_path, monkeypatch):
    write_space(tmp_path / "space", "owner/name", COMMIT)
    program = (tmp_path / "space" / "app.py").read_text(encoding="utf-8")
    compile(program, "app.py", "exec")
    asked: list[tuple] = []

    def refuse(*arguments, **options):
        asked.append((arguments, options))
        raise ValueError("no Hub here")

    monkeypatch.setattr("unimedvl.checkpoint.loading.load", refuse)
    with pytest.raises(ValueError, match="no Hub here"):
        runpy.run_path(str(tmp_path / "space" / "app.py"), run_name="__main__")
    assert asked == [(("owner/name",), {"revision": COMMIT})]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("name", COMMIT), "owner/name"),
        (("owner/name", "main"), "commit"),
        (("owner/name", COMMIT[:10]), "commit"),
        (("owner/na me", COMMIT), "alphanumeric|repo"),
    ],
)
def test_what_is_not_pinned_is_refused(arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write_space(tmp_path / "space", *arguments)
    assert not (tmp_path / "space").exists()


def test_a_title_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="title"):
        write_space(tmp_path / "space", "owner/name", COMMIT, title='"""\nimport os')


def test_a_folder_in_use_is_kept(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="already there"):
        write_space(tmp_path / "space", "owner/name", COMMIT)
    assert (tmp_path / "space" / "mine.txt").read_text() == "mine"
    write_space(tmp_path / "space", "owner/name", COMMIT, overwrite=True)
    assert not (tmp_path / "space" / "mine.txt").exists()


def test_the_command_writes_it(tmp_path, capsys):
    arguments = ["ui", "--model", "owner/name", "--space", str(tmp_path / "space")]
    assert main(arguments) == 2 and "--revision" in capsys.readouterr().err
    assert main([*arguments, "--revision", COMMIT]) == 0
    assert capsys.readouterr().out.split() == list(FILES)
