"""What a converted folder holds beside weights, and loading without conversion."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny_model import tiny_model
from tests.unimedvl.checkpoint.weight_files import assert_nothing_written, assert_same, tensors
from tests.upstream_checkpoint import (
    Sizes,
    write_tokenizer_files,
    write_upstream,
)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint, export_checkpoint
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.upstream_layout_unimedvl import upstream_config_dict

pytestmark = pytest.mark.medium

QWEN_TOKENS = {
    "<|endoftext|>": 140,
    "<|im_start|>": 141,
    "<|im_end|>": 142,
    "<|vision_start|>": 149,
    "<|vision_end|>": 150,
    "<|vision_pad|>": 151,
    "<|image_pad|>": 152,
}


# --------------------------------------------------------------------------------------------------------------------
# What comes with the weights


def test_special_ids_come_from_the_tokenizer_then_the_caller(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    without = upstream_config_dict(folder)
    assert (without["bos_token_id"], without["eos_token_id"]) == (150, 151)
    assert (without["vision_start_token_id"], without["vision_end_token_id"]) == (152, 153)
    write_tokenizer_files(folder, QWEN_TOKENS)
    report = convert_checkpoint(folder, tmp_path / "ours", overrides={"vision_end_token_id": 77}, progress=False)
    config = report.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (141, 142, 140)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (149, 77)
    assert (config.latent_token_id, config.image_token_id) == (151, 152)
    assert report.tokenizer_files == ("tokenizer_config.json", "vocab.json", "merges.txt")
    for name in report.tokenizer_files:
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 142 and "t2i" in generation["task_presets"]
    assert "temperature" not in generation and "guidance_scale" not in generation
    write_tokenizer_files(folder, {**QWEN_TOKENS, "<|im_end|>": 160})
    with pytest.raises(ValueError, match="eos_token_id 160 is no row of the 160 embeddings"):
        convert_checkpoint(folder, tmp_path / "none", progress=False)
    write_tokenizer_files(folder, dict(list(QWEN_TOKENS.items())[:5]))
    config = upstream_config_dict(folder)
    assert (config["image_token_id"], config["latent_token_id"]) == (159, 158)
    write_tokenizer_files(folder, {"<|im_end|>": 3})
    with pytest.raises(ValueError, match="im_start.*bos_token_id=ID"):
        convert_checkpoint(folder, tmp_path / "none", progress=False)


def test_qwen_ids_without_tokenizer_in_a_full_vocabulary(tmp_path):
    folder = write_upstream(tmp_path / "upstream", replace(Sizes(), vocabulary=151657, hidden=8, heads=1, kv_heads=1))
    config = UniMedVLConfig(**upstream_config_dict(folder))
    default = UniMedVLConfig()
    for name in ("bos_token_id", "eos_token_id", "vision_start_token_id", "image_token_id", "latent_token_id"):
        assert getattr(config, name) == getattr(default, name)


def test_upstream_sampling_settings_are_not_taken_over(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.7}))
    convert_checkpoint(folder, tmp_path / "ours", progress=False)
    for path in (folder, tmp_path / "ours"):
        model = UniMedVLForConditionalGeneration.from_pretrained(path)
        assert model.generation_config.temperature is None and not model.generation_config.do_sample
        assert model.generation_config.task_presets["edit"]["num_inference_steps"] == 49


def test_converted_folder_carries_the_code_it_needs(tmp_path):
    write_upstream(tmp_path / "upstream")
    convert_checkpoint(tmp_path / "upstream", tmp_path / "ours", progress=False)
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "sys.modules['unimedvl'] = None\n"
        "from transformers import AutoModelForMultimodalLM\n"
        "model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(sum(parameter.numel() for parameter in model.parameters()))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", code, str(tmp_path / "ours")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(tensor.numel() for tensor in tensors(tmp_path / "ours").values())
    assert not (tmp_path / "ours" / "convert_unimedvl.py").exists()


def test_finish_adds_files_or_cancels(tmp_path):
    folder = write_upstream(tmp_path / "upstream")

    def cancel(partial: Path):
        assert (partial / "config.json").is_file() and partial.parent == tmp_path
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(folder, tmp_path / "ours", progress=False, finish=cancel)
    assert_nothing_written(tmp_path / "ours")
    convert_checkpoint(
        folder, tmp_path / "ours", progress=False, finish=lambda partial: (partial / "README.md").write_text("card")
    )
    assert (tmp_path / "ours" / "README.md").read_text() == "card"


def test_a_trained_model_exports(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    fields = {name: getattr(model.config, name) for name in ("vision_start_token_id", "vision_end_token_id")}
    again = UniMedVLForConditionalGeneration.from_pretrained(tmp_path / "back", **fields)
    assert_same(dict(model.state_dict()), dict(again.state_dict()))
    for name in ("norm_num_groups", "block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"):
        assert getattr(again.config.vae_config, name) == getattr(model.config.vae_config, name)
    for name in ("vision_start_token_id", "bos_token_id", "eos_token_id", "latent_patch_size"):
        assert getattr(again.config, name) == getattr(model.config, name)


# --------------------------------------------------------------------------------------------------------------------
# Loading without conversion


@pytest.mark.parametrize("root", ["bagel", "broken", None])
def test_direct_load_equals_the_converted_checkpoint(tmp_path, root):
    folder = write_upstream(tmp_path / "upstream", root=root)
    convert_checkpoint(folder, tmp_path / "ours", progress=False)
    direct, info = UniMedVLForConditionalGeneration.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not any(info.values())
    converted = UniMedVLForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="float32")
    assert_same(dict(direct.state_dict()), dict(converted.state_dict()))
    for name in ("transformers_version", "_name_or_path"):
        direct.config.__dict__.pop(name, None), converted.config.__dict__.pop(name, None)
    assert direct.config.to_dict() == converted.config.to_dict()
    assert direct.generation_config.to_dict() == converted.generation_config.to_dict()
    frozen = {name for name, parameter in direct.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in converted.named_parameters() if not parameter.requires_grad}
    direct.save_pretrained(tmp_path / "saved")
    assert_same(tensors(tmp_path / "saved"), dict(direct.state_dict()))


def test_direct_load_takes_configuration_fields_and_loading_options(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    model = UniMedVLForConditionalGeneration.from_pretrained(
        folder, bos_token_id=5, vision_end_token_id=6, attn_implementation="eager", dtype=torch.float32
    )
    assert (model.config.bos_token_id, model.config.vision_end_token_id) == (5, 6)
    assert model.config._attn_implementation == "eager" and model.dtype == torch.float32
    assert model.generation_config.bos_token_id == 5


def test_training_a_directly_loaded_model_leaves_the_files_alone(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    before = (folder / "ema.safetensors").read_bytes()
    model = UniMedVLForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "ema.safetensors").read_bytes() == before


def test_files_without_alignment_are_read(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    convert_checkpoint(folder, tmp_path / "aligned", progress=False)
    content = (folder / "ema.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    header += b" " * (1 - len(header) % 2)
    (folder / "ema.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    convert_checkpoint(folder, tmp_path / "odd", progress=False)
    assert_same(tensors(tmp_path / "aligned"), tensors(tmp_path / "odd"))
    model = UniMedVLForConditionalGeneration.from_pretrained(folder, dtype="float32")
    assert torch.equal(model.lm_head.weight, tensors(folder)["language_model.lm_head.weight"].float())


def test_direct_load_refuses_what_conversion_refuses(tmp_path):
    folder = write_upstream(tmp_path / "upstream", extra={"surprise.weight": ("BF16", (2, 2))})
    with pytest.raises(ValueError, match="1 unknown .surprise.weight."):
        UniMedVLForConditionalGeneration.from_pretrained(folder)
