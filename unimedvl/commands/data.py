"""Build, check, describe and publish UniMed-5M records.

unimedvl data sources
unimedvl data build --source unimed-mini DATA_FOLDER RECORDS
unimedvl data stats RECORDS
unimedvl data augment RECORDS [RECORDS ...] OUT --writer MODEL
unimedvl data check RECORDS [RECORDS ...] OUT [--text-encoder M --image-text-encoder M [--captioner M]]
unimedvl data audit RECORDS OUT
unimedvl data agreement OUT/scores-expert-*.csv
unimedvl data publish RECORDS [RECORDS ...] OUT [--push REPO]
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ..utils.command_line import Result, add_command, comma_separated, new_app, require

Records = Annotated[list[str], Argument(metavar="RECORDS", help="Folder that `build` or `check` wrote, or several.")]
# Options that spread work; none of them changes a byte of the result.
Processes = Annotated[int, Option(metavar="N", help="Processes on this machine.")]
Ray = Annotated[int | None, Option(metavar="N", help="Run on N workers of a Ray cluster instead.")]


def build(
    root: Annotated[str, Argument(metavar="PATH", help="Folder of the source, as its publisher packed it.")],
    output: Annotated[str, Argument(metavar="OUT", help="New folder for the records.")],
    source: Annotated[str, Option(metavar="NAME", help="unimed-mini or the name of a builder.")],
    tiers: Annotated[
        str | None, Option(metavar="A,B", help="License tiers to use (unimed-mini only; default: all).")
    ] = None,
    shards: Annotated[int, Option(metavar="N", help="Parts to cut the work into.")] = 8,
    processes: Processes = 1,
    ray: Ray = None,
) -> Result:
    """Make records from a source's folder."""
    _require()
    from ..unimed5m.build import build as build_records
    from ..unimed5m.build import find_source

    chosen = None if tiers is None else tuple(tier.strip().upper() for tier in tiers.split(","))
    if chosen is not None and (unknown := sorted(set(chosen) - set("ABC"))):
        raise ValueError(f"--tiers: expected some of A, B, C, found {unknown[0]!r}")
    found = find_source(source, chosen)
    if Path(output).resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"{output} lies in {root}, which is read: choose a folder outside it")
    summary = build_records(found, root, output, shards, _executor(processes, ray))
    lines = [f"{summary['source']}: {summary['kept']} records in {output}, {summary['rejected']} rejected"]
    lines += [f"  {number:8d}  {name}" for name, number in summary["tasks"].items()]
    if summary["rejected"]:
        lines.append(f"reasons of the rejected: {output}/rejected/*.jsonl")
    return summary, "\n".join(lines)


def stats(
    output: Annotated[str, Argument(metavar="OUT", help="Folder that `build` wrote.")],
    to: Annotated[str | None, Option(metavar="DIR", help="Where plots and page go (default: OUT/stats).")] = None,
    samples: Annotated[int, Option(metavar="N", help="Random records per task.")] = 10,
    seed: Annotated[int, Option(metavar="S", help="Seed of the random records.")] = 0,
) -> Result:
    """Print the balance, draw plots and a page of random records."""
    _require()
    from ..unimed5m.stats import describe

    return describe(output, to, samples=samples, seed=seed)


def augment(
    records: Records,
    output: Annotated[str, Argument(metavar="OUT", help="Folder for the records and what the model adds.")],
    writer: Annotated[str, Option(metavar="MODEL", help="Vision-language model, folder or Hub name.")],
    steps: Annotated[
        str,
        Option(
            metavar="STEPS",
            help="plan (caption augmented generation), rewrite (templated sentences in other words), or plan,rewrite.",
        ),
    ] = "plan",
    max_new_tokens: Annotated[int, Option(metavar="N", help="Longest answer.")] = 512,
    trust_remote_code: Annotated[bool, Option("--trust-remote-code", help="Run the model's own code.")] = False,
    processes: Processes = 1,
    ray: Ray = None,
) -> Result:
    """Let a model write plans for captioned images, or other words."""
    _require()
    from ..unimed5m.augment import augment as augment_records
    from ..unimed5m.planning import TransformersWriter
    from ..unimed5m.quality.models import ends_digest

    author = TransformersWriter(writer, max_new_tokens, trust_remote_code=trust_remote_code)
    settings = {"weights": ends_digest(writer), "max_new_tokens": max_new_tokens}
    counts = augment_records(
        records, output, author, writer, comma_separated(steps), settings, _executor(processes, ray)
    )
    text = (
        f"{counts['read']} records in {output}: {counts['planned']} planned, {counts['rewritten']} "
        f"rewritten, {counts['failed']} answers did not fit"
    )
    if counts["failed"]:
        text += f"\nreasons: {output}/rejected/*.jsonl"
    return dict(counts), text


def check(
    records: Records,
    output: Annotated[str, Argument(metavar="OUT", help="Folder for the kept records and the reasons.")],
    enforce: Annotated[
        Literal["captions", "all", "none"] | None,
        Option(
            help="Whose size and length faults drop a record; with none, poor alignment is only reported, too "
            "(default: captions; none for unimed-mini)."
        ),
    ] = None,
    keep_duplicates: Annotated[bool, Option("--keep-duplicates", help="Leave near duplicates and leaks in.")] = False,
    benchmark: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=RECORDS",
            help="Test set that no training record may share a group, image or text with: the test records of the "
            "folder, else its validation records, else all (repeatable).",
        ),
    ] = None,
    text_encoder: Annotated[
        str | None, Option(metavar="MODEL", help="Sentence encoder, for scores of alignment.")
    ] = None,
    image_text_encoder: Annotated[
        str | None, Option(metavar="MODEL", help="Dual encoder, or a folder of train_scorer.")
    ] = None,
    captioner: Annotated[str, Option(metavar="MODEL", help="Captioning model.")] = "nearest",
    captions: Annotated[int, Option(metavar="K", help="Captions per image.")] = 5,
    keep: Annotated[float, Option(metavar="SHARE", help="Share kept by alignment.")] = 0.5,
    scope: Annotated[Literal["global", "modality", "source"], Option(help="What is ranked.")] = "modality",
    normalization: Annotated[Literal["affine", "minmax"], Option(help="Of both scores.")] = "affine",
    device: Annotated[str, Option(metavar="D", help="Of the models.")] = "cpu",
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Option(help="Of the captioner.")] = "float32",
    text_prefix: Annotated[
        str | None,
        Option(metavar="TEXT", help='Before every text that is embedded (default: "query: " for E5, else none).'),
    ] = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Run the captioner's own code (UniMedVL).")
    ] = False,
    processes: Processes = 1,
    ray: Ray = None,
) -> Result:
    """Drop what fails the quality control, with reasons."""
    _require()
    from ..unimed5m.quality.alignment import Selection
    from ..unimed5m.quality.coarse import CoarseFilter
    from ..unimed5m.quality.control import QualitySettings, quality_control
    from ..unimed5m.quality.models import ModelPaths, alignment_with

    if (text_encoder is None) != (image_text_encoder is None):
        raise ValueError("alignment needs both --text-encoder and --image-text-encoder; give both or neither")
    alignment = None
    if text_encoder is not None and image_text_encoder is not None:
        models = ModelPaths(
            text_encoder,
            image_text_encoder,
            captioner,
            device,
            trust_remote_code,
            dtype=dtype,
            text_prefix=text_prefix,
        )
        alignment = alignment_with(models, captions)
    enforced = enforce or _default_enforcement([Path(folder) for folder in records])
    benchmarks = dict(_named_folder(text) for text in benchmark or [])
    if len(benchmarks) != len(benchmark or []):
        raise ValueError("two benchmarks have the same name; give each NAME=RECORDS a name of its own")
    settings = QualitySettings(
        CoarseFilter(enforced),
        not keep_duplicates,
        benchmarks,
        alignment,
        Selection(keep, scope, normalization, report=enforced == "none"),
    )
    summary = quality_control(records, output, settings, _executor(processes, ray))
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


def audit(
    records: Annotated[str, Argument(metavar="RECORDS", help="Folder of records.")],
    output: Annotated[str, Argument(metavar="OUT", help="Folder for the page and one score sheet per expert.")],
    size: Annotated[int, Option(metavar="N", help="Records to score.")] = 200,
    experts: Annotated[int, Option(metavar="N", help="Score sheets.")] = 5,
    seed: Annotated[int, Option(metavar="S", help="Seed of the sample.")] = 0,
) -> Result:
    """Write the sheets of an expert audit."""
    _require()
    from ..unimed5m.quality.audit import write_sheet

    ids = write_sheet(records, output, size, experts, seed)
    text = f"{len(ids)} records in {output}: audit.html and {experts} score sheets"
    return {"records": ids, "output": output}, text


def agreement(
    sheets: Annotated[list[str], Argument(metavar="CSV", help="Filled sheets, one per expert.")],
    out: Annotated[str, Option(metavar="FILE", help="JSON result.")] = "audit.json",
) -> Result:
    """Print means, agreement and correlations of filled audit sheets."""
    _require()
    from ..unimed5m.quality.audit import report

    result = report(sheets, out)
    lines = [f"mean quality {_shown(result['mean_quality'])}, alpha {_shown(result['alpha_quality'])}"]
    for name, entry in result["dimensions"].items():
        lines.append(f"  {name}: mean {_shown(entry['mean'])}, alpha {_shown(entry['alpha'])}")
    return result, "\n".join(lines)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def publish(
    records: Records,
    output: Annotated[str, Argument(metavar="OUT", help="Folder for the repository.")],
    name: Annotated[str, Option(metavar="NAME", help="Title of the card.")] = "UniMed-5M",
    embed: Annotated[
        str,
        Option(
            metavar="WORDS",
            help="First words of `redistributable` whose images are embedded, separated by commas.",
        ),
    ] = "yes",
    public_names: Annotated[
        list[str] | None,
        Option(
            metavar="DATASET",
            help="Publish this data set's own file and group names and columns; without it a data set that is not one "
            "of the named sources gets digests in their place (repeatable).",
        ),
    ] = None,
    push: Annotated[str | None, Option(metavar="REPO", help="Upload to this data set repository of the Hub.")] = None,
    public: Annotated[bool, Option("--public", help="Make a new repository public.")] = False,
    processes: Processes = 1,
    ray: Ray = None,
) -> Result:
    """Write a data set repository."""
    _require()
    from ..unimed5m.publish import publish as publish_records
    from ..unimed5m.publish import push_to_hub

    words = tuple(word.lower() for word in comma_separated(embed))
    statistics = publish_records(records, output, name, words, _executor(processes, ray), public_names or [])
    text = (
        f"{statistics['records']} records in {output}: {statistics['with_images']} with images, "
        f"{statistics['metadata_only']} as metadata"
    )
    if push is not None:
        statistics["address"] = push_to_hub(output, push, private=not public)
        text += f"\npushed to {statistics['address']}"
    return statistics, text


def sources(
    markdown: Annotated[bool, Option("--markdown", help="Print the table of named sources in the manual.")] = False,
) -> Result:
    """List the sources, their licenses and layouts."""
    _require()
    from ..unimed5m.builders import markdown_table, table_of_sources

    rows = table_of_sources()
    if markdown:
        return {"sources": rows}, markdown_table().rstrip("\n")
    return {"sources": rows}, "\n\n".join("\n".join(f"{key}: {value}" for key, value in row.items()) for row in rows)


def _require() -> None:
    require("data", "datasets", "pyarrow", "matplotlib")


def _executor(processes: int, ray: int | None) -> Any:
    import datasets

    from ..unimed5m.pipeline import LocalExecutor, RayExecutor

    datasets.disable_progress_bars()
    return RayExecutor(ray) if ray is not None else LocalExecutor(processes)


app = new_app(__doc__)
for function in (build, stats, augment, check, audit, agreement, publish, sources):
    add_command(app, function)
