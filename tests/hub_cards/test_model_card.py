"""A card says what its folder and its facts say, and nothing is left open."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.adapters import write_adapter
from tests.hub_metadata import front_matter, problems
from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.commands.main import main
from unimedvl.hub_cards.card_facts import read_facts
from unimedvl.hub_cards.model_card import build_card, pin_revision, pinned_revision

pytestmark = pytest.mark.medium

FACTS = {
    "title": "Tiny",
    "summary": "A random model of a few thousand weights.",
    "license": "cc-by-nc-sa-4.0",
    "language": ["en"],
    "intended_use": ["Tests of software"],
    "out_of_scope": ["Any clinical use"],
    "training": {"recipe": "none", "device": "none", "duration": "none", "steps": "none"},
    "data": [{"name": "HC18", "license": "CC BY 4.0", "role": "fetal heads", "address": "https://example.org/hc18"}],
    "limitations": ["Its answers mean nothing."],
    "failures": [{"text": "Everything it draws is noise.", "image": "noise.png"}],
    "citation": "@misc{tiny}",
    "not_evaluated": "its weights are random.",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "tiny"
    model, _ = tiny_checkpoint(directory)
    shutil.copy(NANO_DIRECTORY / "samples.png", directory / "noise.png")
    return directory, sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def facts(tmp_path):
    def write(**changes):
        path = tmp_path / "facts.yaml"
        path.write_text(yaml.safe_dump({**FACTS, **changes}))
        return path

    return write


def test_a_card_counts_its_checkpoint(saved, facts):
    directory, count = saved
    text = build_card(directory, read_facts(facts()), "tester/tiny")
    assert problems("model", front_matter(text)) == []
    assert front_matter(text)["license"] == FACTS["license"]
    rows = dict(re.findall(r"^\| ([\w ]+) \| ([\d,]+) \|", text, re.MULTILINE))
    assert int(rows.pop("all").replace(",", "")) == count
    assert sum(int(number.replace(",", "")) for number in rows.values()) == count
    for said in ("Research use only", "Any clinical use", "CC BY 4.0", "@misc{tiny}", "its weights are random"):
        assert said in text
    assert "tester/tiny" in text and "OWNER/NAME" not in text and "{" not in text.split("```bibtex")[0].split("```")[0]


@pytest.mark.parametrize("name", [name for name in FACTS if name != "not_evaluated"])
def test_a_missing_fact_fails_the_build_and_is_named(facts, name):
    for value in (None, "", []):
        with pytest.raises(ValueError, match=rf"lacks facts .*\b{name}\b"):
            read_facts(facts(**{name: value}))


def test_facts_inside_others_are_named_too(facts):
    with pytest.raises(ValueError, match=r"lacks facts that a card states: training\.steps, data\[0\]\.license\."):
        read_facts(
            facts(
                training={"recipe": "r", "device": "d", "duration": "t"},
                data=[{"name": "HC18", "role": "fetal heads"}],
            )
        )
    with pytest.raises(ValueError, match="titel"):
        read_facts(facts(titel="Tiny"))


def test_what_a_card_shows_must_be_there(saved, facts):
    directory, _ = saved
    with pytest.raises(ValueError, match=r"shows missing\.png, which"):
        build_card(directory, read_facts(facts(failures=[{"text": "x", "image": "missing.png"}])))
    with pytest.raises(ValueError, match="holds no evaluation/results.json"):
        build_card(directory, read_facts(facts(not_evaluated="")))
    with pytest.raises(ValueError, match="lack `protocol`"):
        build_card(directory, read_facts(facts(figures=[{"measured": "x", "number": 3, "value": "1 (0 to 1)"}])))


def test_results_reach_table_and_index(facts, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(NANO_DIRECTORY, folder)
    shutil.copy(folder / "samples.png", folder / "noise.png")
    text = build_card(folder, read_facts(facts(protocol="Validation split, once.", not_evaluated="")), "tester/nano")
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    tasks = results["benchmarks"]["unimed-mini"]["tasks"]
    [entry] = front_matter(text)["model-index"]
    listed = {metric["name"] for result in entry["results"] for metric in result["metrics"]}
    assert {f"accuracy, {task}" for task in ("vqa", "diagnosis")} <= listed
    for task in ("vqa", "diagnosis"):
        metric = tasks[task]["metrics"]["accuracy"]
        row = f"| {task} | {tasks[task]['count']} | accuracy | {metric['value']:.3f} ({metric['low']:.3f} to"
        assert row in text
    assert problems("model", front_matter(text)) == []


def test_snippets_pin_what_a_push_finds(saved, facts):
    text = build_card(saved[0], read_facts(facts()), "tester/tiny")
    assert pinned_revision(text, "tester/tiny") is None
    first, second = "a1" * 20, "b2" * 20
    pinned = pin_revision(text, first, "tester/tiny")
    assert pinned_revision(pinned, "tester/tiny") == first and "COMMIT" not in pinned
    assert pin_revision(pinned, second, "tester/tiny") == pin_revision(text, second, "tester/tiny")
    # A commit of another repository, such as an adapter's base, stays.
    foreign = pinned + f"\n    unimedvl ask --model owner/base --revision {first}\n"
    assert pin_revision(foreign, second, "tester/tiny").count(first) == 1


def test_an_adapter_names_its_base_as_others_find_it(saved, facts, tmp_path):
    adapter = write_adapter(saved[0], tmp_path / "lora")
    shutil.copy(saved[0] / "noise.png", adapter / "noise.png")
    with pytest.raises(ValueError, match="nobody else can load: name it as others find it, --base owner/name"):
        build_card(adapter, read_facts(facts()))
    text = build_card(adapter, read_facts(facts()), "tester/lora", base="tester/tiny")
    data = front_matter(text)
    assert (data["base_model"], data["library_name"]) == ("tester/tiny", "peft")
    assert problems("model", data) == [] and str(saved[0]) not in text


def test_the_command_writes_checks_and_refuses_in_one_line(saved, facts, tmp_path, capsys):
    folder = Path(shutil.copytree(saved[0], tmp_path / "copy"))
    words = ["card", str(folder), "--facts", str(facts()), "--repo", "tester/tiny"]
    assert main([*words, "--check"]) == 2
    assert main(words) == 0 and main([*words, "--check"]) == 0
    capsys.readouterr()
    (folder / "README.md").write_text("changed by hand")
    for command in ([*words, "--check"], ["card", str(folder), "--facts", str(tmp_path / "none.yaml")]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1, captured.err
