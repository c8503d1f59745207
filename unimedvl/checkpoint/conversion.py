"""Conversion between the upstream layout and ours, with the processor: the result is complete for `AutoProcessor`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..modeling_unimedvl.upstream_layout_unimedvl import tokenizer_ids
from .layout_conversion import ConversionReport, export_checkpoint
from .layout_conversion import convert_checkpoint as convert_weights
from .loading import load_processor

if TYPE_CHECKING:
    import torch

__all__ = ["ConversionReport", "convert_checkpoint", "export_checkpoint"]


def convert_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: "str | torch.dtype | None" = None,
    max_shard_size: int | str = "5GB",
    weights: str | None = None,
    processor: bool | None = None,
    **options,
) -> ConversionReport:
    """Convert an upstream folder into a transformers checkpoint with model, code, presets and processor.

    Args:
        source, output, dtype, max_shard_size, weights, options: see
            `unimedvl.checkpoint.layout_conversion.convert_checkpoint`.
        processor: also write the processor; by default where the source has the tokenizer files it needs.

    Raises:
        ValueError: as there, and if the tokenizer cannot be read; nothing is left behind then.
    """

    def add_processor(folder: Path) -> None:
        try:
            load_processor(folder).save_pretrained(folder)
        except ValueError as error:
            raise ValueError(str(error).replace(str(folder), str(source))) from error

    if processor is None:
        processor = tokenizer_ids(Path(source)) is not None

    return convert_weights(
        source,
        output,
        dtype=dtype,
        max_shard_size=max_shard_size,
        weights=weights,
        finish=add_processor if processor else None,
        **options,
    )
