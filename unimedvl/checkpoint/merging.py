"""An adapter merged into its base: a checkpoint folder that works without PEFT and without the base."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..utils.json_files import write_json
from ..version import __version__
from .adapter_folder import Adapter, open_adapter, open_base
from .cards import merged_card
from .folder import Checkpoint, is_adapter, locate
from .loading import Loaded, load, read_config
from .writer import copy_notices, new_folder, require_new

if TYPE_CHECKING:
    from peft import PeftModel

MERGE_RECORD = "merge.json"


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        output: the new folder.
        num_bytes: size of the weights.
        record: the content of `MERGE_RECORD`: names and revisions of adapter and base, method and version.
    """

    output: Path
    num_bytes: int
    record: dict[str, Any]


def merge_adapter(
    adapter: str | os.PathLike,
    output: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    revision: str | None = None,
    dtype: str = "auto",
) -> MergeReport:
    """Write the base with the adapter's change added to its weights, with processor, code, presets and card.

    An adapter that was trained on a base in 4 bits is added to the full weights, whose outputs differ by what the 4
    bits had rounded.

    Args:
        adapter: an adapter folder or a Hub id.
        output: the folder to write; it must not exist, or be empty. It appears when it is whole, or not at all.
        base: folder or Hub id of the base; the one that the adapter names by default.
        revision: branch, tag or commit of the adapter's Hub id.
        dtype: type of the merged weights: "auto" (as the base is stored), "float32", "bfloat16" or "float16".

    Raises:
        ValueError: if `output` is not empty, `adapter` holds no adapter, its base cannot be used or is stored in 4 or
            8 bits, PEFT cannot merge the method, or the disk refuses.
    """
    target = Path(output)
    require_new(target)
    place = locate(adapter, revision)
    if not is_adapter(place.directory):
        raise ValueError(f"{str(place.directory)!r} holds no adapter_config.json: give the folder of a saved adapter.")
    opened = open_adapter(place)
    chosen = None if base is None else os.fspath(base)
    checkpoint = open_base(opened, chosen)
    if checkpoint.layout == "transformers" and hasattr(read_config(checkpoint.directory), "quantization_config"):
        raise ValueError(
            f"the base {checkpoint.name!r} is stored in 4 or 8 bits, to which nothing can be added exactly: name the "
            "full one, --base FOLDER or HUB_ID."
        )
    loaded = load(place.directory, base=chosen, dtype=dtype, device="cpu")
    adapted = cast("PeftModel", loaded.model)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    # What PEFT raises for methods that it cannot merge, and for weights that would be no numbers.
    except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"the adapter {opened.name!r} ({opened.method}) cannot be merged ({reason}): use it on its base."
        ) from error
    return _write(target, loaded._replace(model=merged), opened, checkpoint)


def _write(target: Path, merged: Loaded, adapter: Adapter, base: Checkpoint) -> MergeReport:
    """The folder, whole or not at all."""
    record = {
        "adapter": adapter.name,
        "adapter_revision": adapter.revision,
        "base": base.name,
        "base_revision": base.revision,
        "method": adapter.method,
        # The adapter has seen rounded weights and is added to the full ones.
        "trained_on_quantized": adapter.record.get("quantize") or None,
        "software": f"unimedvl {__version__}",
    }
    num_bytes = sum(tensor.nbytes for tensor in merged.model.state_dict().values())
    with new_folder(target, num_bytes) as partial:
        merged.model.save_pretrained(partial)
        merged.processor.save_pretrained(partial)
        write_json(partial / MERGE_RECORD, record)
        (partial / "README.md").write_text(merged_card(target.resolve().name, adapter, base), encoding="utf-8")
        copy_notices(base.directory, partial)
    return MergeReport(target, num_bytes, record)
