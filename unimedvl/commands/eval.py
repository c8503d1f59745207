"""Score a model on medical benchmarks of understanding and generation.

unimedvl eval --benchmark unimed-mini=RECORDS --out OUT [--limit 20]
unimedvl eval --model owner/name --benchmark vqa-rad=FOLDER --benchmark slake=FOLDER --out OUT
unimedvl eval compare OUT_A OUT_B
unimedvl eval card OUT CARD_FOLDER
unimedvl eval sheet OUT NEW_FOLDER          a reader study; `unimedvl eval readers NEW_FOLDER` scores the answers
unimedvl eval list

--model takes any transformers image-text-to-text model, any diffusers pipeline, or baseline:NAME. Repeating a command
that was stopped continues it.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shared import print_result, say

if TYPE_CHECKING:
    from ..evaluation.benchmarks import BenchmarkData
    from ..evaluation.predictions import Predictor
    from ..evaluation.scoring import Settings

NEEDED = ("evaluate", "datasets", "pyarrow", "skimage", "scipy", "sacrebleu", "rouge_score", "torchmetrics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, words, meaning in (
        ("compare", ("A", "B"), "differences between two runs, with paired tests"),
        ("card", ("OUT", "FOLDER"), "put results, plots and .eval_results of a run into a checkpoint's folder"),
        ("sheet", ("OUT", "FOLDER"), "make a blinded reader study of a run's generated and real pictures"),
        ("readers", ("FOLDER",), "score the filled-in forms of a reader study"),
        ("list", (), "list the benchmarks"),
    ):
        action = actions.add_parser(name, help=meaning, description=meaning)
        for word in words:
            action.add_argument(word.lower(), metavar=word)
        if name == "sheet":
            action.add_argument(
                "--count", type=int, default=50, metavar="N", help="pictures of each kind (default: 50)"
            )
        action.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        action.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    add = parser.add_argument
    add("--model", metavar="M", help="checkpoint folder, Hub id or baseline:NAME (default: the nano checkpoint)")
    add("--revision", metavar="R", help="commit, tag or branch of a Hub id (pin a commit)")
    add("--trust-remote-code", action="store_true", help="let code of the model's repository run")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, ... (default: auto)")
    add("--benchmark", action="append", default=[], metavar="NAME=PATH", help="repeat for several benchmarks")
    add("--out", metavar="OUT", help="folder for predictions and results")
    add("--limit", type=int, metavar="N", help="at most N samples of each task")
    add("--tasks", metavar="A,B", help="only these tasks")
    add("--split", metavar="A,B", help="other splits than the benchmark's own")
    add("--seed", type=int, default=0, metavar="S", help="seed of generated pictures (default: 0)")
    add("--steps", type=int, metavar="N", help="sampler steps (default: the checkpoint's presets)")
    add("--max-new-tokens", type=int, metavar="N", help="length limit of every text (default: the task's)")
    add("--batch-size", type=int, default=8, metavar="N", help="samples asked at once (default: 8)")
    add("--no-baselines", action="store_true", help="do not compare with what needs no model")
    scoring = parser.add_argument_group("scoring")
    add = scoring.add_argument
    add(
        "--rule",
        choices=("normalised", "contains", "medevalkit", "vlmevalkit"),
        help="what counts as a right answer (default: by answer)",
    )
    add(
        "--resize",
        default="prediction",
        choices=("prediction", "reference"),
        help="which picture takes the other size",
    )
    add(
        "--feature-extractor",
        default="pixels-8",
        metavar="F",
        help="of FID and KID: pixels-N, torchscript:FILE, folder",
    )
    add("--image-text-encoder", metavar="F", help="folder of a dual encoder, or open_clip:FOLDER")
    add("--classifier", metavar="FOLDER:LABEL", help="judge of counterfactuals, an image classifier")
    add("--lpips", metavar="FILE", help="TorchScript network of LPIPS")
    add("--clinical", action="append", default=[], metavar="SCORE=FOLDER", help="ratescore, radgraph, chexbert, green")
    add("--no-meteor", action="store_true", help="leave METEOR out (it needs Java)")
    add("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} is missing: pip install 'unimedvl[eval]'.")
    actions = {
        "compare": _compare,
        "card": _card,
        "sheet": _sheet,
        "readers": _readers,
        "list": _list,
        None: _evaluate,
    }
    found = actions[arguments.action](arguments)
    if found is not None:
        print_result(arguments, *found)


def _evaluate(arguments: argparse.Namespace) -> tuple[dict[str, Any], str] | None:
    """A whole run; None in the processes that leave the report to the main one."""
    if not arguments.benchmark or not arguments.out:
        raise ValueError("eval needs --benchmark NAME=PATH and --out OUT (see unimedvl eval --help).")
    for name in ("limit", "batch_size", "steps", "max_new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    from transformers.utils import logging as transformers_logging

    from ..checkpoint.identity import hub_commit, weights_digest
    from ..evaluation.distributed import join
    from ..evaluation.harness import Run, evaluate
    from ..evaluation.report import markdown
    from ..evaluation.visuals import draw_all

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    state = join(arguments.device)
    tell = say if state.is_main_process else _say_nothing
    benchmarks = [_benchmark(arguments, entry) for entry in arguments.benchmark]
    settings, names = _scoring(arguments, tell)
    path = arguments.model or _default_model()
    predictor = _predictor(arguments, path, benchmarks)
    out = Path(arguments.out)
    place = path.removeprefix("specialist:")
    local = Path(place).is_dir() or place.startswith("baseline:")
    run_ = Run(
        model=Path(path).resolve().name if Path(path).is_dir() else path,
        out=out,
        weights=weights_digest(place),
        batch_size=arguments.batch_size,
        baselines=not arguments.no_baselines,
        choices={
            "seed": arguments.seed,
            "steps": arguments.steps,
            "max_new_tokens": arguments.max_new_tokens,
            "dtype": arguments.dtype,
            "revision": arguments.revision,
            "commit": "" if local else hub_commit(place, arguments.revision),
        },
        scoring=names,
    )
    results = evaluate(run_, predictor, benchmarks, settings, tell)
    if not state.is_main_process:
        return None
    draw_all(results, benchmarks, out)
    return results, markdown(results).rstrip()


def _say_nothing(message: str) -> None:
    """In place of `say` where another process speaks."""


def _benchmark(arguments: argparse.Namespace, entry: str) -> "BenchmarkData":
    from ..evaluation.benchmarks import BenchmarkData, get_benchmark
    from ..evaluation.samples import TASKS

    name, _, folder = entry.partition("=")
    if not folder:
        raise ValueError(f"--benchmark {entry}: give the folder of its data, {name}=PATH.")
    tasks = _list_of(arguments.tasks)
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"--tasks: expected some of {', '.join(TASKS)}, found {', '.join(sorted(unknown))}.")
    return BenchmarkData(get_benchmark(name), folder, arguments.limit, tasks, _list_of(arguments.split))


def _list_of(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _default_model() -> str:
    from ..checkpoint.folder import default_model

    return str(default_model())


def _predictor(arguments: argparse.Namespace, path: str, benchmarks: list["BenchmarkData"]) -> "Predictor":
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
            raise ValueError("a baseline learns from one benchmark's training split: give one --benchmark.")
        return Baseline(name, TrainingSplit(benchmarks[0].training()))
    model = open_model(
        path,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        steps=arguments.steps,
        trust_remote_code=arguments.trust_remote_code,
    )
    return ModelPredictor(model, arguments.seed, arguments.max_new_tokens)


def _scoring(arguments: argparse.Namespace, tell: Callable[[str], None]) -> tuple["Settings", dict[str, Any]]:
    from ..evaluation.metrics.classifiers import load_classifier
    from ..evaluation.metrics.clinical_models import load_scorer
    from ..evaluation.metrics.image_features import load_feature_extractor
    from ..evaluation.metrics.image_text import load_image_text_encoder
    from ..evaluation.metrics.images import load_lpips
    from ..evaluation.metrics.texts import meteor_problem
    from ..evaluation.scoring import Settings

    settings = Settings(extractor=load_feature_extractor(arguments.feature_extractor), resize=arguments.resize)
    names: dict[str, Any] = {"features": settings.extractor.name, "resized": arguments.resize}
    if arguments.image_text_encoder:
        settings.image_text = load_image_text_encoder(arguments.image_text_encoder)
        names["image-text encoder"] = settings.image_text.name
    if arguments.classifier:
        folder, _, label = arguments.classifier.rpartition(":")
        if not folder:
            raise ValueError(f"--classifier {label}: say which of its labels is judged, FOLDER:LABEL.")
        settings.classifier = load_classifier(folder, label)
        names["classifier"] = f"{Path(folder).name}:{label}"
    if arguments.lpips:
        settings.lpips = load_lpips(arguments.lpips)
        names["LPIPS"] = Path(arguments.lpips).name
    for entry in arguments.clinical:
        name, _, folder = entry.partition("=")
        settings.clinical[name] = load_scorer(name, folder)
    settings.meteor = not arguments.no_meteor and not meteor_problem()
    names["METEOR"] = "1.5" if settings.meteor else "left out"
    if not settings.meteor and not arguments.no_meteor:
        tell(meteor_problem())
    if arguments.rule:
        names["rule"] = arguments.rule
        settings.rule = arguments.rule
    return settings, names


def _compare(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..evaluation.compare import compare, markdown

    record = compare(arguments.a, arguments.b)
    return record, markdown(record)


def _card(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..evaluation.cards import fill_card_folder

    files = fill_card_folder(arguments.out, arguments.folder)
    return {"files": files}, "\n".join(files)


def _sheet(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..evaluation.reader_sheets import make_study

    if arguments.count < 1:
        raise ValueError(f"--count must be 1 or more, not {arguments.count}.")
    record = make_study(arguments.out, arguments.folder, arguments.count)
    return record, f"{record['pictures']} pictures in {arguments.folder}: give readers all but key.json."


def _readers(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..evaluation.reader_sheets import score_study

    record = score_study(arguments.folder)
    lines = [
        f"{reader}: balanced accuracy {scores['balanced_accuracy']:.3f}, "
        f"generated {scores['true_positive_rate']:.3f}, real {scores['true_negative_rate']:.3f}, "
        f"AUROC {scores['auroc']:.3f}"
        for reader, scores in record.items()
    ]
    return record, "\n".join(lines)


def _list(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
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
