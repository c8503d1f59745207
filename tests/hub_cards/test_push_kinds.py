"""Datasets, Spaces and a Trainer's checkpoints on the Hub; what must not travel in them; snippets of cards, run."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin

from tests.adapters import write_adapter
from tests.hub_cards.test_hub_faults import run
from tests.hub_cards.test_model_card import FACTS
from tests.hub_cards.test_push_checks import CARD
from tests.hub_metadata import front_matter, problems
from tests.hub_server import HubServer
from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.hub_cards.card_facts import read_facts
from unimedvl.hub_cards.model_card import build_card, write_card
from unimedvl.hub_cards.push import check_folder
from unimedvl.hub_cards.space import write_space

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


def clean(code, hub, home):
    """A program with the public libraries alone, in caches of its own."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment |= {**hub.environment(home), "HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    refuse = "import sys\nsys.modules['unimedvl'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", refuse + code], env=environment, cwd=home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_dataset_travels_and_loads_at_its_commit(dataset, tmp_path):
    load = """
import json
from datasets import load_dataset
rows = load_dataset("tester/records", revision=REVISION, split="train", streaming=True)
print(json.dumps([row["id"] for row in rows]))
"""
    with HubServer() as hub:
        [pushed] = run(hub, tmp_path / "home", {"words": ["push", str(dataset), "tester/records", "--json"]})
        assert pushed["code"] == 0, pushed
        said = json.loads(pushed["out"])
        repository = hub.repositories["datasets", "tester/records"]
        assert said["kind"] == "dataset" and said["commit"] == repository.refs["main"]
        assert set(said["files"]) == set(repository.commits[said["commit"]]) - {".gitattributes"}
        (tmp_path / "stranger").mkdir()
        card = repository.commits[said["commit"]]["README.md"].content.decode()
        assert problems("dataset", front_matter(card)) == [] and front_matter(card)["license"]
        # The card's own lines, and the pinned commit.
        code = snippets(card).replace("REPO_OR_FOLDER", "tester/records") + "\nassert next(iter(records))\n"
        code += load.replace("REVISION", repr(said["commit"]))
        ids = json.loads(clean(code, hub, tmp_path / "stranger"))
    assert ids == [f"toy-{number:05d}" for number in range(6)]


def spoiled_table(dataset, name, change):
    table = pq.read_table(dataset / name)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), dataset / name)


def as_dicom(row):
    row["input_img"][0]["image"]["bytes"] = b"\0" * 128 + b"DICM" + b"\0" * 64


def with_notes(row):
    notes, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    notes.add_text("Comment", "Jane Doe, bed 4")
    Image.new("L", (8, 8)).save(stream, "PNG", pnginfo=notes)
    row["input_img"][0]["image"]["bytes"] = stream.getvalue()


def with_patient(row):
    row["message"][0]["value"] = "Patient name: Jane Doe. What is shown?"


def with_key(row):
    row["extra"] = json.dumps({**json.loads(row["extra"]), "by": "hf_" + "a" * 34})


def with_folder(row):
    row["input_img"][0]["path"] = "/home/jane/scans/1.png"


SPOILED = {
    as_dicom: "is a DICOM file",
    with_notes: "carries notes",
    with_patient: "states a 'Patient name'",
    with_key: "holds an access token",
    with_folder: "names the folder '/home/jane'",
}


@pytest.mark.parametrize("change, message", SPOILED.items())
def test_records_with_notes_about_people_stay(dataset, tmp_path, change, message):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    name = next(name for name in check_folder(copy).files if name.startswith("data/"))
    rows = pq.read_table(copy / name).to_pylist()
    assert any(row["input_img"] for row in rows)
    spoiled_table(copy, name, change)
    with pytest.raises(ValueError, match=message) as caught:
        check_folder(copy)
    assert name in str(caught.value) and "Jane" not in str(caught.value)


def test_a_space_travels_and_says_which_model_at_which_commit(tmp_path):
    model_commit = "ab" * 20
    write_space(tmp_path / "space", "owner/model", model_commit)
    with HubServer() as hub:
        for _ in range(2):
            [pushed] = run(hub, tmp_path / "home", {"words": ["push", str(tmp_path / "space"), "tester/s", "--json"]})
            assert pushed["code"] == 0, pushed
        said = json.loads(pushed["out"])
        assert said["kind"] == "space"
        sent = hub.repositories["spaces", "tester/s"].commits[said["commit"]]
        assert set(sent) - {".gitattributes"} == {"README.md", "app.py", "requirements.txt"}
        card = sent["README.md"].content.decode()
    # The commit on the card is the model's, which nothing replaces.
    assert card.count(model_commit) == (tmp_path / "space" / "README.md").read_text().count(model_commit) > 0
    assert problems("space", front_matter(card)) == []


@pytest.mark.parametrize("sizes", [("10GB", "4KB"), ("4KB", "10GB")])
def test_a_push_in_other_shards_leaves_no_old_weights(tmp_path, sizes):
    folder = tmp_path / "tiny"
    model, _ = tiny_checkpoint(folder)
    (folder / "README.md").write_text(CARD)
    with HubServer() as hub:
        for number, size in enumerate(sizes):
            for path in folder.glob("model*.safetensors*"):
                path.unlink()
            with torch.no_grad():
                model.lm_head.weight.fill_(number)
            model.save_pretrained(folder, max_shard_size=size)
            [pushed] = run(hub, tmp_path / "home", {"words": ["push", str(folder), "tester/tiny", "--json"]})
            assert pushed["code"] == 0, pushed
        commit = json.loads(pushed["out"])["commit"]
        names = set(hub.repositories["models", "tester/tiny"].commits[commit])
        assert {name for name in names if "safetensors" in name} == {
            path.name for path in folder.glob("*.safetensors*")
        }
        (tmp_path / "stranger").mkdir()
        code = LOAD.replace("tester/trained", "tester/tiny").replace("REVISION", repr(commit))
        loaded = json.loads(clean(code, hub, tmp_path / "stranger").splitlines()[-1])
    with torch.no_grad():
        assert loaded == pytest.approx(model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1].tolist(), abs=1e-5)


def test_what_is_public_is_not_taken_for_private(dataset, tmp_path):
    push = ["push", str(dataset), "tester/records", "--json"]
    with HubServer() as hub:
        first, second = run(hub, tmp_path / "home", {"words": push}, {"words": [*push, "--private"]})
        assert first["code"] == 0, first
        assert second["code"] == 2 and "is there and public" in second["err"] and second["err"].count("\n") == 1
        assert len(hub.repositories["datasets", "tester/records"].commits) == 2


def test_a_message_names_the_commit_of_a_dataset(dataset, tmp_path):
    with HubServer() as hub:
        words = ["push", str(dataset), "tester/records", "--json", "--message", "First records"]
        [pushed] = run(hub, tmp_path / "home", {"words": words})
        assert pushed["code"] == 0, pushed
        assert "First records" in hub.repositories["datasets", "tester/records"].messages


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("notes.csv", "x", "no part of a published dataset"),
        ("statistics.json", '{"PatientName": "Doe^Jane"}', "states a 'PatientName'"),
        ("RELINKING.md", "From /home/jane/scans.", "names the folder '/home/jane'"),
        ("README.md", "---\nlicense: mit\n---\n# x\n", "not for diagnosis"),
        ("LICENSE.md", "-----BEGIN PRIVATE KEY-----", "holds a private key"),  # pragma: allowlist secret
    ],
)
def test_what_must_not_travel_in_a_dataset(dataset, tmp_path, name, content, message):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    check_folder(copy)
    (copy / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        check_folder(copy)


def test_folders_of_this_machine_and_keys_stay(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny_checkpoint(folder)
    (folder / "README.md").write_text(CARD)
    check_folder(folder)
    for content, message in {
        f"made in {tmp_path}": "names the folder",
        "key AKIAABCDEFGHIJKLMNOP": "holds a cloud key",  # pragma: allowlist secret
        "key sk-proj-" + "a1" * 20: "holds an API key",
        "Patient ID: 12345": "states a 'Patient ID'",
        "MRN: 12345": "states a 'MRN'",
        "(0010,0010) PN [Doe^Jane]": "states a",
        '{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}}': "states a '00100010'",
        "from C:/Users/jane/scans": "names the folder",
        "from /root/scans": "names the folder",
    }.items():
        (folder / "notes.md").write_text(content)
        with pytest.raises(ValueError, match=message):
            check_folder(folder)
    (folder / "notes.md").write_text("Weights lie in /usr/bin/env and https://host/a/b; PatientName is removed.")
    check_folder(folder)


TRAIN = """
import json, sys, torch
from transformers import Trainer, TrainingArguments
from tests.tiny_checkpoint import tiny_checkpoint
from tests.modeling_unimedvl.test_trainers import quiet, rows, single

folder, repository = sys.argv[1:]
model, processor = tiny_checkpoint(folder)
settings = quiet(folder + "-run", max_steps=1, per_device_train_batch_size=1, save_strategy="no",
                 push_to_hub=True, hub_model_id=repository)
trainer = Trainer(model, TrainingArguments(**settings), data_collator=single, train_dataset=rows(model),
                  processing_class=processor)
trainer.train()
trainer.push_to_hub()
ids = torch.tensor([[3, 4, 5]])
with torch.no_grad():
    print(json.dumps(model(input_ids=ids).logits[0, -1].tolist()))
"""
LOAD = """
import json, torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
AutoProcessor.from_pretrained("tester/trained", revision=REVISION, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained("tester/trained", revision=REVISION, trust_remote_code=True)
with torch.no_grad():
    print(json.dumps(model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1].tolist()))
"""


def test_a_trainers_checkpoint_loads_where_the_package_is_missing(tmp_path):
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "tiny"), "tester/trained"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        trained = json.loads(done.stdout.splitlines()[-1])
        repository = hub.repositories["models", "tester/trained"]
        (tmp_path / "stranger").mkdir()
        code = LOAD.replace("REVISION", repr(repository.refs["main"]))
        loaded = json.loads(clean(code, hub, tmp_path / "stranger").splitlines()[-1])
    assert loaded == pytest.approx(trained, abs=1e-6)


def snippets(text):
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_commands_on_the_cards_that_training_and_merging_write_run(tmp_path):
    folder = tmp_path / "tiny"
    tiny_checkpoint(folder)
    (folder / "README.md").write_text(CARD)
    adapter = write_adapter(folder, tmp_path / "lora")
    Image.linear_gradient("L").resize((48, 48)).save(tmp_path / "scan.png")
    names = {"ADAPTER": "lora", "BASE": "tiny", "CHECKPOINT": "merged"}

    def commands(card):
        lines = [line.strip() for line in card.read_text().splitlines() if line.startswith("    unimedvl ")]
        return [[names.get(word, word) for word in shlex.split(line)[1:]] for line in lines]

    steps = commands(adapter / "README.md")
    assert [words[0] for words in steps] == ["ask", "merge"]
    with HubServer() as hub:
        done = run(hub, tmp_path / "home", *({"words": words} for words in steps), folder=tmp_path)
        assert all(result["code"] == 0 and result["out"].strip() for result in done), done
        [words] = commands(tmp_path / "merged" / "README.md")
        [asked] = run(hub, tmp_path / "home", {"words": words}, folder=tmp_path)
    assert (words[0], asked["code"]) == ("ask", 0) and asked["out"] == done[0]["out"]


def test_snippets_of_cards_run_at_the_commit_that_they_pin(tmp_path):
    facts = tmp_path / "facts.yaml"
    folder = tmp_path / "nano"
    shutil.copytree(NANO_DIRECTORY, folder)  # links become files
    shutil.copy(folder / "samples.png", folder / "noise.png")
    facts.write_text(yaml.safe_dump({**FACTS, "protocol": "Validation split."}))
    write_card(folder, build_card(folder, read_facts(facts), "tester/nano"))
    adapter = write_adapter(folder, tmp_path / "lora")
    shutil.copytree(adapter, tmp_path / "card")
    facts.write_text(yaml.safe_dump({**FACTS, "failures": [{"text": "It is random."}]}))
    write_card(adapter, build_card(adapter, read_facts(facts), "tester/lora", base="tester/nano"))
    with HubServer() as hub:
        pushes = [
            {"words": ["push", str(folder), "tester/nano", "--json"]},
            {"words": ["push", str(adapter), "tester/lora", "--base", "tester/nano", "--json"]},
        ]
        for repository, result in zip(
            ("tester/nano", "tester/lora"), run(hub, tmp_path / "home", *pushes), strict=True
        ):
            assert result["code"] == 0, result
            files = hub.repositories["models", repository].commits[json.loads(result["out"])["commit"]]
            code = snippets(files["README.md"].content.decode())
            assert "COMMIT" not in code and repository in code
            home = tmp_path / repository.replace("/", "-")
            home.mkdir()
            Image.linear_gradient("L").resize((64, 64)).save(home / "scan.png")
            printed = clean(code, hub, home)
            assert printed.strip()
            with Image.open(home / "made.png") as made:
                assert made.size == (64, 64) or made.size == (96, 96)
