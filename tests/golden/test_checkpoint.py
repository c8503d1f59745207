"""The checkpoint folder: every weight arrives where it belongs, every number in its configuration files is obeyed."""

import re

import torch

from .records import CHECKSUMS
from .reference import JSON, our_name

WEIGHTS = "ckpt/ema.safetensors"
AUTOENCODER = "ckpt/ae.safetensors"

# Names of the autoencoder's weights in upstream's file, and in diffusers; {up} counts from the other end there.
AUTOENCODER_NAMES = (
    (r"encoder\.down\.(?P<level>\d+)\.block\.(\d+)\.", r"encoder.down_blocks.{level}.resnets.\2."),
    (r"encoder\.down\.(?P<level>\d+)\.downsample\.", r"encoder.down_blocks.{level}.downsamplers.0."),
    (r"decoder\.up\.(?P<level>\d+)\.block\.(\d+)\.", r"decoder.up_blocks.{up}.resnets.\2."),
    (r"decoder\.up\.(?P<level>\d+)\.upsample\.", r"decoder.up_blocks.{up}.upsamplers.0."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)


def autoencoder_name(name: str, levels: int) -> str:
    """Our name of a weight of upstream's autoencoder file."""
    for pattern, replacement in AUTOENCODER_NAMES:
        match = re.search(pattern, name)
        if match:
            level = int(match.groupdict().get("level", 0))
            name = re.sub(pattern, replacement, name).format(level=level, up=levels - 1 - level)
    return f"model.vae.{name}"


def test_checksums(golden):
    golden.check_checksums()
    assert golden.mismatches or set(golden.records.get(CHECKSUMS, [])) <= {
        path.relative_to(golden.folder).as_posix() for path in golden.folder.rglob("*")
    }


def test_weights(golden, model):
    for name in golden.tensor_names(WEIGHTS):
        golden.compare(WEIGHTS, name, model.get_parameter(our_name(name)), relative=0.0, absolute=0.0)


def test_autoencoder_weights(golden, model):
    levels = len(model.config.vae_config.block_out_channels)
    for name in golden.tensor_names(AUTOENCODER):
        ours = model.get_parameter(autoencoder_name(name, levels))
        # Upstream's file keeps the attention's matrices as 1 x 1 convolutions.
        shape = golden.recorded(AUTOENCODER, name).shape
        if ours.numel() == shape.numel():
            ours = ours.reshape(shape)
        golden.compare(AUTOENCODER, name, ours, relative=0.0, absolute=0.0)


def test_nothing_is_left_at_its_initial_value(golden, model):
    levels = len(model.config.vae_config.block_out_channels)
    loaded = {our_name(name) for name in golden.tensor_names(WEIGHTS)}
    loaded |= {autoencoder_name(name, levels) for name in golden.tensor_names(AUTOENCODER)}
    assert {name for name, _ in model.named_parameters()} == loaded


def test_language_model_configuration(golden, model):
    config = model.config.text_config
    ours = {
        "rope_theta": config.rope_parameters["rope_theta"],
        **attributes(
            config,
            "attention_dropout",
            "freeze_und",
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "rms_norm_eps",
            "tie_word_embeddings",
            "vocab_size",
        ),
        "qk_norm": all(hasattr(layer.self_attn, "q_norm") for layer in model.model.language_model.layers),
    }
    for file, pointer in (("ckpt/llm_config.json", ""), ("ckpt/config.json", "/llm_config"), (JSON, "/config/llm")):
        golden.equal_all(file, pointer, ours)


def test_vision_configuration(golden, model):
    config = model.config.vision_config
    names = ("attention_dropout", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps")
    ours = attributes(config, *names, "num_attention_heads", "num_channels", "patch_size")
    for file, pointer in (("ckpt/vit_config.json", ""), ("ckpt/config.json", "/vit_config"), (JSON, "/config/vit")):
        golden.equal_all(file, pointer, ours)
    golden.equal_all(JSON, "/config/vit", attributes(config, "num_hidden_layers"))


def test_autoencoder_configuration(golden, model):
    config = model.config.vae_config
    first, *_ = config.block_out_channels
    ours = {
        "ch": first,
        "ch_mult": [channels // first for channels in config.block_out_channels],
        "downsample": config.downsample,
        "in_channels": config.in_channels,
        "num_res_blocks": config.layers_per_block,
        "out_ch": config.out_channels,
        "scale_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "z_channels": config.latent_channels,
    }
    for file, pointer in (("ckpt/ae_params.json", ""), ("ckpt/config.json", "/vae_config"), (JSON, "/config/ae")):
        golden.equal_all(file, pointer, ours)


def test_configuration_of_the_whole(golden, model):
    names = ("connector_act", "interpolate_pos", "latent_patch_size", "max_latent_size", "timestep_shift")
    ours = attributes(model.config, *names, "vit_max_num_patch_per_side", "visual_gen")
    for file, pointer in (("ckpt/config.json", ""), (JSON, "/config/bagel")):
        golden.equal_all(file, pointer, ours)


def test_position_tables_follow_the_formula(model):
    from unimedvl.modeling_unimedvl.flow_unimedvl import sinusoidal_position_table

    hidden_size = model.config.text_config.hidden_size
    for module, side in (
        (model.model.latent_pos_embed, model.config.max_latent_size),
        (model.model.vit_pos_embed, model.config.vit_max_num_patch_per_side),
    ):
        torch.testing.assert_close(module.pos_embed.data, sinusoidal_position_table(hidden_size, side))


def attributes(config, *names: str) -> dict:
    return {name: getattr(config, name) for name in names}
