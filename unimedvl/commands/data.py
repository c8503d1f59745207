"""Build, check, describe and publish UniMed-5M records.

unimedvl data sources
unimedvl data build --source unimed-mini DATA_FOLDER RECORDS
unimedvl data stats RECORDS
unimedvl data augment RECORDS MORE --writer MODEL
unimedvl data check RECORDS CHECKED
unimedvl data audit | agreement
unimedvl data publish CHECKED REPOSITORY
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .data_quality import add_quality_commands, run_agreement, run_audit, run_augment, run_check, run_publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-commands of `unimedvl data`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = commands.add_parser("build", help="make records from a source's folder")
    build.add_argument("root", metavar="PATH", help="folder of the source, as its publisher packed it")
    build.add_argument("output", metavar="OUT", help="new folder for the records")
    build.add_argument("--source", required=True, metavar="NAME", help="unimed-mini or the name of a builder")
    build.add_argument("--tiers", metavar="A,B", help="licence tiers to use (unimed-mini only; default: all)")
    build.add_argument("--shards", type=int, default=8, metavar="N", help="parts to cut the work into (default: 8)")
    add_executor_arguments(build)

    stats = commands.add_parser("stats", help="print the balance, draw plots and a page of random records")
    stats.add_argument("output", metavar="OUT", help="folder that `build` wrote")
    stats.add_argument("--to", metavar="DIR", help="where plots and page go (default: OUT/stats)")
    stats.add_argument("--samples", type=int, default=10, metavar="N", help="random records per task (default: 10)")
    stats.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the random records (default: 0)")

    add_quality_commands(commands, add_executor_arguments)

    sources = commands.add_parser("sources", help="list the sources, their licences and layouts")
    sources.add_argument("--markdown", action="store_true", help="print the table of named sources in the manual")

    for command in (build, stats, sources):
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that spread work; none of them changes a byte of the result."""
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument("--ray", type=int, metavar="N", help="run on N workers of a Ray cluster instead")


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen sub-command."""
    actions: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], str]]] = {
        "build": _build,
        "stats": _stats,
        "augment": lambda given: run_augment(given, _executor(given)),
        "check": lambda given: run_check(given, _executor(given)),
        "sources": _sources,
        "audit": run_audit,
        "agreement": run_agreement,
        "publish": lambda given: run_publish(given, _executor(given)),
    }
    if missing := [name for name in ("datasets", "pyarrow", "matplotlib") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} is missing: pip install 'unimedvl[data]'.")
    record, text = actions[arguments.action](arguments)
    print(json.dumps(record, ensure_ascii=False) if arguments.json else text)


def _executor(arguments: argparse.Namespace) -> Any:
    import datasets

    from ..unimed5m.pipeline import LocalExecutor, RayExecutor

    datasets.disable_progress_bars()
    return RayExecutor(arguments.ray) if arguments.ray is not None else LocalExecutor(arguments.processes)


def _build(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..unimed5m.build import build, find_source

    tiers = None if arguments.tiers is None else tuple(tier.strip().upper() for tier in arguments.tiers.split(","))
    if tiers is not None and (unknown := sorted(set(tiers) - set("ABC"))):
        raise ValueError(f"--tiers: expected some of A, B, C, found {unknown[0]!r}")
    source = find_source(arguments.source, tiers)
    if Path(arguments.output).resolve().is_relative_to(Path(arguments.root).resolve()):
        raise ValueError(f"{arguments.output} lies in {arguments.root}, which is read: choose a folder outside it")
    summary = build(source, arguments.root, arguments.output, arguments.shards, _executor(arguments))
    lines = [f"{summary['source']}: {summary['kept']} records in {arguments.output}, {summary['rejected']} rejected"]
    lines += [f"  {number:8d}  {name}" for name, number in summary["tasks"].items()]
    if summary["rejected"]:
        lines.append(f"reasons of the rejected: {arguments.output}/rejected/*.jsonl")
    return summary, "\n".join(lines)


def _stats(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..unimed5m.stats import describe

    return describe(arguments.output, arguments.to, samples=arguments.samples, seed=arguments.seed)


def _sources(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..unimed5m.builders import markdown_table, table_of_sources

    rows = table_of_sources()
    if arguments.markdown:
        return {"sources": rows}, markdown_table().rstrip("\n")
    return {"sources": rows}, "\n\n".join("\n".join(f"{key}: {value}" for key, value in row.items()) for row in rows)
