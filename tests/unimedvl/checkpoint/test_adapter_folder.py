"""An adapter folder finds its base and fits it, or says in one line what is wrong."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.adapters import write_adapter
from tests.tiny_checkpoint import tiny_checkpoint, tiny_processor
from unimedvl.checkpoint.adapter_folder import open_adapter
from unimedvl.checkpoint.conversion import export_checkpoint
from unimedvl.checkpoint.folder import locate, open_checkpoint
from unimedvl.checkpoint.identity import values_digest
from unimedvl.checkpoint.loading import load
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

pytestmark = pytest.mark.medium

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    return write_adapter(checkpoint, tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture
def copy(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copy")


def change(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_f14_an_adapter_loads_on_the_base_that_it_names(checkpoint, adapter):
    loaded = load(adapter)
    base = UniMedVLForConditionalGeneration.from_pretrained(checkpoint).eval()
    plain = logits(base)
    expected = logits(PeftModel.from_pretrained(base, str(adapter)).eval())
    assert torch.equal(logits(loaded.model), expected) and not torch.equal(expected, plain)
    assert loaded.checkpoint.name == "lora on tiny"
    assert all(part.startswith("weights:") for part in loaded.checkpoint.revision.split(" on "))


def test_f14_understanding_only_keeps_what_the_adapter_changes(checkpoint, adapter, tmp_path):
    generation = write_adapter(checkpoint, tmp_path / "generation", experts="generation")
    assert not load(adapter, understanding_only=True).model.config.visual_gen
    assert load(generation, understanding_only=True).model.config.visual_gen


def test_f14_the_processor_is_the_adapters_own_where_it_has_one(copy):
    assert load(copy).processor.chat_template == load().processor.chat_template
    processor = tiny_processor()
    processor.chat_template = "{{ 'mine' }}"
    processor.save_pretrained(copy)
    assert load(copy).processor.chat_template == "{{ 'mine' }}"


def test_f14_a_relative_base_is_found_from_here_and_beside_the_adapter(checkpoint, copy, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "base")
    change(copy, base_model_name_or_path="../base")
    (tmp_path / "elsewhere").mkdir()
    for place in (copy, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        assert load(copy).checkpoint.name == "copy on base"


def test_f14_the_same_values_are_the_same_base(checkpoint, copy, tmp_path):
    """In other files, in another layout and in bfloat16; other values are another base."""
    model = UniMedVLForConditionalGeneration.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    export_checkpoint(checkpoint, tmp_path / "upstream")
    digest = values_digest(open_checkpoint(checkpoint).tensors)
    for name in ("shards", "bfloat16", "upstream"):
        assert values_digest(open_checkpoint(tmp_path / name).tensors) == digest, name
    with torch.no_grad():
        model.get_parameter("model.language_model.layers.1.self_attn.q_proj.weight").mul_(1.01)
    model.save_pretrained(tmp_path / "other")
    assert values_digest(open_checkpoint(tmp_path / "other").tensors) != digest
    tiny_processor().save_pretrained(tmp_path / "shards")
    assert load(copy, base=str(tmp_path / "shards")).checkpoint.name == "copy on shards"


def test_f14_another_base_is_refused(copy, tmp_path):
    tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="'other' is not the base .* 'copy' was trained on.*--base"):
        load(copy, base=str(tmp_path / "other"))
    # An adapter from elsewhere says nothing of its base's values: layers and shapes decide.
    (copy / "base_model.json").unlink()
    load(copy, base=str(tmp_path / "other"))
    tiny_checkpoint(tmp_path / "wide", intermediate_size=64)
    with pytest.raises(ValueError, match="does not fit its base .*trained on another model"):
        load(copy, base=str(tmp_path / "wide"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base_model_name_or_path": "/nowhere/base"}, "'/nowhere/base', cannot be used .*name its base, --base"),
        ({"base_model_name_or_path": None}, "names no base: name it, --base"),
        ({"auto_mapping": {"base_model_class": "Qwen2ForCausalLM"}}, "trained on a Qwen2ForCausalLM"),
        ({"peft_type": None}, "names no peft_type"),
        ({"peft_type": "MAGIC"}, "does not fit its base"),
        ({"target_modules": ["query"]}, "does not fit its base"),
    ],
)
def test_f14_settings_that_cannot_be_used_are_one_line(copy, settings, message):
    change(copy, **settings)
    with pytest.raises(ValueError, match=message) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_f14_an_adapter_of_another_architecture_is_refused(copy, tmp_path):
    path = copy / "adapter_model.safetensors"
    tensors = {
        name.replace("language_model.layers", "transformer.h"): value for name, value in load_file(path).items()
    }
    save_file(tensors, path)
    with pytest.raises(ValueError, match="has no layer for its model.transformer.h"):
        load(copy)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert', not of 'unimedvl'.*choose another --base"):
        load(copy, base=str(tmp_path / "bert"))


def test_f14_half_an_adapter_is_refused(copy):
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[2:]), path)
    with pytest.raises(ValueError, match="Found missing adapter keys"):
        load(copy)
    path.unlink()
    with pytest.raises(ValueError, match="is missing: get the whole adapter folder"):
        load(copy)
    (copy / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="pickled adapter, which is never loaded"):
        open_adapter(locate(copy))


def test_f14_where_a_whole_checkpoint_is_needed_an_adapter_names_the_merge(adapter, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="holds an adapter.*`unimedvl merge`"):
        open_checkpoint(adapter)
    with pytest.raises(ValueError, match="holds no adapter.*leave --base out"):
        load(checkpoint, base=str(checkpoint))
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(ValueError, match="folder of a training run: give .*final"):
        open_checkpoint(tmp_path / "run")


def test_f14_the_name_that_recipes_give_to_the_nano_works_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("hub_cards/unimedvl-nano").name == "unimedvl-nano"
