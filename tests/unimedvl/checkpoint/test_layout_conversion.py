"""Checkpoint conversion: exact both ways, whatever the variant of the layout."""

import json
import os
import random

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from tests.unimedvl.checkpoint.weight_files import assert_nothing_written, assert_same, tensors
from tests.upstream_checkpoint import (
    Sizes,
    autoencoder_shapes,
    main_shapes,
    write_upstream,
)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint, export_checkpoint
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.upstream_layout_unimedvl import is_upstream_layout
from unimedvl.modeling_unimedvl.upstream_weights_unimedvl import WeightNames, model_shapes, upstream_shape

pytestmark = pytest.mark.medium

GENERATION = ("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")


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
