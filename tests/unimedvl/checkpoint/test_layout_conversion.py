"""Checkpoint conversion: exact both ways, checked before it writes, whole or absent."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tiny_model import tiny_model
from tests.upstream_checkpoint import (
    TWO_GIGABYTES,
    Sizes,
    autoencoder_shapes,
    main_shapes,
    write_configs,
    write_tokenizer_files,
    write_upstream,
)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint, export_checkpoint
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.upstream_layout_unimedvl import is_upstream_layout, upstream_config_dict
from unimedvl.modeling_unimedvl.upstream_weights_unimedvl import WeightNames, model_shapes, upstream_shape

pytestmark = pytest.mark.medium

REPOSITORY = Path(__file__).resolve().parents[3]
GENERATION = ("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")
QWEN_TOKENS = {
    "<|endoftext|>": 140,
    "<|im_start|>": 141,
    "<|im_end|>": 142,
    "<|vision_start|>": 149,
    "<|vision_end|>": 150,
    "<|vision_pad|>": 151,
    "<|image_pad|>": 152,
}


def tensors(folder: Path, pattern: str = "*.safetensors") -> dict[str, torch.Tensor]:
    """All tensors of a folder's weight files."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(pattern)):
        part = load_file(path)
        assert not found.keys() & part.keys()
        found |= part
    return found


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and tensor.shape == right[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name


def assert_nothing_written(output: Path):
    assert not output.exists()
    assert not list(output.parent.glob(f".{output.name}*"))


def random_sizes(seed: int) -> Sizes:
    rng = random.Random(seed)
    heads = rng.choice([2, 4])
    vit_heads = rng.choice([1, 2, 3])
    return Sizes(
        hidden=heads * rng.choice([8, 12, 16]),
        intermediate=rng.choice([24, 40, 56]),
        layers=rng.choice([1, 2, 3]),
        heads=heads,
        kv_heads=rng.choice([1, 2]),
        vocabulary=rng.choice([160, 200, 233]),
        vit_hidden=vit_heads * 12,
        vit_intermediate=rng.choice([20, 36]),
        vit_layers=rng.choice([1, 2, 4]),
        vit_heads=vit_heads,
        vit_patch=rng.choice([4, 7]),
        vit_side=rng.choice([5, 8, 11]),
        latent_side=rng.choice([6, 9]),
        latent_patch=rng.choice([1, 2, 3]),
        latent_channels=rng.choice([3, 4, 8]),
        channels=rng.choice([(32, 32), (32, 64, 96), (64, 32, 64, 32)]),
        res_blocks=rng.choice([1, 2]),
    )


# --------------------------------------------------------------------------------------------------------------------
# Names


def test_names_of_the_release_are_complete_and_invertible():
    shapes = model_shapes(UniMedVLForConditionalGeneration, UniMedVLConfig())
    names = WeightNames(4, 2)
    upstream = {names.to_upstream(name): upstream_shape(name, shape) for name, shape in shapes.items()}
    main = {name: shape for name, shape in upstream.items() if not name.startswith(("encoder.", "decoder."))}
    # The upstream model: 1,223 tensors with 14,607,260,128 values, and FLUX's autoencoder with 83,819,683.
    assert len(main) == 1223 and sum(torch.Size(shape).numel() for shape in main.values()) == 14_607_260_128
    flux = {name: shape for name, shape in upstream.items() if name not in main}
    assert len(flux) == 244 and sum(torch.Size(shape).numel() for shape in flux.values()) == 83_819_683
    assert {names.to_ours(name) for name in upstream} == set(shapes)
    assert names.to_ours("decoder.up.0.block.2.conv1.weight") == "model.vae.decoder.up_blocks.3.resnets.2.conv1.weight"


@pytest.mark.parametrize("seed", range(4))
def test_expected_tensors_equal_an_independent_table(tmp_path, seed):
    sizes = random_sizes(seed)
    folder = write_upstream(tmp_path / "upstream", sizes)
    config = UniMedVLConfig.from_pretrained(folder)
    names = WeightNames(len(sizes.channels), sizes.res_blocks)
    shapes = model_shapes(UniMedVLForConditionalGeneration, config)
    expected = {names.to_upstream(name): upstream_shape(name, shape) for name, shape in shapes.items()}
    assert expected == main_shapes(sizes) | autoencoder_shapes(sizes)


def test_autoencoder_equals_the_conversion_of_diffusers(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    convert_checkpoint(folder, tmp_path / "ours", progress=False)
    blocks = len(Sizes().channels)
    theirs = convert_ldm_vae_checkpoint(
        load_file(folder / "ae.safetensors"),
        {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks},
    )
    ours = tensors(tmp_path / "ours")
    assert_same(
        {name.removeprefix("model.vae."): ours[name] for name in ours if name.startswith("model.vae.")},
        {name: tensor.contiguous() for name, tensor in theirs.items()},
    )


# --------------------------------------------------------------------------------------------------------------------
# Round trip


@pytest.mark.parametrize("seed", range(4))
def test_round_trip_is_exact(tmp_path, seed):
    folder = write_upstream(tmp_path / "upstream", random_sizes(seed), seed=seed)
    report = convert_checkpoint(folder, tmp_path / "ours", max_shard_size="300KB", progress=False)
    assert report.num_tensors == len(tensors(folder)) and len(report.weight_files) > 1 and report.unused == ()
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(report.weight_files)
    assert index["metadata"]["total_size"] == report.num_bytes
    export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    for file in ("ema.safetensors", "ae.safetensors"):
        assert_same(load_file(folder / file), load_file(tmp_path / "back" / file))
    again = convert_checkpoint(tmp_path / "back", tmp_path / "again", max_shard_size="300KB", progress=False)
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()
    assert_same(tensors(tmp_path / "ours"), tensors(again.output))


@pytest.mark.parametrize("weights", ["ema", "ema_bf16", "model", "model_bf16"])
@pytest.mark.parametrize("root", ["bagel", "broken", None])
@pytest.mark.parametrize("dropped", [0, 1])
def test_every_variant_of_the_layout_converts(tmp_path, weights, root, dropped):
    sizes = Sizes()
    folder = write_upstream(
        tmp_path / "upstream",
        sizes,
        weights=weights,
        root=root,
        declared_vit_layers=sizes.vit_layers + dropped,
        autoencoder="vae_model.safetensors" if root is None else "ae.safetensors",
    )
    assert is_upstream_layout(folder)
    config = convert_checkpoint(folder, tmp_path / "ours", progress=False).config
    assert config.vision_config.num_hidden_layers == sizes.vit_layers
    assert (config.max_latent_size, config.latent_patch_size) == (sizes.latent_side, sizes.latent_patch)
    assert config.vit_max_num_patch_per_side == sizes.vit_side
    assert config.vae_config.latent_channels == sizes.latent_channels
    assert config.vae_config.block_out_channels == list(sizes.channels)
    assert config.text_config.rope_parameters["rope_theta"] == 500000.0
    # Only what no weight says comes from a root config.
    stated = ("gelu", True, 4.0, 0.25, 0.5) if root == "bagel" else ("gelu_pytorch_tanh", False, 1.0, 0.3611, 0.1159)
    vae = config.vae_config
    assert stated == (
        *(config.connector_act, config.interpolate_pos, config.timestep_shift),
        *(vae.scaling_factor, vae.shift_factor),
    )
    export_checkpoint(tmp_path / "ours", tmp_path / "back", weights=weights, progress=False)
    assert_same(load_file(folder / f"{weights}.safetensors"), load_file(tmp_path / "back" / f"{weights}.safetensors"))


def test_averaged_weights_win_and_others_can_be_chosen(tmp_path):
    folder = write_upstream(tmp_path / "upstream", weights="ema", seed=1)
    write_upstream(folder, weights="model", seed=2, dtype="F32")
    for weights, file in ((None, "ema"), ("model", "model"), ("ema.safetensors", "ema")):
        output = tmp_path / f"ours-{weights}"
        convert_checkpoint(folder, output, weights=weights, progress=False)
        name = "connector.fc1.weight"
        assert torch.equal(tensors(output)[f"model.{name}"], load_file(folder / f"{file}.safetensors")[name])
    with pytest.raises(ValueError, match="ema_bf16.safetensors"):
        convert_checkpoint(folder, tmp_path / "none", weights="ema_bf16", progress=False)
    with pytest.raises(ValueError, match="weights must be one of"):
        convert_checkpoint(folder, tmp_path / "none", weights="best", progress=False)


@pytest.mark.parametrize("place", ["module.{}", "{}"])
def test_leftovers_of_training_are_dropped(tmp_path, place):
    def rename(name: str) -> str:
        return place.format(name.replace("self_attn.", "self_attn.module."))

    extra = {"vae_batch_norm.running_mean": ("F32", (6,)), "vae_batch_norm.num_batches_tracked": ("I64", (1,))}
    folder = write_upstream(tmp_path / "upstream", rename=rename, extra=extra, autoencoder_inside=True)
    report = convert_checkpoint(folder, tmp_path / "ours", progress=False)
    assert set(extra) < set(report.unused)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    upstream = {name.replace("module.", ""): tensor for name, tensor in load_file(folder / "ema.safetensors").items()}
    assert_same(
        {name: tensor for name, tensor in upstream.items() if not name.startswith("vae_")},
        load_file(tmp_path / "back" / "ema.safetensors"),
    )
    # The autoencoder's own file wins over the copy inside the main file, as in the reference.
    assert_same(load_file(folder / "ae.safetensors"), load_file(tmp_path / "back" / "ae.safetensors"))


def test_autoencoder_inside_the_main_file_is_found(tmp_path):
    folder = write_upstream(tmp_path / "upstream", autoencoder=None, autoencoder_inside=True)
    convert_checkpoint(folder, tmp_path / "ours", progress=False)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    inside = load_file(folder / "ema.safetensors")
    assert_same(
        {name.removeprefix("vae_model."): inside[name] for name in inside if name.startswith("vae_model.")},
        load_file(tmp_path / "back" / "ae.safetensors"),
    )


def test_indexed_weights_and_a_hub_cache_full_of_links(tmp_path):
    stored = write_upstream(tmp_path / "blobs", shards=3, weights="model")
    folder = tmp_path / "snapshots" / "abc"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(stored.iterdir())):
        blob = path.rename(stored / f"{number:040x}")
        (folder / path.name).symlink_to(os.path.relpath(blob, folder))
    assert is_upstream_layout(folder)
    convert_checkpoint(folder, tmp_path / "ours", progress=False)
    assert not any(path.is_symlink() for path in (tmp_path / "ours").iterdir())
    export_checkpoint(tmp_path / "ours", tmp_path / "back", weights="model", progress=False)
    assert_same(tensors(folder), tensors(tmp_path / "back"))


def test_understanding_only_release_keeps_what_it_has(tmp_path):
    folder = write_upstream(tmp_path / "upstream", autoencoder=None, keep=lambda name: not name.startswith(GENERATION))
    report = convert_checkpoint(folder, tmp_path / "ours", progress=False)
    assert report.config.visual_gen is False
    assert any("_moe_gen" in name for name in tensors(tmp_path / "ours"))
    export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    assert_same(tensors(folder), tensors(tmp_path / "back"))
    for path in (folder, tmp_path / "ours"):
        model, info = UniMedVLForConditionalGeneration.from_pretrained(path, output_loading_info=True)
        assert not any(info.values())
        assert not any("_moe_gen" in name or ".vae" in name for name, _ in model.named_parameters())


def test_generation_half_can_be_left_out(tmp_path):
    folder = write_upstream(tmp_path / "upstream", autoencoder=None)
    with pytest.raises(ValueError, match="ae.safetensors.*visual_gen=False"):
        convert_checkpoint(folder, tmp_path / "ours", progress=False)
    convert_checkpoint(folder, tmp_path / "ours", overrides={"visual_gen": False}, progress=False)
    kept = tensors(tmp_path / "ours")
    assert not any("_moe_gen" in name or "vae" in name or "latent" in name or "time" in name for name in kept)
    model = UniMedVLForConditionalGeneration.from_pretrained(folder, visual_gen=False)
    assert model.state_dict().keys() == kept.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_can_be_changed(tmp_path, dtype):
    folder = write_upstream(tmp_path / "upstream", dtype="F32")
    report = convert_checkpoint(folder, tmp_path / "ours", dtype=dtype, progress=False)
    kind = getattr(torch, dtype)
    assert report.config.dtype == kind
    names = WeightNames(len(Sizes().channels), Sizes().res_blocks)
    converted = tensors(tmp_path / "ours")
    for name, tensor in tensors(folder).items():
        ours = converted[names.to_ours(name)]
        assert ours.dtype == kind and torch.equal(ours.flatten(), tensor.to(kind).flatten()), name


def test_values_too_large_for_float16_are_refused(tmp_path):
    folder = write_upstream(tmp_path / "upstream", dtype="F32")
    content = load_file(folder / "ema.safetensors")
    content["connector.fc2.bias"][3] = 1e5
    save_file(content, folder / "ema.safetensors")
    with pytest.raises(ValueError, match="connector.fc2.bias.*float16"):
        convert_checkpoint(folder, tmp_path / "ours", dtype="float16", progress=False)
    assert_nothing_written(tmp_path / "ours")


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


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def write_llm_config(folder: Path, **changes):
    path = folder / "llm_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-100])


def write_pickle(path: Path):
    with open(path, "wb") as handle:
        pickle.dump({"weight": [1.0]}, handle)


BAD_FOLDERS = {
    "unknown tensor": (
        {"extra": {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,))}},
        None,
        r"1 unknown .*rotary_emb\.inv_freq",
    ),
    "many unknown": (
        {"extra": {f"head.{index}": ("F32", (4,)) for index in range(9)}},
        None,
        r"9 unknown .head\.0; head\.1; head\.2; \.\.\.",
    ),
    "unknown autoencoder level": (
        {"extra": {"encoder.down.9.block.0.conv1.weight": ("F32", (32, 32, 3, 3))}},
        None,
        r"unknown .encoder\.down\.9",
    ),
    "misshapen tensor": (
        {"extra": {"language_model.model.layers.1.mlp_moe_gen.up_proj.weight": ("BF16", (48, 31))}},
        None,
        r"1 misshapen .*layers\.1\.mlp_moe_gen\.up_proj\.weight \[48, 31\], expected \[48, 32\]",
    ),
    "transposed attention of the autoencoder": (
        {"extra": {"connector.fc1.weight": ("BF16", (24, 32))}},
        None,
        r"misshapen .connector\.fc1\.weight",
    ),
    "missing tensor": ({"keep": lambda name: name != "connector.fc2.bias"}, None, r"1 missing .connector\.fc2\.bias"),
    "missing expert": ({"keep": lambda name: "_moe_gen" not in name}, None, r"missing .*_moe_gen"),
    "half of the latent parts": ({"keep": lambda name: "vae2llm" not in name}, None, r"vae2llm\.weight"),
    "no vision tower": ({"keep": lambda name: "vit_model" not in name}, None, "no vision transformer"),
    "no connector": ({"keep": lambda name: "connector" not in name}, None, "no connector"),
    "no embedding": ({"keep": lambda name: "embed_tokens" not in name}, None, r"embed_tokens\.weight is missing"),
    "vision layers lost": ({"declared_vit_layers": 27}, None, "3 whole ViT layers but vit_config.json counts 27"),
    "gap in vision layers": ({"keep": lambda name: "encoder.layers.1." not in name}, None, "1 whole ViT layers"),
    "integers": ({"extra": {"connector.fc1.bias": ("I64", (32,))}}, None, r"another type .connector\.fc1\.bias I64"),
    "table is no square": ({"extra": {"vit_pos_embed.pos_embed": ("F32", (80, 32))}}, None, "no square grid"),
    "latents fit no patch": ({"extra": {"vae2llm.weight": ("BF16", (32, 25))}}, None, "no square patch"),
    "tensor twice": ({"extra": {"module.connector.fc1.bias": ("BF16", (32,))}}, None, "connector.fc1.bias is twice"),
    "wrong size stated": ({}, lambda f: write_llm_config(f, hidden_size=64), "misshapen"),
    "size is text": ({}, lambda f: write_llm_config(f, num_hidden_layers="two"), "no positive integer"),
    "size is zero": ({}, lambda f: write_llm_config(f, num_attention_heads=0), "no positive integer"),
    "activation is a number": ({}, lambda f: write_llm_config(f, hidden_act=3), "cannot be used"),
    "broken text config": (
        {},
        lambda f: (f / "llm_config.json").write_text("{,"),
        "llm_config.json is not valid JSON",
    ),
    "list as config": ({}, lambda f: (f / "vit_config.json").write_text("[]"), "does not hold a JSON object"),
    "odd tokenizer": (
        {},
        lambda f: (f / "tokenizer.json").write_text('{"added_tokens": [7]}'),
        "the tokenizer files in .* cannot be read",
    ),
    "no text config": ({}, lambda f: (f / "llm_config.json").unlink(), "not in the upstream layout"),
    "no weights": ({}, lambda f: (f / "ema.safetensors").unlink(), "holds no ema_bf16.safetensors or"),
    "truncated weights": ({}, lambda f: truncate(f / "ema.safetensors"), "not a whole safetensors file"),
    "empty weights": ({}, lambda f: (f / "ae.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "pickle in disguise": ({}, lambda f: write_pickle(f / "ema.safetensors"), "pickles are never read"),
    "pickle": (
        {},
        lambda f: (write_pickle(f / "ema.pt"), (f / "ema.safetensors").unlink()),
        "pickled weights .ema.pt.",
    ),
    "shard missing": (
        {"shards": 3, "weights": "model"},
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "model-00002-of-00003.safetensors, named in model.safetensors.index.json, is missing",
    ),
    "index leads outside": (
        {"shards": 2, "weights": "model"},
        lambda f: (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}})),
        "named in model.safetensors.index.json, is missing",
    ),
    "groups do not divide": ({"sizes": replace(Sizes(), channels=(32, 48))}, None, "32 groups do not divide"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_source_is_named_before_anything_is_written(tmp_path, case):
    options, damage, message = BAD_FOLDERS[case]
    folder = write_upstream(tmp_path / "upstream", **options)
    if damage is not None:
        damage(folder)
    output = tmp_path / "outputs" / "ours"
    with pytest.raises(ValueError, match=message) as caught:
        convert_checkpoint(folder, output, progress=False)
    assert "\n" not in str(caught.value)
    assert not output.parent.exists()


def test_bad_arguments(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    output = tmp_path / "ours"
    for options, message in (
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"max_shard_size": "big"}, "max_shard_size must be a size"),
        ({"max_shard_size": None}, "max_shard_size must be a size"),
        ({"overrides": {"bos_token_id": 9999}}, "bos_token_id 9999 is no row"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(folder, output, progress=False, **options)
    with pytest.raises(ValueError, match="there is no folder"):
        convert_checkpoint(tmp_path / "nowhere", output, progress=False)
    with pytest.raises(ValueError, match="not a checkpoint of ours"):
        export_checkpoint(folder, output, progress=False)
    with pytest.raises(ValueError, match="exists already"):
        convert_checkpoint(folder, folder, progress=False)
    with pytest.raises(ValueError, match="exists already"):
        convert_checkpoint(folder, folder / "config.json", progress=False)
    with pytest.raises(ValueError, match="cannot write"):
        convert_checkpoint(folder, folder / "config.json" / "ours", progress=False)
    assert_nothing_written(output)
    output.mkdir()
    convert_checkpoint(folder, output, progress=False)
    with pytest.raises(ValueError, match="not in the upstream layout"):
        convert_checkpoint(output, tmp_path / "twice", progress=False)
    (output / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        export_checkpoint(output, tmp_path / "back", progress=False)


def test_autoencoder_without_place_in_the_layout_is_refused(tmp_path):
    config = {"norm_num_groups": 4, "use_quant_conv": True, "block_out_channels": [8, 8, 16], "latent_channels": 6}
    tiny_model(vae_config=config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="no place for model.vae.quant_conv"):
        export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    assert_nothing_written(tmp_path / "back")


# --------------------------------------------------------------------------------------------------------------------
# Interruption and memory

RUN = """
import resource, signal, sys, torch
torch.set_num_threads(1)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint
source, output, shard, limit = sys.argv[1:]
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    convert_checkpoint(source, output, max_shard_size=shard, progress=False)
except ValueError as error:
    sys.exit(str(error))
"""


def conversion(source: Path, output: Path, shard: str, limit: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(source), str(output), shard, str(limit)]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def test_killed_run_leaves_no_output_and_the_next_one_clears_up(tmp_path):
    sizes = replace(Sizes(), hidden=256, intermediate=1024, layers=6, vocabulary=4000)
    folder = write_upstream(tmp_path / "upstream", sizes)
    output = tmp_path / "ours"
    process = conversion(folder, output, "256KB")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".ours.partial/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists() and (tmp_path / ".ours.partial").is_dir()
    convert_checkpoint(folder, output, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "upstream"]
    assert len(tensors(output)) == len(tensors(folder))


def test_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    process = conversion(folder, tmp_path / "ours", "5GB", limit=200_000)
    _, message = process.communicate(timeout=120)
    line = message.strip().splitlines()[-1]
    assert process.returncode == 1 and line.startswith("cannot write") and "make room" in line
    assert_nothing_written(tmp_path / "ours")


def test_more_than_the_disk_holds_is_refused_at_once(tmp_path):
    vocabulary = 2 * shutil.disk_usage(tmp_path).free // (2 * 32 * 2)
    folder = write_upstream(tmp_path / "upstream")
    write_configs(folder, replace(Sizes(), vocabulary=vocabulary))
    # A sparse file: the numbers are there, the disk blocks are not.
    path = folder / "ema.safetensors"
    with safe_open(path, framework="pt") as handle:
        shapes = {
            name: (handle.get_slice(name).get_dtype(), handle.get_slice(name).get_shape()) for name in handle.keys()
        }
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        shapes[name] = ("BF16", [vocabulary, 32])
    header: dict = {}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        end = offset + torch.Size(shape).numel() * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        handle.truncate(8 + len(encoded) + offset)
    with pytest.raises(ValueError, match="GB needed, .* GB free"):
        convert_checkpoint(folder, tmp_path / "ours", progress=False)
    assert_nothing_written(tmp_path / "ours")


def test_two_runs_into_one_folder_do_not_mix(tmp_path):
    folder = write_upstream(tmp_path / "upstream")

    def second(partial: Path):
        with pytest.raises(ValueError, match="another run is writing"):
            convert_checkpoint(folder, tmp_path / "ours", progress=False)

    convert_checkpoint(folder, tmp_path / "ours", progress=False, finish=second)
    assert len(tensors(tmp_path / "ours")) == len(tensors(folder))


PEAK = """
import sys, threading, time

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

baseline = peak = anonymous()
running = True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch, daemon=True)
thread.start()
import torch
torch.set_num_threads(1)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint, export_checkpoint
function = {"convert": convert_checkpoint, "export": export_checkpoint}[sys.argv[1]]
function(*sys.argv[2:4], progress=False, **eval(sys.argv[4]))
running = False
thread.join()
print(baseline, peak)
"""


def peak_above_baseline(*arguments) -> int:
    """Peak of anonymous memory, bytes above an interpreter that has imported nothing."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    baseline, peak = map(int, done.stdout.split())
    return peak - baseline


@pytest.fixture
def large_folder(tmp_path):
    """A temporary folder that is emptied at once, also after a failure."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_two_gigabytes_pass_through_little_memory(large_folder):
    folder, ours, back = (large_folder / name for name in ("upstream", "ours", "back"))
    write_upstream(folder, TWO_GIGABYTES)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 2e9
    peaks = {"convert": peak_above_baseline("convert", folder, ours, {"max_shard_size": "500MB"})}
    shards = list(ours.glob("*.safetensors"))
    assert len(shards) >= 5 and all(path.stat().st_size < 501e6 for path in shards)
    peaks["export"] = peak_above_baseline("export", ours, back, {})
    for file in ("ema.safetensors", "ae.safetensors"):
        assert_same(load_file(folder / file), load_file(back / file))
    shutil.rmtree(back)
    peaks["cast"] = peak_above_baseline("convert", folder, back, {"dtype": "float32"})
    shutil.rmtree(back)
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in peaks.items()})
    assert all(peak < 1e9 for peak in peaks.values())
    direct = UniMedVLForConditionalGeneration.from_pretrained(folder)
    converted = UniMedVLForConditionalGeneration.from_pretrained(ours)
    assert_same(dict(direct.state_dict()), dict(converted.state_dict()))
