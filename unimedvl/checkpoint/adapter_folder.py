"""Adapter folders: what PEFT saved, the base that it belongs on, and a model with the adapter in place.

Training writes `BASE_RECORD` beside PEFT's files, so that an adapter is never put on other weights than those it was
trained on. Adapters from elsewhere have no such file: names and shapes of their layers decide alone.
"""

import importlib.util
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..modeling_unimedvl.upstream_weights_unimedvl import GENERATION_HALF, StoredTensor, read_headers
from ..utils.json_files import read_json, write_json
from .folder import (
    ADAPTER_SETTINGS,
    SETTINGS_PATTERNS,
    Checkpoint,
    Place,
    fingerprint,
    is_adapter,
    locate,
    open_place,
    peek_checkpoint,
)
from .identity import values_digest

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "base_model.json"
PROCESSOR_SETTINGS = "processor_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """An adapter folder whose files are there.

    Attributes:
        directory: the folder.
        name: how people call it: a Hub id, or the name of the folder.
        revision: the commit hash for a Hub id, else `weights:` and a fingerprint of the weights.
        settings: the content of `adapter_config.json`.
        record: the content of `BASE_RECORD`: `weights`, the digest of the base's values, and `quantize`, how the base
            was loaded for training; empty where there is none.
        tensors: where every tensor lies, by name.
    """

    directory: Path
    name: str
    revision: str
    settings: dict[str, Any]
    record: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def method(self) -> str:
        """PEFT's name of the method, "LORA" for instance."""
        return str(self.settings.get("peft_type"))

    @property
    def on_generation_half(self) -> bool:
        """Whether the adapter changes layers that a model for understanding only does without."""
        return any(GENERATION_HALF.search(name.removeprefix(_PREFIX)) for name in self.tensors)

    @property
    def has_processor(self) -> bool:
        """Whether the processor was saved with the adapter."""
        return (self.directory / PROCESSOR_SETTINGS).is_file()


def open_adapter(place: Place) -> Adapter:
    """Read an adapter folder without loading a weight.

    Args:
        place: a folder of which `is_adapter` holds.

    Raises:
        ValueError: if its weights are missing, damaged or pickled, or if the method is none of PEFT's.
    """
    folder, name, commit = place
    settings = read_json(folder / ADAPTER_SETTINGS)
    if not isinstance(settings.get("peft_type"), str):
        raise ValueError(f"{folder / ADAPTER_SETTINGS} names no peft_type: save the adapter again.")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(f"{str(folder)!r} holds a pickled adapter, which is never loaded: save safetensors.")
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: get the whole adapter folder.")
    tensors = {stored.key: stored for stored in read_headers([weights])}
    record = read_json(folder / BASE_RECORD) if (folder / BASE_RECORD).is_file() else {}
    return Adapter(folder, name, commit or fingerprint([weights]), settings, record, tensors)


def peek_adapter(model: str | os.PathLike, revision: str | None = None) -> Adapter | None:
    """The adapter of a folder or Hub id, or None where there is none; nothing but an adapter's weights is downloaded.

    Raises:
        ValueError: if there is no such repository, or see `open_adapter`.
    """
    if not Path(model).expanduser().is_dir() and os.fspath(model).count("/") != 1:
        return None  # neither a folder nor a Hub id: whoever opens the checkpoint says so
    if not is_adapter(locate(model, revision, SETTINGS_PATTERNS).directory):
        return None
    return open_adapter(locate(model, revision))


def base_source(adapter: Adapter, base: str | None) -> tuple[str, str | None]:
    """Name and revision of the base: the one that the user chose, or the one that the adapter names.

    A relative folder counts from here, and else from the adapter's folder.

    Raises:
        ValueError: if neither names one.
    """
    if base is not None:
        return base, None
    stated = adapter.settings.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        raise ValueError(f"the adapter {adapter.name!r} names no base: name it, --base FOLDER or HUB_ID.")
    beside = adapter.directory / stated
    if not Path(stated).expanduser().is_dir() and beside.is_dir():
        return str(beside), None
    revision = adapter.settings.get("revision")
    # A commit belongs to a Hub id; a folder has none.
    local = Path(stated).expanduser().exists()
    return stated, revision if isinstance(revision, str) and revision and not local else None


def open_base(adapter: Adapter, base: str | None = None, *, peek: bool = False) -> Checkpoint:
    """The checkpoint that an adapter belongs on.

    Args:
        adapter: see `open_adapter`.
        base: a folder or a Hub id instead of what the adapter names.
        peek: of a Hub id, download settings and headers only; the values are not compared then.

    Raises:
        ValueError: if there is no such checkpoint, if it is not the one that the adapter was trained on, or if the
            adapter is one of another architecture.
    """
    trained_class = (adapter.settings.get("auto_mapping") or {}).get("base_model_class")
    if trained_class is not None and not str(trained_class).startswith("UniMedVL"):
        raise ValueError(f"the adapter {adapter.name!r} was trained on a {trained_class}, which is no UniMedVL model.")
    name, revision = base_source(adapter, base)
    try:
        found = peek_checkpoint(name, revision) if peek else open_place(locate(name, revision))
    except ValueError as error:
        remedy = "choose another --base" if base is not None else "name its base, --base FOLDER or HUB_ID"
        raise ValueError(
            f"the base of the adapter {adapter.name!r}, {name!r}, cannot be used ({str(error).rstrip('.')}): {remedy}."
        ) from error
    check_base(adapter, found, compare_values=not peek)
    return found


def joined(adapter: Adapter, base: Checkpoint) -> Checkpoint:
    """The base under the names and revisions of both."""
    return replace(base, name=f"{adapter.name} on {base.name}", revision=f"{adapter.revision} on {base.revision}")


def check_base(adapter: Adapter, base: Checkpoint, *, compare_values: bool = True) -> None:
    """Compare a checkpoint with what an adapter's record says of its base.

    Raises:
        ValueError: if the weights are others.
    """
    expected = adapter.record.get("weights")
    if compare_values and expected is not None and values_digest(base.tensors) != expected:
        raise ValueError(
            f"{base.name!r} is not the base that the adapter {adapter.name!r} was trained on, its weights differ: "
            f"name the right one, --base FOLDER or HUB_ID."
        )


def record_base(folder: Path, base: Checkpoint, quantize: str = "") -> None:
    """Note in an adapter folder which weights it was trained on.

    Args:
        folder: the adapter's.
        base: the checkpoint that was loaded.
        quantize: how its weights were packed for training: "nf4", or nothing.
    """
    write_json(folder / BASE_RECORD, {"weights": values_digest(base.tensors), "quantize": quantize})


def keep_order_of_weights(model: nn.Module) -> None:
    """Let bitsandbytes leave the 4-bit weights of a base as they were stored.

    On processors with instructions for bfloat16 it puts them into another order at the first answer, and PEFT, which
    reads them for DoRA and for merging, would take that order for the stored one.
    """
    switch = "support_avx512bf16_for_cpu"
    for module in model.modules():
        if hasattr(module, switch):
            setattr(module, switch, False)


def put_on(model: nn.Module, adapter: Adapter) -> "PeftModel":
    """A model with the adapter's layers in place, unmerged and not trainable.

    Args:
        model: the loaded base.
        adapter: see `open_adapter`.

    Raises:
        ValueError: if peft is not installed or does not know the method, or if the adapter does not fit the model.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("peft is missing, which adapters need: pip install 'unimedvl[train]'.")
    from peft import PeftModel

    _require_layers(model, adapter)
    keep_order_of_weights(model)
    try:
        with warnings.catch_warnings():
            # Half of an adapter is no adapter: what PEFT only warns of ends here.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(adapter.directory))
    # PEFT raises bare errors of these kinds for a method, layer or shape that does not fit.
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"the adapter {adapter.name!r} does not fit its base ({reason}): it was trained on another model."
        ) from error


def _require_layers(model: nn.Module, adapter: Adapter) -> None:
    """Raises ValueError where a tensor of the adapter belongs to a layer that the model does not have."""
    modules = dict(model.named_modules())
    for name in adapter.tensors:
        if not name.startswith(_PREFIX):
            continue  # shared by all layers, or of prompts
        parts = name.removeprefix(_PREFIX).split(".")
        places = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        layer = next((modules[place] for place in places if place in modules), None)
        if layer is None or any(True for _ in layer.children()):
            raise ValueError(
                f"the adapter {adapter.name!r} does not fit its base, which has no layer for its "
                f"{name.removeprefix(_PREFIX)}: it was trained on another model."
            )
