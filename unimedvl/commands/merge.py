"""Merge an adapter into its base: a checkpoint folder that works alone.

  unimedvl merge runs/lora/final merged
  unimedvl ask --model merged "What imaging modality is this?"

An interrupted run leaves no half-written folder.
"""

from typing import Annotated

from typer import Argument, Option

from ..utils.command_line import Result
from .shared import Base, Dtype, silence_loading


def merge(
    adapter: Annotated[str, Argument(metavar="ADAPTER", help="Folder or Hub id of a PEFT adapter.")],
    output: Annotated[str, Argument(metavar="OUT", help="Folder to write; must not exist, or be empty.")],
    base: Base = None,
    revision: Annotated[
        str | None, Option(metavar="R", help="Commit, tag or branch of the adapter's Hub id (pin a commit).")
    ] = None,
    dtype: Dtype = "auto",
) -> Result:
    from ..checkpoint.merging import merge_adapter

    silence_loading()
    report = merge_adapter(adapter, output, base=base, revision=revision, dtype=dtype)
    record = {"output": str(report.output), "bytes": report.num_bytes, **report.record}
    text = f"{report.output}: {record['adapter']} merged into {record['base']}, {report.num_bytes:,} bytes"
    if packed := record["trained_on_quantized"]:
        text += f"; trained on a base in {packed}, so answers differ by what that had rounded"
    return record, text
