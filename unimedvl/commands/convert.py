"""Convert a BAGEL or UniMedVL checkpoint to transformers, or back.

  unimedvl convert BAGEL-7B-MoT unimedvl-checkpoint --dtype bfloat16
  unimedvl convert unimedvl-checkpoint upstream --to-upstream

Tensors stream through shard by shard; an interrupted run leaves no half-written folder.
"""

from typing import Annotated, Any

from typer import Argument, Option

from ..utils.command_line import Result


def convert(
    source: Annotated[str, Argument(metavar="UPSTREAM_DIR", help="Folder to read.")],
    output: Annotated[str, Argument(metavar="OUT_DIR", help="Folder to write; must not exist, or be empty.")],
    dtype: Annotated[
        str | None, Option(metavar="TYPE", help="float32, bfloat16 or float16 (default: as stored).")
    ] = None,
    max_shard_size: Annotated[str | None, Option(metavar="SIZE", help="Largest weight file (default: 5GB).")] = None,
    weights: Annotated[
        str | None, Option(metavar="NAME", help="Main weights: ema_bf16, ema, model_bf16 or model.")
    ] = None,
    no_processor: Annotated[bool, Option("--no-processor", help="Leave the processor out.")] = False,
    to_upstream: Annotated[bool, Option("--to-upstream", help="Export: from our layout to the upstream one.")] = False,
) -> Result:
    from ..checkpoint.conversion import convert_checkpoint, export_checkpoint

    chosen = {"dtype": dtype, "max_shard_size": max_shard_size, "weights": weights}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if to_upstream:
        if max_shard_size is not None or no_processor:
            raise ValueError("the upstream layout has one weight file: leave --max-shard-size and --no-processor out.")
        report = export_checkpoint(source, output, **options)
    else:
        report = convert_checkpoint(source, output, processor=False if no_processor else None, **options)
    record = {
        "output": str(report.output),
        "tensors": report.num_tensors,
        "bytes": report.num_bytes,
        "weight_files": list(report.weight_files),
        "unused": list(report.unused),
        "tokenizer_files": list(report.tokenizer_files),
    }
    text = f"{report.output}: {report.num_tensors} tensors, {report.num_bytes:,} bytes"
    if not report.tokenizer_files:
        text += "; no processor, as the source has no tokenizer files: AutoProcessor needs them in that folder"
    if report.unused:
        text += f"; left out, as nothing uses them: {', '.join(report.unused)}"
    return record, text
