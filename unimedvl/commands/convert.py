"""Convert a checkpoint of the BAGEL / UniMedVL releases into a transformers checkpoint, or back.

  unimedvl convert BAGEL-7B-MoT unimedvl-checkpoint --dtype bfloat16
  unimedvl convert unimedvl-checkpoint released --to-upstream

Tensors stream through shard by shard; an interrupted run leaves no half-written folder.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="UPSTREAM_DIR", help="folder to read")
    parser.add_argument("output", metavar="OUT_DIR", help="folder to write; must not exist, or be empty")
    parser.add_argument("--dtype", metavar="TYPE", help="float32, bfloat16 or float16 (default: as stored)")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest weight file (default: 5GB)")
    parser.add_argument("--weights", metavar="NAME", help="main weights: ema_bf16, ema, model_bf16 or model")
    parser.add_argument(
        "--no-processor",
        action="store_true",
        help="leave the processor out",
    )
    parser.add_argument("--to-upstream", action="store_true", help="the way back: from our layout to the released one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint.conversion import convert_checkpoint, export_checkpoint

    names = ("dtype", "max_shard_size", "weights")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.to_upstream:
        if "max_shard_size" in options or arguments.no_processor:
            raise ValueError("the released layout has one weight file: leave --max-shard-size and --no-processor out.")
        report = export_checkpoint(arguments.source, arguments.output, **options)
    else:
        report = convert_checkpoint(
            arguments.source, arguments.output, processor=False if arguments.no_processor else None, **options
        )
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
    print(json.dumps(record) if arguments.json else text)
