"""Clinical agreement of reports through models of others: RaTEScore, RadGraph F1, CheXbert F1, GREEN. Optional."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .texts import english_only


def _ratescore(folder: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    scorer = importlib.import_module("RaTEScore").RaTEScore(bert_model=f"{folder}/bert", eval_model=f"{folder}/eval")
    return lambda said, wanted: scorer.compute_score(said, wanted)


def _radgraph(folder: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    scorer = importlib.import_module("radgraph").F1RadGraph(reward_level="partial", model_cache_dir=folder)
    return lambda said, wanted: scorer(hyps=said, refs=wanted)[1]


def _chexbert(folder: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    scorer = importlib.import_module("f1chexbert").F1CheXbert(model_path=folder)
    return lambda said, wanted: [float(value) for value in scorer(hyps=said, refs=wanted)[1]]


def _green(folder: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    scorer = importlib.import_module("green_score").GREEN(folder, output_dir=".")
    return lambda said, wanted: scorer(wanted, said)[2]


# Score -> (package, distribution, how to make it).
SCORERS: Mapping[str, tuple[str, str, Callable[[str], Callable[[list[str], list[str]], Sequence[float]]]]] = {
    "ratescore": ("RaTEScore", "RaTEScore", _ratescore),
    "radgraph": ("radgraph", "radgraph", _radgraph),
    "chexbert": ("f1chexbert", "f1chexbert", _chexbert),
    "green": ("green_score", "green-score", _green),
}


def load_scorer(name: str, folder: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    """A scorer of two lists of texts.

    Raises:
        ValueError: one line that says what is missing.
    """
    if name not in SCORERS:
        raise ValueError(f"clinical score: choose among {', '.join(SCORERS)}, not {name!r}.")
    package, distribution, make = SCORERS[name]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{name} needs the package {distribution}, which is not installed: pip install {distribution}."
        )
    if not Path(folder).exists():
        raise ValueError(f"{name} needs its weights: there is nothing at {folder}.")
    return make(folder)


def clinical_text(predictions: Sequence[str], references: Sequence[str], weights: Mapping[str, str]) -> dict[str, Any]:
    """Clinical agreement of radiology reports through models of others: RaTEScore, RadGraph F1, CheXbert F1, GREEN.

    Each score needs a language model with local weights. Nothing is downloaded: a score runs where its package is
    installed and its weights' folder is given, and says in one line what is missing otherwise. UNVERIFIED: no one has
    run these wrappers with the packages and weights yet.

    Args:
        predictions: generated reports.
        references: true reports.
        weights: {"ratescore" | "radgraph" | "chexbert" | "green": folder}.

    Returns:
        the mean of each score, and `count`.

    Raises:
        ValueError: saying what is missing, or that texts are in other languages than English, which all of these read.

    Source:
        Zhao et al. 2024, "RaTEScore: A Metric for Radiology Report Generation"; Jain et al. 2021, "RadGraph"; Smit et
        al. 2020, "CheXbert"; Ostmeier et al. 2024, "GREEN".
    """
    result: dict[str, Any] = {"count": len(predictions)}
    for name, folder in weights.items():
        if problem := english_only(name, predictions, references):
            raise ValueError(problem)
        scores = load_scorer(name, folder)(list(predictions), list(references))
        result[name] = sum(float(score) for score in scores) / len(predictions)
    return result
