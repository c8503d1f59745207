"""What runs leave, and how to compare two of them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from unimedvl.training.checkpoints import checkpoints


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def stored(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of an unsharded checkpoint."""
    (path,) = (checkpoint / "shards").iterdir()
    return {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}


def history(folder: Path) -> list[dict]:
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    volatile = ("per_second", "runtime", "flos", "seconds_left")
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in volatile)}
        for entry in state["log_history"]
    ]


def assert_bits(left: Path, right: Path) -> None:
    """Equal weights, averages, losses and places in the data."""
    for name in ("final", "final-ema"):
        one, other = weights(left / name), weights(right / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert history(left) == history(right)
    progress = [json.loads((checkpoints(folder)[-1] / "progress.json").read_text()) for folder in (left, right)]
    assert progress[0] == progress[1]


def assert_close(left: Path, right: Path, tolerance=1e-5, folder="final") -> None:
    one, other = weights(left / folder), weights(right / folder)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
