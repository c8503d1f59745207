"""Checkpoints that are whole or absent, without pickle: tensors in safetensors, everything else in JSON.

Tensors go through `torch.distributed.checkpoint` in its safetensors form: every process writes what it holds, and a
checkpoint can be resumed with another number of processes, sharded or not.
"""

import contextlib
import json
import logging
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as distributed
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import partial_folder, replacing_folder

COMPLETE = "complete.json"
FINISHED_ALREADY = (
    "%s is finished and left as it is; for other settings or records, or more steps, choose another output_dir."
)
SHARDS = "shards"
# Torch notes the beginning and end of every tensor's saving here, for no one.
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
_FILE_BYTES = 1 << 30
_NAME = re.compile(r"checkpoint-(\d+)")


def several_processes() -> bool:
    """Whether this run has more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather(value: Any) -> list[Any]:
    """A value of every process, in their order."""
    if not several_processes():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error and all of it is on the disk.

    Every process of the run enters and may write; one that cannot makes all stop. The last file written is `COMPLETE`,
    which names every other one with its size. What a killed run leaves lies under another name, and the next run
    clears it away.

    Raises:
        ValueError: if the disk refuses, in every process.
    """
    folder = Path(folder)
    first = not several_processes() or distributed.get_rank() == 0
    with contextlib.ExitStack() as stack:
        with _together(folder):
            if first:
                stack.enter_context(replacing_folder(folder, overwrite=True))
        partial = partial_folder(folder)
        with _together(folder):
            yield partial
        with _together(folder):
            if first:
                files = sorted(path for path in partial.rglob("*") if path.is_file())
                sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
                write_json(partial / COMPLETE, sizes)
                stack.close()


@contextlib.contextmanager
def _together(folder: Path) -> Iterator[None]:
    """Every process leaves the block, or none does."""
    problem, cause = None, None
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        problem, cause = _reason(error), error
    problems = [found for found in gather(problem) if found is not None]
    if problems:
        raise ValueError(
            f"{folder} cannot be written ({problems[0]}): make room or choose another output_dir; the checkpoints "
            "before it are untouched."
        ) from cause


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        inner = [failure[0] for failure in error.failures.values()]
        return _reason(inner[0]) if inner else "torch.distributed.checkpoint failed"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        name = _NAME.fullmatch(path.name)
        if name and is_whole(path):
            found.append((int(name[1]), path))
    return [path for _, path in sorted(found)]


def keep_newest(output_dir: str | Path, count: int) -> None:
    """Remove the whole checkpoints of a run but the newest, and what a kill has left of those removed before.

    Folders of the same names that are no whole checkpoints may be somebody else's: they stay.
    """
    for rest in Path(output_dir).glob(".checkpoint-*.removed"):
        shutil.rmtree(rest)
    for old in checkpoints(output_dir)[:-count]:
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.removed")))


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there in their sizes."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def check_names(checkpoint: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError where a checkpoint holds other weights besides, or is damaged."""
    stored = stored_tensors(checkpoint)
    others = sorted(name for name in stored.keys() - tensors.keys() if not name.startswith("optimizer."))
    if others:
        raise ValueError(
            f"{checkpoint} is a checkpoint of another model or recipe (it has {others[0]}): choose another "
            "output_dir, or remove it."
        )


def changed_settings(known: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that a checkpoint knows with another value, or not."""
    return sorted(name for name, value in settings.items() if known.get(name) != value)


def check_settings(checkpoint: Path, known: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint's settings differ in what the samples and their noise depend on."""
    changed = changed_settings(known, settings)
    if changed:
        raise ValueError(
            f"{checkpoint} was made with another {', '.join(changed)}, which the samples or their noise depend on: "
            "choose another output_dir, or the same settings."
        )


# --- Tensors ---------------------------------------------------------------------------------------------------------


def save_tensors(tensors: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    """Write tensors, whole or sharded, into a checkpoint; every process calls it with the same names."""
    world = distributed.get_world_size() if several_processes() else 1
    files, filled = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + filled // (_FILE_BYTES * world)
        filled += tensor.numel() * tensor.element_size()
    writer = HuggingFaceStorageWriter(str(checkpoint / SHARDS), files, save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        distributed_checkpoint.save(dict(tensors), storage_writer=writer, no_dist=not several_processes())


def stored_tensors(checkpoint: Path) -> dict[str, torch.Size]:
    """Names and shapes of a checkpoint's tensors.

    Raises:
        ValueError: if a file is damaged.
    """
    try:
        metadata = HuggingFaceStorageReader(str(checkpoint / SHARDS)).read_metadata()
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(checkpoint, error) from error
    entries = metadata.state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def load_tensors(tensors: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    """Fill tensors, whole or sharded, from a checkpoint.

    Raises:
        ValueError: if it has not all of them in these shapes, or is damaged.
    """
    stored = stored_tensors(checkpoint)
    for name, tensor in tensors.items():
        if name not in stored or stored[name] != tensor.shape:
            has = f"in the shape {tuple(stored[name])}" if name in stored else "not"
            raise ValueError(
                f"{checkpoint} is a checkpoint of another model or recipe (it has {name} {has}): choose another "
                "output_dir, or remove it."
            )
    reader = HuggingFaceStorageReader(str(checkpoint / SHARDS))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            distributed_checkpoint.load(dict(tensors), storage_reader=reader, no_dist=not several_processes())
    except (SafetensorError, CheckpointException) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, error: BaseException) -> ValueError:
    return ValueError(f"{checkpoint} is damaged ({_reason(error)}): remove it to resume from the one before.")


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, torch.Tensor]:
    """The moments that AdamW holds, by "optimizer.KEY.NAME"."""
    return {
        f"optimizer.{key}.{name}": value for name, state in _states(optimizer, names) for key, value in state.items()
    }


def optimizer_steps(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, float]:
    """Steps that every weight has seen, by its name."""
    return {name: float(state["step"]) for name, state in _states(optimizer, names, steps=True)}


def _states(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], steps: bool = False
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if state:
                yield names[id(parameter)], {key: value for key, value in state.items() if (key == "step") == steps}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    checkpoint: Path,
    steps: Mapping[str, float],
    strict: bool = True,
) -> None:
    """Resume with an optimizer's moments.

    Args:
        names: name of every parameter by its `id`.
        steps: see `optimizer_steps`.
        strict: whether the checkpoint must be of just the weights that are trained; else those count that both have.

    Raises:
        ValueError: if it is of others, or damaged.
    """
    parameters = {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    others = sorted(steps.keys() - parameters.keys())
    if strict and others:
        raise ValueError(
            f"{checkpoint} holds the optimizer's state of {others[0]}, which this run does not train: check `freeze`."
        )
    tensors: dict[str, torch.Tensor] = {}
    for name in parameters.keys() & steps.keys():
        moments = {key: torch.zeros_like(parameters[name]) for key in ("exp_avg", "exp_avg_sq")}
        # The step count lies where fused AdamW keeps it, beside the weight.
        step = torch.tensor(steps[name], dtype=torch.float32, device=parameters[name].device)
        optimizer.state[parameters[name]] = {"step": step, **moments}
        tensors |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
    load_tensors(tensors, checkpoint)


# --- Generators ------------------------------------------------------------------------------------------------------


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
    """Resume from `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.asarray(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(values, dtype=torch.uint8) for values in state["cuda"]])
