"""An adapter is pushed with its base's Hub id and a card for PEFT, and comes back from the Hub with its base."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import PeftConfig

from tests.adapters import write_adapter
from tests.hub_cards.test_push_checks import CARD
from tests.hub_server import HubServer
from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.hub_cards.push import check_folder

pytestmark = pytest.mark.medium

BASE, ADAPTER = "tester/tiny", "tester/tiny-lora"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_checkpoint(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return write_adapter(base, tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture
def copy(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copy")


def command(hub, home, *words):
    """A command in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = {**os.environ, **hub.environment(home), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-m", "unimedvl", *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_f14_an_adapter_travels_and_finds_its_base_on_the_hub(base, adapter, tmp_path):
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    flags = ["What is this?", "--json", "--max-new-tokens", "6"]
    with HubServer() as hub:
        command(hub, tmp_path / "home", "push", base, BASE, "--json")
        pushed = command(hub, tmp_path / "home", "push", adapter, ADAPTER, "--base", BASE, "--json")
        files = hub.repositories["models", ADAPTER].commits[pushed["commit"]]
        here = command(hub, tmp_path / "home", "ask", *flags, "--model", adapter)
        there = command(hub, tmp_path / "stranger", "ask", *flags, "--model", ADAPTER)
        command(hub, tmp_path / "stranger", "merge", ADAPTER, tmp_path / "merged", "--json")
    assert there["answer"] == here["answer"] and there["model"] == f"{ADAPTER} on {BASE}"
    assert there["revision"].split(" on ")[0] == pushed["commit"]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"base_model: {BASE}" in card and "license: apache-2.0" in card
    # Nothing of this machine was sent, and nothing here was changed.
    assert not any(str(base).encode() in file.content for file in files.values())
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_f14_the_card_and_settings_are_pefts(base, adapter, tmp_path):
    with HubServer() as hub:
        pushed = command(hub, tmp_path / "home", "push", adapter, ADAPTER, "--base", BASE, "--json")
        files = hub.repositories["models", ADAPTER].commits[pushed["commit"]]
        for name in ("README.md", "adapter_config.json"):
            (tmp_path / name).write_bytes(files[name].content)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.library_name, data.license) == (BASE, "peft", "apache-2.0")
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.base_model_name_or_path, config.revision) == (BASE, None)
    assert set(pushed["files"]) == set(files) - {".gitattributes"}
    assert "adapter_model.safetensors" in files and "complete.json" not in files


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("optimizer.pt", b"x", "looks like a pickle"),
        ("training_args.bin", b"x", "looks like a pickle"),
        ("trainer_state.json", b"{}", "is no part of an adapter"),
        ("patient.png", b"x", "is no part of an adapter"),
        ("notes.txt", b"x", "is no part of an adapter"),
        ("model.md", b"hf_" + b"a" * 34, "holds an access token"),
        ("README.md", None, "has no README.md"),
        ("README.md", b"# mine\nnot for diagnosis", "names no license"),
        ("README.md", b"---\nlicense: mit\n---\n# mine", "not for diagnosis"),
    ],
)
def test_f14_what_must_not_travel_is_refused(copy, name, content, message):
    check_folder(copy, BASE)
    (copy / name).unlink(missing_ok=True)
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_folder(copy, BASE)


def test_f14_links_are_refused_in_adapters_too(copy):
    (copy / "notes.md").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"notes\.md is a link"):
        check_folder(copy, BASE)


def test_f14_a_base_that_only_this_machine_has_is_refused(base, copy, adapter):
    with pytest.raises(ValueError, match="nobody else can load: push the base, and name it, --base owner/name"):
        check_folder(adapter)
    with pytest.raises(ValueError, match="nobody else can load"):
        check_folder(adapter, str(base))
    readme = copy / "README.md"
    readme.write_text(f"{readme.read_text()}\nTrained on {base}.\n")
    with pytest.raises(ValueError, match="README.md names the folder .* of this machine"):
        check_folder(copy, BASE)
    with pytest.raises(ValueError, match="holds no adapter.*leave --base out"):
        check_folder(base, BASE)


def test_f14_the_local_path_that_peft_writes_into_cards_is_replaced(base, copy):
    text = (
        f"---\nbase_model: {base}\nlicense: mit\ntags:\n- base_model:adapter:{base}\n- lora\n---\nnot for diagnosis\n"
    )
    (copy / "README.md").write_text(text)
    assert "README.md" in check_folder(copy, BASE).files
    assert Path(copy / "README.md").read_text() == text
