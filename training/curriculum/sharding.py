"""Fully sharded data parallelism (FSDP2): every process holds its share of the weights, averages and moments.

The model is built without memory, sharded, and filled tensor by tensor: process 0 reads each one and deals its parts
out, so no process ever holds more than its share and one tensor.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.distributed import DistributedConfig

from unimedvl.checkpoint.folder import Checkpoint
from unimedvl.checkpoint.loading import read_config
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

from ..recipe import TrainingRecipe
from .acceleration import accelerate_model
from .parameter_groups import freeze_parts

_SHARD_BYTES = 4 << 30


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of the model is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextlib.contextmanager
def undistributed(config: PreTrainedConfig) -> Iterator[None]:
    """Inside, the configuration is that of a model on one device, as it is saved."""
    held, config.distributed_config = getattr(config, "distributed_config", None), None
    try:
        yield
    finally:
        config.distributed_config = held


def reshard(model: nn.Module) -> None:
    """Every process holds its share again: a forward pass without a backward pass leaves some weights whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# Not accelerate's FSDP2 plugin: even with `cpu_ram_efficient_loading` process 0 builds and holds the whole model, and
# it leaves out whole modules (`ignored_modules`), where single tables must stay whole here.
def load_sharded(
    checkpoint: Checkpoint, recipe: TrainingRecipe, device: torch.device
) -> UniMedVLForConditionalGeneration:
    """A checkpoint's model, float32, spread over all processes.

    Args:
        checkpoint: in our layout.
        recipe: with `bf16`, weights are gathered and computed with in bfloat16; those that are kept and updated stay
            float32, and gradients are summed in float32.
        device: of this process.

    Raises:
        ValueError: for a checkpoint in the upstream layout.
    """
    if checkpoint.layout != "transformers":
        raise ValueError(
            f"{checkpoint.directory} has the upstream layout, which is not read in shares: run `unimedvl convert` "
            "first."
        )
    with torch.device("meta"):
        model = UniMedVLForConditionalGeneration(read_config(checkpoint.directory))
    model.model.freeze_fixed_parts()
    freeze_parts(model, recipe.freeze)
    accelerate_model(model, recipe)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    shard(model, mesh, recipe.bf16)
    model.to_empty(device=device)
    _fill(model, checkpoint)
    model.generation_config = GenerationConfig.from_pretrained(checkpoint.directory)
    model.name_or_path = model.config.name_or_path = str(checkpoint.directory)
    # Transformers' Trainer then leaves wrapping and the summing of gradients to the model.
    marked: Any = model
    marked._is_fsdp_managed_module = True
    marked._is_distributed_loading_by_transformers = True
    model.config.distributed_config = DistributedConfig(fsdp_size=distributed.get_world_size())
    return model


def shard(model: UniMedVLForConditionalGeneration, mesh: DeviceMesh, bf16: bool) -> None:
    """Spread a model's weights over the processes of a mesh.

    Units that are gathered at one time: every layer, the embedding, the head, and the small rest.
    """
    # Images are encoded outside of `forward`, and the tables must keep their precision: both stay whole. They are
    # never trained, and small.
    whole = {
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("model.vae.") or name.endswith("pos_embed")
    }
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*model.repeated_blocks(), model.get_input_embeddings()):
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)
    # The backward pass begins where the forward pass ended.
    fully_shard(model.lm_head, mesh=mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)


@torch.no_grad()
def _fill(model: UniMedVLForConditionalGeneration, checkpoint: Checkpoint) -> None:
    first = distributed.get_rank() == 0
    opened: dict[Path, safe_open] = {}
    for name, target in model.state_dict(keep_vars=True).items():
        value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        if first:
            file = checkpoint.tensors[name].file
            if file not in opened:
                opened.clear()
                opened[file] = safe_open(file, framework="pt")
            value.copy_(opened[file].get_tensor(name))
        if isinstance(target, DTensor):
            local(target).copy_(local(distribute_tensor(value, target.device_mesh, target.placements)))
        else:
            distributed.broadcast(value, src=0)
            target.copy_(value)
        target._is_hf_initialized = True
    # What no checkpoint holds, like the frequencies of the rotary embedding.
    model.initialize_weights()


def save_whole(model: UniMedVLForConditionalGeneration, folder: Path) -> None:
    """Write a sharded model as a usual checkpoint; process 0 holds one file's tensors at a time.

    Every process calls it.
    """
    first = distributed.get_rank() == 0
    if first:
        with torch.device("meta"):
            outline = UniMedVLForConditionalGeneration(UniMedVLConfig.from_dict(model.config.to_dict()))
        outline.generation_config = model.generation_config
        outline.save_pretrained(folder, state_dict={"model.nothing": torch.zeros(1)})
        (folder / "model.safetensors").unlink()
    groups: list[list[str]] = [[]]
    size = 0
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if size > _SHARD_BYTES and groups[-1]:
            groups.append([])
            size = tensor.numel() * tensor.element_size()
        groups[-1].append(name)
    places: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        places |= dict.fromkeys(names, file)
        held = {}
        for name in names:
            tensor = tensors[name]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if first:
                held[name] = whole.detach().cpu().contiguous()
        if first:
            save_file(held, folder / file, metadata={"format": "pt"})
    if first and len(groups) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
