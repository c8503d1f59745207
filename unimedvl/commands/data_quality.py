"""The part of `unimedvl data` that adds to, checks, audits and publishes records.

unimedvl data augment RECORDS [RECORDS ...] OUT --writer MODEL
unimedvl data check RECORDS [RECORDS ...] OUT [--text-encoder M --image-text-encoder M [--captioner M]]
unimedvl data audit RECORDS OUT
unimedvl data agreement OUT/scores-expert-*.csv
unimedvl data publish RECORDS [RECORDS ...] OUT [--push REPO]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = tuple[dict[str, Any], str]


def add_quality_commands(commands: Any, add_executor_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add `augment`, `check`, `audit`, `agreement` and `publish` to the sub-commands of `unimedvl data`."""
    augment = commands.add_parser("augment", help="let a model write plans for captioned images, or other words")
    augment.add_argument("records", metavar="RECORDS", nargs="+", help="folder that `build` wrote, or several")
    augment.add_argument("output", metavar="OUT", help="folder for the records and what the model adds")
    augment.add_argument("--writer", required=True, metavar="MODEL", help="vision-language model, folder or Hub name")
    augment.add_argument(
        "--steps",
        default="plan",
        metavar="STEPS",
        help="plan (caption augmented generation), rewrite (templated sentences in other words), or plan,rewrite "
        "(default: plan)",
    )
    augment.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    augment.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    add_executor_arguments(augment)

    check = commands.add_parser("check", help="drop what fails the quality control, with reasons")
    check.add_argument("records", metavar="RECORDS", nargs="+", help="folder that `build` wrote, or several")
    check.add_argument("output", metavar="OUT", help="folder for the kept records and the reasons")
    check.add_argument(
        "--enforce",
        choices=("captions", "all", "none"),
        help="whose size and length faults drop a record; with none, poor alignment is only reported, too (default: "
        "captions; none for unimed-mini)",
    )
    check.add_argument("--keep-duplicates", action="store_true", help="leave near duplicates and leaks in")
    check.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME=RECORDS",
        help="test set that no training record may share a group, image or text with: the test records of the folder, "
        "else its validation records, else all (repeatable)",
    )
    check.add_argument("--text-encoder", metavar="MODEL", help="sentence encoder, for scores of alignment")
    check.add_argument("--image-text-encoder", metavar="MODEL", help="dual encoder, or a folder of train_scorer")
    check.add_argument("--captioner", default="nearest", metavar="MODEL", help="captioning model (default: nearest)")
    check.add_argument("--captions", type=int, default=5, metavar="K", help="captions per image (default: 5)")
    check.add_argument(
        "--keep", type=float, default=0.5, metavar="SHARE", help="share kept by alignment (default: 0.5)"
    )
    check.add_argument("--scope", choices=("global", "modality", "source"), default="modality", help="what is ranked")
    check.add_argument("--normalisation", choices=("affine", "minmax"), default="affine", help="of both scores")
    check.add_argument("--device", default="cpu", help="of the models (default: cpu)")
    check.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the captioner (default: float32)",
    )
    check.add_argument(
        "--text-prefix",
        metavar="TEXT",
        help='before every text that is embedded (default: "query: " for E5, else none)',
    )
    check.add_argument("--trust-remote-code", action="store_true", help="run the captioner's own code (UniMedVL)")
    add_executor_arguments(check)

    audit = commands.add_parser("audit", help="write the sheets of an expert audit")
    audit.add_argument("records", metavar="RECORDS", help="folder of records")
    audit.add_argument("output", metavar="OUT", help="folder for the page and one score sheet per expert")
    audit.add_argument("--size", type=int, default=200, metavar="N", help="records to score (default: 200)")
    audit.add_argument("--experts", type=int, default=5, metavar="N", help="score sheets (default: 5)")
    audit.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the sample (default: 0)")

    agreement = commands.add_parser("agreement", help="means, agreement and correlations of filled audit sheets")
    agreement.add_argument("sheets", nargs="+", metavar="CSV", help="filled sheets, one per expert")
    agreement.add_argument("--out", default="audit.json", metavar="FILE", help="JSON result (default: audit.json)")

    publish = commands.add_parser("publish", help="write a data set repository")
    publish.add_argument("records", metavar="RECORDS", nargs="+", help="folder that `check` or `build` wrote")
    publish.add_argument("output", metavar="OUT", help="folder for the repository")
    publish.add_argument("--name", default="UniMed-5M", help="title of the card (default: UniMed-5M)")
    publish.add_argument(
        "--embed",
        default="yes",
        metavar="WORDS",
        help="first words of `redistributable` whose images are embedded, separated by commas (default: yes)",
    )
    publish.add_argument(
        "--public-names",
        action="append",
        default=[],
        metavar="DATASET",
        help="publish this data set's own file and group names and columns; without it a data set that is not one of "
        "the named sources gets digests in their place (repeatable)",
    )
    publish.add_argument("--push", metavar="REPO", help="upload to this data set repository of the Hub")
    publish.add_argument("--public", action="store_true", help="make a new repository public")
    add_executor_arguments(publish)

    for command in (augment, check, audit, agreement, publish):
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")


def run_augment(arguments: argparse.Namespace, executor: Any) -> Result:
    from ..unimed5m.augment import augment
    from ..unimed5m.planning import TransformersWriter
    from ..unimed5m.quality.models import weights_digest

    writer = TransformersWriter(
        arguments.writer, arguments.max_new_tokens, trust_remote_code=arguments.trust_remote_code
    )
    steps = [step.strip() for step in arguments.steps.split(",") if step.strip()]
    settings = {"weights": weights_digest(arguments.writer), "max_new_tokens": arguments.max_new_tokens}
    counts = augment(arguments.records, arguments.output, writer, arguments.writer, steps, settings, executor)
    text = (
        f"{counts['read']} records in {arguments.output}: {counts['planned']} planned, {counts['rewritten']} "
        f"rewritten, {counts['failed']} answers did not fit"
    )
    if counts["failed"]:
        text += f"\nreasons: {arguments.output}/rejected/*.jsonl"
    return dict(counts), text


def run_check(arguments: argparse.Namespace, executor: Any) -> Result:
    from ..unimed5m.quality.alignment import Selection
    from ..unimed5m.quality.coarse import CoarseFilter
    from ..unimed5m.quality.control import QualitySettings, quality_control
    from ..unimed5m.quality.models import ModelPaths, alignment_with

    if (arguments.text_encoder is None) != (arguments.image_text_encoder is None):
        raise ValueError("alignment needs both --text-encoder and --image-text-encoder; give both or neither")
    alignment = None
    if arguments.text_encoder is not None:
        models = ModelPaths(
            arguments.text_encoder,
            arguments.image_text_encoder,
            arguments.captioner,
            arguments.device,
            arguments.trust_remote_code,
            dtype=arguments.dtype,
            text_prefix=arguments.text_prefix,
        )
        alignment = alignment_with(models, arguments.captions)
    enforce = arguments.enforce or _default_enforcement([Path(folder) for folder in arguments.records])
    benchmarks = dict(_named_folder(text) for text in arguments.benchmark)
    if len(benchmarks) != len(arguments.benchmark):
        raise ValueError("two benchmarks have the same name; give each NAME=RECORDS a name of its own")
    settings = QualitySettings(
        CoarseFilter(enforce),
        not arguments.keep_duplicates,
        benchmarks,
        alignment,
        Selection(arguments.keep, arguments.scope, arguments.normalisation, report=enforce == "none"),
    )
    summary = quality_control(arguments.records, arguments.output, settings, executor)
    lines = [f"{summary['read']} read = {summary['kept']} kept + {summary['dropped']} dropped"]
    for stage in summary["stages"]:
        lines += [f"  {number:8d}  {stage['stage']}: {reason}" for reason, number in stage["dropped"].items()]
    lines += [f"  {number:8d}  reported only: {reason}" for reason, number in summary["reported_only"].items()]
    return summary, "\n".join(lines)


def _default_enforcement(folders: list[Path]) -> str:
    """`unimed-mini` keeps its small images and short answers: they are reported."""
    from ..unimed5m.shards import build_sources

    sources = build_sources(folders)
    if "unimed-mini" in sources and len(set(sources)) > 1:
        raise ValueError("unimed-mini keeps what others drop: say with --enforce what holds for all these folders")
    return "none" if "unimed-mini" in sources else "captions"


def _named_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise ValueError(f"expected --benchmark NAME=RECORDS, found {text!r}")
    return name, folder


def run_audit(arguments: argparse.Namespace) -> Result:
    from ..unimed5m.quality.audit import write_sheet

    ids = write_sheet(arguments.records, arguments.output, arguments.size, arguments.experts, arguments.seed)
    text = f"{len(ids)} records in {arguments.output}: audit.html and {arguments.experts} score sheets"
    return {"records": ids, "output": str(arguments.output)}, text


def run_agreement(arguments: argparse.Namespace) -> Result:
    from ..unimed5m.quality.audit import report

    result = report(arguments.sheets, arguments.out)
    lines = [f"mean quality {_shown(result['mean_quality'])}, alpha {_shown(result['alpha_quality'])}"]
    for name, entry in result["dimensions"].items():
        lines.append(f"  {name}: mean {_shown(entry['mean'])}, alpha {_shown(entry['alpha'])}")
    return result, "\n".join(lines)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def run_publish(arguments: argparse.Namespace, executor: Any) -> Result:
    from ..unimed5m.publish import publish, push_to_hub

    embed = tuple(word.strip().lower() for word in arguments.embed.split(",") if word.strip())
    statistics = publish(arguments.records, arguments.output, arguments.name, embed, executor, arguments.public_names)
    text = (
        f"{statistics['records']} records in {arguments.output}: {statistics['with_images']} with images, "
        f"{statistics['metadata_only']} as metadata"
    )
    if arguments.push is not None:
        statistics["address"] = push_to_hub(arguments.output, arguments.push, private=not arguments.public)
        text += f"\npushed to {statistics['address']}"
    return statistics, text
