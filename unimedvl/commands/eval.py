"""Score a model on medical benchmarks of understanding and generation.

unimedvl eval --benchmark unimed-mini=RECORDS --out OUT [--limit 20]
unimedvl eval --model owner/name --benchmark vqa-rad=FOLDER --benchmark slake=FOLDER --out OUT
unimedvl eval --model runs/lora/final --benchmark records=RECORDS --out OUT
unimedvl eval compare OUT_A OUT_B
unimedvl eval card OUT CARD_FOLDER
unimedvl eval sheet OUT NEW_FOLDER          a reader study; `unimedvl eval readers NEW_FOLDER` scores the answers
unimedvl eval list

--model takes any transformers image-text-to-text model, a PEFT adapter, any diffusers pipeline, or baseline:NAME.
Repeating a command that was stopped resumes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Context, Option

from ..utils.command_line import Result, add_command, comma_separated, new_app, printing, require
from .shared import Base, Device, Dtype, Model, Revision, say

if TYPE_CHECKING:
    from ..evaluation.benchmarks import BenchmarkData
    from ..evaluation.predictions import Predictor
    from ..evaluation.scoring import Settings

NEEDED = ("evaluate", "datasets", "pyarrow", "skimage", "scipy", "sacrebleu", "rouge_score", "torchmetrics")


def evaluate_model(
    context: Context,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Let code of the model's repository run.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    benchmark: Annotated[list[str] | None, Option(metavar="NAME=PATH", help="Repeat for several benchmarks.")] = None,
    out: Annotated[str | None, Option(metavar="OUT", help="Folder for predictions and results.")] = None,
    limit: Annotated[int | None, Option(metavar="N", help="At most N samples of each task.")] = None,
    tasks: Annotated[str | None, Option(metavar="A,B", help="Only these tasks.")] = None,
    split: Annotated[str | None, Option(metavar="A,B", help="Other splits than the benchmark's own.")] = None,
    seed: Annotated[int, Option(metavar="S", help="Seed of generated images.")] = 0,
    steps: Annotated[
        int | None, Option(metavar="N", help="Sampler steps (default: the checkpoint's presets).")
    ] = None,
    max_new_tokens: Annotated[
        int | None, Option(metavar="N", help="Length limit of every text (default: the task's).")
    ] = None,
    batch_size: Annotated[int, Option(metavar="N", help="Samples asked at once.")] = 8,
    no_baselines: Annotated[bool, Option("--no-baselines", help="Do not compare with what needs no model.")] = False,
    rule: Annotated[
        Literal["normalized", "contains", "medevalkit", "vlmevalkit"] | None,
        Option(help="What counts as a right answer (default: by answer)."),
    ] = None,
    resize: Annotated[
        Literal["prediction", "reference"], Option(help="Which image takes the other size.")
    ] = "prediction",
    feature_extractor: Annotated[
        str, Option(metavar="F", help="Of FID and KID: pixels-N, torchscript:FILE, folder.")
    ] = "pixels-8",
    image_text_encoder: Annotated[
        str | None, Option(metavar="F", help="Folder of a dual encoder, or open_clip:FOLDER.")
    ] = None,
    classifier: Annotated[
        str | None, Option(metavar="FOLDER:LABEL", help="Judge of counterfactuals, an image classifier.")
    ] = None,
    lpips: Annotated[str | None, Option(metavar="FILE", help="TorchScript network of LPIPS.")] = None,
    clinical: Annotated[
        list[str] | None, Option(metavar="SCORE=FOLDER", help="ratescore, radgraph, chexbert or green (repeatable).")
    ] = None,
    no_meteor: Annotated[bool, Option("--no-meteor", help="Leave METEOR out (it needs Java).")] = False,
) -> Result | None:
    """A whole run; None in the processes that leave the report to the main one, and before a sub-command."""
    if context.invoked_subcommand is not None:
        return None
    require("eval", *NEEDED)
    if not benchmark or not out:
        raise ValueError("eval needs --benchmark NAME=PATH and --out OUT (see unimedvl eval --help).")
    counts = {"limit": limit, "batch-size": batch_size, "steps": steps, "max-new-tokens": max_new_tokens}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{name} must be at least 1, not {count}.")
    from transformers.utils import logging as transformers_logging

    from ..checkpoint.adapter_folder import base_source
    from ..checkpoint.folder import default_model
    from ..checkpoint.identity import hub_commit, weights_digest
    from ..evaluation.distributed import join
    from ..evaluation.harness import Run, evaluate
    from ..evaluation.model_wrappers.opening import find_adapter
    from ..evaluation.report import markdown
    from ..evaluation.visuals import draw_all

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    state = join(device)
    log = say if state.is_main_process else _say_nothing
    benchmarks = [_benchmark(entry, limit, comma_separated(tasks), comma_separated(split)) for entry in benchmark]
    settings, names = _scoring(
        feature_extractor, resize, image_text_encoder, classifier, lpips, clinical, not no_meteor, rule, log
    )
    path = model or str(default_model())
    predictor = _predictor(
        path,
        benchmarks,
        seed,
        max_new_tokens,
        revision=revision,
        base=base,
        dtype=dtype,
        device=device,
        steps=steps,
        trust_remote_code=trust_remote_code,
    )
    place = path.removeprefix("specialist:")
    local = Path(place).is_dir() or place.startswith("baseline:")
    name, below, choices = Path(path).resolve().name if Path(path).is_dir() else path, None, {}
    if ":" not in path and (adapter := find_adapter(path, revision)) is not None:
        below, below_revision = base_source(adapter, base)
        name = f"{name} on {Path(below).name if Path(below).is_dir() else below}"
        choices["base_commit"] = "" if Path(below).is_dir() else hub_commit(below, below_revision)
    run = Run(
        model=name,
        out=Path(out),
        weights=weights_digest(place, below),
        batch_size=batch_size,
        baselines=not no_baselines,
        choices={
            "seed": seed,
            "steps": steps,
            "max_new_tokens": max_new_tokens,
            "dtype": dtype,
            "revision": revision,
            "commit": "" if local else hub_commit(place, revision),
            **choices,
        },
        scoring=names,
    )
    results = evaluate(run, predictor, benchmarks, settings, log)
    if not state.is_main_process:
        return None
    draw_all(results, benchmarks, run.out)
    return results, markdown(results).rstrip()


def _say_nothing(message: str) -> None:
    """In place of `say` where another process speaks."""


def _benchmark(entry: str, limit: int | None, tasks: list[str], splits: list[str]) -> "BenchmarkData":
    from ..evaluation.benchmarks import BenchmarkData, get_benchmark
    from ..evaluation.samples import TASKS

    name, _, folder = entry.partition("=")
    if not folder:
        raise ValueError(f"--benchmark {entry}: give the folder of its data, {name}=PATH.")
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"--tasks: expected some of {', '.join(TASKS)}, found {', '.join(sorted(unknown))}.")
    return BenchmarkData(get_benchmark(name), folder, limit, tasks, splits)


def _predictor(
    path: str, benchmarks: list["BenchmarkData"], seed: int, max_new_tokens: int | None, **options: Any
) -> "Predictor":
    from ..evaluation.baselines import NAMES, Baseline, TrainingSplit
    from ..evaluation.model_wrappers import open_model
    from ..evaluation.predictions import ModelPredictor

    if path.startswith("specialist:"):
        from ..evaluation.specialists import Specialist

        return Specialist.load(path.removeprefix("specialist:"))
    if path.startswith("baseline:"):
        name = path.removeprefix("baseline:")
        if name not in NAMES:
            raise ValueError(f"--model {path}: the baselines are {', '.join(NAMES)}.")
        if len(benchmarks) != 1:
            raise ValueError("a baseline is fitted to one benchmark's training split: give one --benchmark.")
        return Baseline(name, TrainingSplit(benchmarks[0].training()))
    return ModelPredictor(open_model(path, **options), seed, max_new_tokens)


def _scoring(
    feature_extractor: str,
    resize: str,
    image_text_encoder: str | None,
    classifier: str | None,
    lpips: str | None,
    clinical: list[str] | None,
    meteor: bool,
    rule: str | None,
    log: Callable[[str], None],
) -> tuple["Settings", dict[str, Any]]:
    from ..evaluation.metrics.classifiers import load_classifier
    from ..evaluation.metrics.clinical_models import load_scorer
    from ..evaluation.metrics.image_features import load_feature_extractor
    from ..evaluation.metrics.image_text import load_image_text_encoder
    from ..evaluation.metrics.images import load_lpips
    from ..evaluation.metrics.texts import meteor_problem
    from ..evaluation.scoring import Settings

    settings = Settings(extractor=load_feature_extractor(feature_extractor), resize=resize)
    names: dict[str, Any] = {"features": settings.extractor.name, "resized": resize}
    if image_text_encoder:
        settings.image_text = load_image_text_encoder(image_text_encoder)
        names["image-text encoder"] = settings.image_text.name
    if classifier:
        folder, _, label = classifier.rpartition(":")
        if not folder:
            raise ValueError(f"--classifier {label}: say which of its labels is judged, FOLDER:LABEL.")
        settings.classifier = load_classifier(folder, label)
        names["classifier"] = f"{Path(folder).name}:{label}"
    if lpips:
        settings.lpips = load_lpips(lpips)
        names["LPIPS"] = Path(lpips).name
    for entry in clinical or []:
        name, _, folder = entry.partition("=")
        settings.clinical[name] = load_scorer(name, folder)
    settings.meteor = meteor and not meteor_problem()
    names["METEOR"] = "1.5" if settings.meteor else "left out"
    if meteor and not settings.meteor:
        log(meteor_problem())
    if rule:
        names["rule"] = rule
        settings.rule = rule
    return settings, names


def compare(
    a: Annotated[str, Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[str, Argument(metavar="B", help="Folder of another.")],
) -> Result:
    """Print the differences between two runs, with paired tests."""
    require("eval", *NEEDED)
    from ..evaluation.compare import compare as compare_runs
    from ..evaluation.compare import markdown

    record = compare_runs(a, b)
    return record, markdown(record)


def card(
    out: Annotated[str, Argument(metavar="OUT", help="Folder of a run.")],
    folder: Annotated[str, Argument(metavar="FOLDER", help="Folder of the checkpoint.")],
) -> Result:
    """Put a run's results, plots and .eval_results into a checkpoint."""
    require("eval", *NEEDED)
    from ..evaluation.cards import fill_card_folder

    files = fill_card_folder(out, folder)
    return {"files": files}, "\n".join(files)


def sheet(
    out: Annotated[str, Argument(metavar="OUT", help="Folder of a run.")],
    folder: Annotated[str, Argument(metavar="FOLDER", help="New folder of the study.")],
    count: Annotated[int, Option(metavar="N", help="Images of each kind.")] = 50,
) -> Result:
    """Make a blinded reader study of generated and real images."""
    require("eval", *NEEDED)
    from ..evaluation.reader_sheets import make_study

    if count < 1:
        raise ValueError(f"--count must be 1 or more, not {count}.")
    record = make_study(out, folder, count)
    return record, f"{record['images']} images in {folder}: give readers all but key.json."


def readers(folder: Annotated[str, Argument(metavar="FOLDER", help="Folder of the study.")]) -> Result:
    """Score the filled-in forms of a reader study."""
    require("eval", *NEEDED)
    from ..evaluation.reader_sheets import score_study

    record = score_study(folder)
    lines = [
        f"{reader}: balanced accuracy {scores['balanced_accuracy']:.3f}, "
        f"generated {scores['true_positive_rate']:.3f}, real {scores['true_negative_rate']:.3f}, "
        f"AUROC {scores['auroc']:.3f}"
        for reader, scores in record.items()
    ]
    return record, "\n".join(lines)


def list_benchmarks() -> Result:
    """List the benchmarks."""
    require("eval", *NEEDED)
    from ..evaluation.benchmarks import BENCHMARKS

    rows = [
        {
            "name": benchmark.name,
            "folder": benchmark.source or "built records",
            "splits": list(benchmark.splits),
            "tasks": list(benchmark.tasks),
            "note": benchmark.note,
        }
        for benchmark in BENCHMARKS
    ]
    return {"benchmarks": rows}, "\n".join(
        f"{row['name']:<18}{', '.join(row['splits']):<18}{row['folder']:<22}{row['note']}" for row in rows
    )


app = new_app(__doc__, invoke_without_command=True, callback=printing(evaluate_model, as_json=True))
for name, function in (
    ("compare", compare),
    ("card", card),
    ("sheet", sheet),
    ("readers", readers),
    ("list", list_benchmarks),
):
    add_command(app, function, name=name)
