"""Comparison of weight files, tensor by tensor."""

from pathlib import Path

import torch
from safetensors.torch import load_file


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
