"""Save the processor; load it where the package is not importable and no socket opens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processing.conftest import SMALL_TRANSFORMS, random_image
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

pytestmark = pytest.mark.medium

NANO = Path(__file__).parents[2] / "hub_cards" / "unimedvl-nano"

CLEAN_PROCESS = """
import socket, sys
sys.modules["unimedvl"] = None
def refuse(*arguments, **keywords):
    raise OSError("no sockets here")
socket.socket.connect = socket.create_connection = refuse
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
folder, image, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
alone = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert alone.to_dict() == processor.image_processor.to_dict()
conversation = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "Why?"}]}]
inputs = processor.apply_chat_template(
    conversation, generation_mode="image", tokenize=True, return_dict=True, return_tensors="pt", think=True
)
torch.save(dict(inputs), out)
processor.save_pretrained(folder + "-again")
"""


def test_clean_process(processor, tmp_path):
    folder, again = tmp_path / "saved", tmp_path / "saved-again"
    processor.save_pretrained(folder)
    image = random_image(60, 40)
    image.save(tmp_path / "image.png")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [folder, tmp_path / "image.png", tmp_path / "inputs.pt"]
    subprocess.run([sys.executable, "-c", CLEAN_PROCESS, *arguments], check=True, env=environment, cwd=tmp_path)
    there = torch.load(tmp_path / "inputs.pt")
    conversation = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Why?"}]}]
    here = processor.apply_chat_template(
        conversation, generation_mode="image", tokenize=True, return_dict=True, return_tensors="pt", think=True
    )
    assert set(there) == set(here) and all(torch.equal(there[key], here[key]) for key in here)
    # What the clean process saved again has the same code, template and settings.
    for path in folder.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            assert (again / path.name).read_text() == path.read_text(), path.name


def test_round_trip_in_this_process(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_unimedvl.UniMedVLProcessor"}
    assert config["image_processor"]["auto_map"]["AutoImageProcessor"].endswith("UniMedVLImageProcessor")
    for name, transform in SMALL_TRANSFORMS.items():
        assert config["image_processor"][name] == transform
    loaded = UniMedVLProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == processor.chat_template == (tmp_path / "chat_template.jinja").read_text()
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()


LOAD_WITHOUT_TRUST = """
import sys
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor
processor = UniMedVLProcessor.from_pretrained(sys.argv[1])
print(processor.image_processor.patch_size, processor.image_token_id, type(processor.tokenizer).__name__)
"""


def test_the_installed_processor_never_asks_to_run_code():
    ran = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_TRUST, NANO],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == 0 and "[y/N]" not in ran.stdout + ran.stderr, ran.stderr
    assert ran.stdout.split()[-1] == "Qwen2Tokenizer"


def test_a_folder_with_only_a_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    processor = UniMedVLProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.to_dict() == UniMedVLImageProcessor().to_dict()
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_an_own_template_is_kept(image_processor, tokenizer, tmp_path):
    UniMedVLProcessor(image_processor, tokenizer, chat_template="{{ messages[0].content }}").save_pretrained(tmp_path)
    loaded = UniMedVLProcessor.from_pretrained(tmp_path)
    assert loaded.apply_chat_template([{"role": "user", "content": "Hello"}]) == "Hello"
