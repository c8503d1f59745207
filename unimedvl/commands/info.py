"""Print what a checkpoint is, the sizes of its parts, its memory and the settings of its presets.

Only settings and the headers of weight files are read, also from the Hub.

unimedvl info
unimedvl info --model owner/name --json
"""

from typing import TYPE_CHECKING, Any

from ..utils.command_line import Result
from .shared import Base, Model, Revision

if TYPE_CHECKING:
    from ..checkpoint.adapter_folder import Adapter
    from ..checkpoint.folder import Checkpoint

# What `unimedvl info` calls the settings of a preset; others keep the name of the argument of `generate`.
SETTINGS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "image_guidance_scale": "image guidance",
    "cfg_interval": "interval",
    "cfg_renorm_type": "renorm",
    "cfg_renorm_min": "renorm min",
    "timestep_shift": "shift",
}


def info(model: Model = None, revision: Revision = None, base: Base = None) -> Result:
    from ..checkpoint.adapter_folder import joined, open_base, peek_adapter
    from ..checkpoint.folder import default_model, peek_checkpoint

    model = model or default_model()
    adapter = peek_adapter(model, revision)
    if adapter is None:
        if base is not None:
            raise ValueError(f"{model!r} holds no adapter, and only an adapter has a base: leave --base out.")
        record = describe(peek_checkpoint(model, revision))
    else:
        checkpoint = open_base(adapter, base, peek=True)
        record = describe(joined(adapter, checkpoint)) | {"adapter": describe_adapter(adapter)}
    return record, as_text(record)


def describe_adapter(adapter: "Adapter") -> dict[str, Any]:
    """What `unimedvl info` says of an adapter besides its base: method, rank, numbers of values, bytes on disk."""
    from ..checkpoint.folder import count_parts
    from ..checkpoint.memory import stored_bytes

    parts = count_parts(adapter.tensors)
    return {
        "method": adapter.method,
        "rank": adapter.settings.get("r"),
        "base": adapter.settings.get("base_model_name_or_path"),
        "tensors": len(adapter.tensors),
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "bytes_on_disk": stored_bytes(adapter.tensors),
    }


def describe(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Everything that `unimedvl info` says: numbers of values, bytes on disk, bytes in memory, presets."""
    from ..checkpoint.folder import count_parts, understanding_tensors
    from ..checkpoint.memory import estimate_memory, stored_bytes
    from ..modeling_unimedvl.flow_unimedvl import TASK_PRESETS
    from ..utils.json_files import read_json

    tensors = checkpoint.tensors
    parts = count_parts(tensors)
    generation_file = checkpoint.directory / "generation_config.json"
    stated = read_json(generation_file).get("task_presets") if generation_file.is_file() else None
    return {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "layout": checkpoint.layout,
        "generates_images": "generation expert" in parts,
        "files": sorted({stored.file.name for stored in tensors.values()}),
        "tensors": len(tensors),
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "stored_types": sorted({stored.dtype for stored in tensors.values()}),
        "bytes_on_disk": stored_bytes(tensors),
        "memory_bytes": estimate_memory(tensors),
        "memory_bytes_understanding_only": estimate_memory(understanding_tensors(tensors)),
        # What a preset leaves open is the reference's, as in `generate`.
        "presets": {
            name: {**TASK_PRESETS.get(name, TASK_PRESETS["edit"]), **settings}
            for name, settings in (stated or TASK_PRESETS).items()
        },
    }


def as_text(record: dict[str, Any]) -> str:
    """The record as a short report for people."""
    from ..checkpoint.memory import size

    lines = [
        f"{record['model']} ({record['revision']}), {record['layout']} layout",
        f"parameters: {record['parameters']:,} in {record['tensors']} tensors",
        f"size on disk: {size(record['bytes_on_disk'])} ({', '.join(record['stored_types'])})",
    ]
    lines += [f"  {part:<28}{count:>16,}" for part, count in record["parameters_by_part"].items()]
    if (adapter := record.get("adapter")) is not None:
        rank = "" if adapter["rank"] is None else f" of rank {adapter['rank']}"
        lines.append(
            f"adapter: {adapter['method']}{rank}, {adapter['parameters']:,} parameters in {adapter['tensors']} "
            f"tensors, {size(adapter['bytes_on_disk'])}"
        )
    lines.append("memory of the weights (activations come on top):")
    lines.append(f"  {'':<28}{'whole':>16}{'understanding':>16}")
    for name, whole in record["memory_bytes"].items():
        lines.append(f"  {name:<28}{size(whole):>16}{size(record['memory_bytes_understanding_only'][name]):>16}")
    lines.append("presets of generated images:")
    lines += [f"  {name:<18}{settings_line(settings)}" for name, settings in record["presets"].items()]
    return "\n".join(lines)


def settings_line(settings: dict[str, Any]) -> str:
    """A preset's settings in one line, such as "steps 49, guidance 4, interval (0, 1], shift 3"."""
    return ", ".join(f"{SETTINGS.get(name, name)} {_short(value)}" for name, value in settings.items())


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        low, high = value
        return f"({_short(low)}, {_short(high)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
