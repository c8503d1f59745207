"""`push_to_hub` of model, processor and adapter sends all that a stranger needs, and a stranger gets it back.

The Hub is `tests/hub_server.py`. The pushing process has the package; the loading process has only the public
libraries, an empty cache, and a pinned revision.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_cards.test_clean_process import AUTO_CLASSES, run_clean
from tests.hub_server import HubServer

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY, ADAPTER = "tester/tiny", "tester/tiny-lora"

# Runs in a process of its own, since huggingface_hub reads the address of the Hub when it is imported.
PUSH = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from tests.hub_cards.clean_process import use
from tests.tiny_checkpoint import tiny_checkpoint

folder, repository, adapter_repository = sys.argv[1:]
model, processor = tiny_checkpoint(folder)
first = model.push_to_hub(repository)
pinned = processor.push_to_hub(repository).oid
report = {"pinned": pinned, "base": use(model, processor)}

model.name_or_path = model.config.name_or_path = repository
adapted = get_peft_model(model, LoraConfig(r=2))
torch.manual_seed(1)
for name, parameter in adapted.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.5)
report["adapter"] = adapted.push_to_hub(adapter_repository).oid
report["adapted"] = use(adapted.base_model.model.eval(), processor)

# The branch moves on: other weights under the same name. A pinned revision must not see them.
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
adapted.unload().push_to_hub(repository)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory) -> dict:
    home = tmp_path_factory.mktemp("pusher")
    command = [sys.executable, "-c", PUSH, str(home / "tiny"), REPOSITORY, ADAPTER]
    environment = {**os.environ, **hub.environment(home), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fetched(hub, pushed, tmp_path_factory) -> dict:
    home = tmp_path_factory.mktemp("stranger")
    hub.requests.clear()
    arguments = [REPOSITORY, "--revision", pushed["pinned"], "--network"]
    arguments += ["--adapter", ADAPTER, "--adapter-revision", pushed["adapter"]]
    report = run_clean(home, *arguments, **hub.environment(home))
    return {**report, "requests": list(hub.requests)}


def test_everything_is_there(hub, pushed):
    files = hub.repositories["models", REPOSITORY].commits[pushed["pinned"]]
    assert {"modeling_unimedvl.py", "configuration_unimedvl.py", "processing_unimedvl.py"} <= set(files)
    assert {"image_processing_unimedvl.py", "chat_template.jinja", "processor_config.json"} <= set(files)
    assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= set(files)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    auto_map = json.loads(files["config.json"].content)["auto_map"]
    assert {"AutoConfig", "AutoModel", *AUTO_CLASSES} <= set(auto_map)
    for reference in auto_map.values():
        assert f"{reference.partition('.')[0]}.py" in files
    assert "AutoProcessor" in json.loads(files["processor_config.json"].content)["auto_map"]
    assert "virtual_staining" in json.loads(files["generation_config.json"].content)["task_presets"]


def test_adapter_names_its_base(hub, pushed):
    files = hub.repositories["models", ADAPTER].commits[pushed["adapter"]]
    assert "adapter_model.safetensors" in files
    config = json.loads(files["adapter_config.json"].content)
    assert config["base_model_name_or_path"] == REPOSITORY
    assert config["target_modules"]


def test_stranger_gets_the_same_answers(pushed, fetched):
    for name in AUTO_CLASSES:
        fetched[name].pop("class", None)
        assert fetched[name] == pushed["base"], name
    assert fetched["imported"] == []
    assert "t2i" in fetched["presets"]


def test_only_the_pinned_revision_was_read(hub, pushed, fetched):
    assert hub.repositories["models", REPOSITORY].refs["main"] != pushed["pinned"]
    asked = [request.split("/resolve/")[1] for request in fetched["requests"] if f"/{REPOSITORY}/resolve/" in request]
    assert asked and all(path.startswith(pushed["pinned"]) for path in asked), asked


def test_adapter_comes_back(pushed, fetched):
    assert pushed["adapted"] != pushed["base"]
    assert fetched["adapter"] == pushed["adapted"]
    assert fetched["adapter_base"] == REPOSITORY


def test_command_takes_a_hub_id_without_running_its_code(hub, pushed, tmp_path):
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    hub.requests.clear()
    command = [
        sys.executable,
        "-m",
        "unimedvl.commands.main",
        "ask",
        "What is this?",
        "--json",
        "--max-new-tokens",
        "4",
    ]
    command += ["--model", REPOSITORY, "--revision", pushed["pinned"]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["revision"] == pushed["pinned"]
    assert not [request for request in hub.requests if request.endswith(".py")]
    assert not list((tmp_path / "home").rglob("*.py"))


def test_info_reads_headers_only(hub, pushed, tmp_path):
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    files = hub.repositories["models", REPOSITORY].commits[pushed["pinned"]]
    command = [sys.executable, "-m", "unimedvl.commands.main", "info", "--json", "--model", REPOSITORY]
    hub.bytes_sent = 0
    result = subprocess.run(
        [*command, "--revision", pushed["pinned"]], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["revision"] == pushed["pinned"] and record["generates_images"] is True
    assert record["bytes_on_disk"] > len(files["model.safetensors"].content) * 0.8
    assert hub.bytes_sent < 100_001 + sum(len(stored.content) for stored in files.values() if not stored.is_lfs)
    assert hub.bytes_sent < len(files["model.safetensors"].content)


@pytest.mark.parametrize("problem", ["repository", "revision", "token"])
def test_hub_problems_are_one_line(hub, pushed, tmp_path, problem):
    environment = {**os.environ, **hub.environment(tmp_path)}
    command = [sys.executable, "-m", "unimedvl.commands.main", "info"]
    command += ["--model", "tester/none" if problem == "repository" else REPOSITORY]
    command += ["--revision", "0" * 40] if problem == "revision" else []
    if problem == "token":
        environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
