"""What `open_checkpoint` and `unimedvl info` read from headers equals what the loaded model holds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import load_file, save_file

from tests.tiny_model import tiny_model
from unimedvl.checkpoint.folder import count_parts, estimate_memory, open_checkpoint
from unimedvl.commands.main import main
from unimedvl.modeling_unimedvl.upstream_weights_unimedvl import StoredTensor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model = tiny_model()
    model.save_pretrained(folder)
    return folder, model


def test_parts_add_up_to_the_model(saved):
    folder, model = saved
    checkpoint = open_checkpoint(folder)
    counts = count_parts(checkpoint.tensors)
    assert sum(counts.values()) == sum(value.numel() for value in model.state_dict().values())
    assert "other" not in counts
    inner = model.model
    layers = inner.language_model.layers.named_parameters()
    assert counts["generation expert"] == sum(value.numel() for name, value in layers if "_moe_gen" in name) + sum(
        value.numel() for value in inner.language_model.norm_moe_gen.parameters()
    )
    assert counts["autoencoder"] == sum(value.numel() for value in inner.vae.parameters())
    assert counts["vision transformer"] == sum(value.numel() for value in inner.vit_model.parameters())
    assert counts["connector"] == sum(value.numel() for value in inner.connector.parameters())


def test_memory_follows_from_the_counts(saved):
    folder, model = saved
    memory = estimate_memory(open_checkpoint(folder).tensors)
    total = sum(value.numel() for value in model.state_dict().values())
    linear = sum(
        value.weight.numel()
        for name, value in model.model.language_model.layers.named_modules()
        if isinstance(value, torch.nn.Linear)
    )
    assert memory["float32"] == 4 * total and memory["bfloat16"] == 2 * total
    assert memory["int8"] == 2 * total - linear
    # 4 bits a value, 8 bits for the scale of each 64, and 32 bits for the scale of each 256 such scales.
    bits = 4 * linear + 8 * linear // 64 + 32 * linear / (64 * 256)
    assert abs(memory["nf4"] - (2 * (total - linear) + bits / 8)) <= 1


def test_memory_in_4_bits_is_what_bitsandbytes_takes():
    """Of one linear layer of 1024 x 1024, quantized as `--quantize nf4` does it: twice."""
    name = "model.language_model.layers.0.mlp_moe_gen.up_proj.weight"
    stored = {name: StoredTensor(Path("model.safetensors"), name, "BF16", (1024, 1024), 0)}
    packed, state = quantize_4bit(torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True)
    parts = (packed, state.absmax, state.state2.absmax)
    assert estimate_memory(stored)["nf4"] == sum(part.numel() * part.element_size() for part in parts)
    # Other layers stay in 16 bits.
    kept = {"lm_head.weight": StoredTensor(Path("model.safetensors"), "lm_head.weight", "BF16", (1024, 1024), 0)}
    assert estimate_memory(kept)["nf4"] == 2 * 1024 * 1024


def test_shards_and_single_file_say_the_same(saved, tmp_path):
    folder, model = saved
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, sharded = open_checkpoint(folder), open_checkpoint(tmp_path)
    assert count_parts(whole.tensors) == count_parts(sharded.tensors)
    assert whole.revision != sharded.revision


def test_fingerprint_follows_the_weights(saved, tmp_path):
    folder, _ = saved
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert open_checkpoint(copy).revision == open_checkpoint(folder).revision
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert open_checkpoint(copy).revision != open_checkpoint(folder).revision


def test_info_prints_both_forms(saved, capsys):
    folder, _ = saved
    assert main(["info", "--model", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["generates_images"] is True
    assert record["parameters"] == sum(record["parameters_by_part"].values())
    assert record["memory_bytes_understanding_only"]["float32"] < record["memory_bytes"]["float32"]
    assert main(["info", "--model", str(folder)]) == 0
    assert f"{record['parameters']:,}" in capsys.readouterr().out
