"""A push sends a whole, clean checkpoint and nothing else; every other folder is refused before a byte leaves."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.tiny_model import tiny_model
from unimedvl.commands.main import main
from unimedvl.hub_cards.push import check_folder

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
CARD = "---\nlicense: apache-2.0\n---\n# tiny\n\nResearch only; not for diagnosis.\n"


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "checkpoint"
    tiny_model().save_pretrained(directory)
    (directory / "README.md").write_text(CARD)
    return directory


def push(hub, home, *arguments):
    """`unimedvl push` in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    command = [sys.executable, "-m", "unimedvl.commands.main", "push", *map(str, arguments)]
    environment = {**os.environ, **hub.environment(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_clean_folder_lists_its_files(folder):
    files = check_folder(folder).files
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)


def test_dry_run_sends_nothing(folder, capsys):
    assert main(["push", str(folder), "tester/tiny", "--dry-run"]) == 0
    assert "files would be sent to tester/tiny" in capsys.readouterr().out


def test_push_arrives_and_old_commits_stay(folder, tmp_path):
    with HubServer() as hub:
        first = push(hub, tmp_path / "home", folder, "tester/tiny", "--private", "--json")
        assert first.returncode == 0, first.stderr
        commit = json.loads(first.stdout)["commit"]
        (folder / "README.md").write_text(CARD + "more\n")
        second = push(hub, tmp_path / "home", folder, "tester/tiny", "--json")
        repository = hub.repositories["models", "tester/tiny"]
        assert repository.private
        assert repository.refs["main"] == json.loads(second.stdout)["commit"] != commit
        assert repository.commits[commit]["README.md"].content == CARD.encode()
        sent = repository.commits[commit]["model.safetensors"]
        assert sent.is_lfs and sent.content == (folder / "model.safetensors").read_bytes()


def test_wrong_token_is_one_line(folder, tmp_path):
    with HubServer(token="hf_other") as hub:
        environment = {**os.environ, **hub.environment(tmp_path), "HF_TOKEN": "hf_wrong"}
        command = [sys.executable, "-m", "unimedvl.commands.main", "push", str(folder), "tester/tiny"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "refused" in result.stderr


def spoil_pickle(directory):
    (directory / "optimizer.pt").write_bytes(pickle.dumps({}))


def spoil_link(directory):
    (directory / "notes.md").symlink_to("/etc/hostname")


def spoil_link_past_the_sources(directory):
    (directory / "recipe.yaml").symlink_to(ROOT / "training" / "recipes" / "tuning" / "sft.yaml")


def test_links_into_the_source_folders_are_sent_as_files(folder):
    code = folder / "blocks_unimedvl.py"
    code.unlink(missing_ok=True)
    code.symlink_to(ROOT / "modeling_unimedvl" / code.name)
    assert code.name in check_folder(folder).files


def spoil_token(directory):
    (directory / "notes.md").write_text("hf_" + "a" * 34)


def spoil_stranger(directory):
    (directory / "patient.dcm").write_bytes(b"")


def spoil_card(directory):
    (directory / "README.md").unlink()


def spoil_license(directory):
    (directory / "README.md").write_text("# tiny\n\nnot for diagnosis\n")


def spoil_use(directory):
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")


def spoil_weights(directory):
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


SPOILS = {
    spoil_pickle: "looks like a pickle",
    spoil_link: "is a link",
    spoil_link_past_the_sources: "is a link",
    spoil_token: "access token",
    spoil_stranger: "no part of a checkpoint",
    spoil_card: "no README.md",
    spoil_license: "names no license",
    spoil_use: "not for diagnosis",
    spoil_weights: "not a whole safetensors file",
}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_unfit_folders_are_refused(folder, spoil, capsys):
    spoil(folder)
    with pytest.raises(ValueError, match=SPOILS[spoil]):
        check_folder(folder)
    assert main(["push", str(folder), "tester/tiny", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
