"""A checkpoint as a folder that diffusers' `DiffusionPipeline.from_pretrained` opens without this package."""

import os
from dataclasses import dataclass
from pathlib import Path

from unimedvl.checkpoint.cards import pipeline_card
from unimedvl.checkpoint.folder import is_adapter, locate
from unimedvl.checkpoint.loading import load
from unimedvl.checkpoint.writer import copy_notices, new_folder, require_new


@dataclass(frozen=True)
class PipelineExport:
    """What an export wrote.

    Attributes:
        output: the new folder.
        num_bytes: size of the weights.
        model, revision: the checkpoint's name, and its commit or the fingerprint of its weights.
    """

    output: Path
    num_bytes: int
    model: str
    revision: str


def export_pipeline(
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: str = "auto",
) -> PipelineExport:
    """Write a checkpoint as a `UniMedVLPipeline`: `model/`, `processor/`, the pipeline's code and a card.

    Args:
        model: a folder (ours or the upstream layout) or a Hub id.
        output: the folder to write; it must not exist, or be empty. It appears when it is whole, or not at all.
        revision: branch, tag or commit of a Hub id.
        dtype: type of the weights: "auto" (as stored), "float32", "bfloat16" or "float16".

    Raises:
        ValueError: if `output` is not empty, the checkpoint cannot be used or makes no images, or is an adapter.
    """
    from .pipeline.pipeline_unimedvl import UniMedVLPipeline

    target = Path(output)
    require_new(target)
    place = locate(model, revision)
    if is_adapter(place.directory):
        raise ValueError(
            f"{place.name!r} is an adapter: merge it into its base first, unimedvl merge {place.name} CHECKPOINT."
        )
    network, processor, checkpoint = load(model, revision=revision, dtype=dtype, device="cpu")
    network.model.require_generation()
    num_bytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    with new_folder(target, num_bytes) as partial:
        UniMedVLPipeline(network, processor).save_pretrained(partial)
        (partial / "README.md").write_text(pipeline_card(target.resolve().name, checkpoint), encoding="utf-8")
        copy_notices(checkpoint.directory, partial)
    return PipelineExport(target, num_bytes, checkpoint.name, checkpoint.revision)
