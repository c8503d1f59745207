"""Single modules and formulas."""

import re

from unimedvl.modeling_unimedvl.flow_unimedvl import (
    flow_schedule,
    grid_position_ids,
    sinusoidal_position_table,
    timestep_features,
)

FILE = "components.safetensors"


def test_experts_of_a_layer(golden, model):
    layers = model.model.language_model.layers
    x = golden.input(FILE, "mlp.x")
    for name in golden.tensor_names(FILE, "mlp."):
        if match := re.fullmatch(r"mlp\.(und|gen)_layer(\d+)", name):
            layer = layers[int(match[2])]
            expert = layer.mlp if match[1] == "und" else layer.mlp_moe_gen
            golden.compare(FILE, name, expert(x))


def test_rms_norm_and_its_epsilon(golden, model):
    x = golden.input(FILE, "mlp.x")
    for name in golden.tensor_names(FILE, "rmsnorm."):
        match = re.fullmatch(r"rmsnorm\.layer(\d+)_input(?:_of_x_times_(.+))?", name)
        if match:
            norm = model.model.language_model.layers[int(match[1])].input_layernorm
            golden.compare(FILE, name, norm(x * float(match[2] or 1)))


def test_rotary_embedding(golden, model):
    position_ids = golden.input(FILE, "rope.position_ids")
    cos, sin = model.model.language_model.rotary_emb(golden.input(FILE, "mlp.x"), position_ids[None])
    golden.compare_all(FILE, "rope.", {"cos": cos[0], "sin": sin[0]})


def test_flow_schedule(golden):
    for name in golden.tensor_names(FILE, "schedule."):
        if match := re.fullmatch(r"schedule\.n(\d+)_shift([\d.]+)", name):
            golden.compare(FILE, name, flow_schedule(int(match[1]) - 1, float(match[2])))


def test_position_tables(golden):
    for name in golden.tensor_names(FILE, "sincos2d."):
        if match := re.fullmatch(r"sincos2d\.dim(\d+)_grid(\d+)", name):
            golden.compare(FILE, name, sinusoidal_position_table(int(match[1]), int(match[2])))


def test_timestep_embedder(golden, model):
    timesteps = golden.input(FILE, "time_embedder.t")
    ours = {"freq": timestep_features(timesteps), "out": model.model.time_embedder(timesteps, timesteps.dtype)}
    golden.compare_all(FILE, "time_embedder.", ours)


def test_vision_layer_and_connector(golden, model):
    x = golden.input(FILE, "vit.x")
    for name in golden.tensor_names(FILE, "vit."):
        match = re.fullmatch(r"vit\.layer(\d+)_(mlp|norm1|norm1_of_x_times_(.+))", name)
        if match:
            layer = model.model.vit_model.encoder.layers[int(match[1])]
            module = layer.mlp if match[2] == "mlp" else layer.layer_norm1
            golden.compare(FILE, name, module(x * float(match[3] or 1)))
    golden.compare_all(FILE, "connector.", {"out_of_vit_x": model.model.connector(x)})


def test_position_ids_of_a_grid(golden):
    for index, record in enumerate(golden.value("sizes.json", "/position_ids", [])):
        place = f"/position_ids/{index}"
        golden.argument("sizes.json", place)
        rows, columns = record["h"] // record["patch"], record["w"] // record["patch"]
        for mode, interpolate in (("extrapolate", False), ("interpolate", True)):
            ours = grid_position_ids(rows, columns, record["max_per_side"], interpolate)
            golden.equal_all("sizes.json", place, {mode: ours.tolist()})
