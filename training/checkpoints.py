"""Checkpoints that are whole or absent, without pickle: tensors in safetensors, everything else in JSON."""

import contextlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

COMPLETE = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error and all of it is on the disk.

    The last file written is `COMPLETE`, which names every other one with its size. What a killed run leaves lies
    under another name, and the next run clears it away.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        (partial / COMPLETE).write_text(json.dumps(sizes, indent=1))
        for path in [*files, partial / COMPLETE]:
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        name = _NAME.fullmatch(path.name)
        if name and is_whole(path):
            found.append((int(name[1]), path))
    return [path for _, path in sorted(found)]


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there in their sizes."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def save_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str], path: Path) -> None:
    """Write an optimiser's state.

    Args:
        names: name of every parameter by its `id`.
    """
    tensors = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{names[id(parameter)]}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, path)


def load_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str], path: Path) -> None:
    """Read what `save_optimizer` wrote into an optimiser over the same parameters.

    Raises:
        ValueError: if the file is damaged or holds the state of other parameters.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove its checkpoint and go on from the one before."
        ) from error
    known = {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
    others = sorted({name.rpartition("/")[0] for name in tensors} - known)
    if others:
        raise ValueError(f"{path} holds the state of {others[0]}, which this run does not train: check `freeze`.")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[id(parameter)]}/"
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if state:
                # The step count stays where AdamW keeps it, on the CPU.
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                }


def random_state() -> dict[str, Any]:
    """The state of all generators of this process; JSON-safe."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, numpy.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.asarray(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(values, dtype=torch.uint8) for values in state["cuda"]])
