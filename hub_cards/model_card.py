"""The card of a checkpoint or an adapter: a template, filled from the folder itself and from a file of facts.

Nothing is left open: what neither the folder nor the facts say fails the build and is named. The snippet of a card
pins a commit, which is only known once the weights are on the Hub; until then a card holds `UNPINNED`, and a push
(`push.py`) puts the commit of the weights in its place.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData
from huggingface_hub.utils import validate_repo_id

from unimedvl.checkpoint.adapter_folder import Adapter, open_adapter
from unimedvl.checkpoint.compute import cache_bytes_per_token, token_flops, update_flops
from unimedvl.checkpoint.folder import (
    DRAWING_PARTS,
    Checkpoint,
    Place,
    count_parts,
    is_adapter,
    open_checkpoint,
    understanding_tensors,
)
from unimedvl.checkpoint.memory import estimate_memory, size
from unimedvl.evaluation.cards import FOLDER, index_rows
from unimedvl.evaluation.samples import TASKS
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.upstream_weights_unimedvl import StoredTensor
from unimedvl.utils.json_files import read_json
from unimedvl.utils.whole_files import write_text

from .adapters import base_on_the_hub
from .card_facts import CardFacts

# Stands in a card's snippets for the commit of the weights, until a push knows it.
UNPINNED = "COMMIT"
UNNAMED = "OWNER/NAME"
TAGS = ["medical", "vision-language", "image-generation", "unimedvl", "research-only"]
CONTEXT = 256  # tokens before a decoded one, for the predicted work
TEMPLATES = Path(__file__).with_name("templates")


def build_card(
    folder: str | os.PathLike,
    facts: CardFacts,
    repository: str = UNNAMED,
    revision: str = UNPINNED,
    base: str | None = None,
) -> str:
    """The card's text, front matter included.

    Args:
        folder: of a checkpoint in the transformers layout, or of a PEFT adapter.
        facts: what the folder does not say.
        repository: Hub id that the snippets name.
        revision: commit that the snippets pin.
        base: Hub id of an adapter's base; the one that the adapter names by default.

    Raises:
        ValueError: if the folder is not whole, an image that the facts name is not in it, or there is neither an
            evaluation nor a reason why.
    """
    folder = Path(folder)
    if repository != UNNAMED:
        validate_repo_id(repository)
    adapter = open_adapter(Place(folder, folder.resolve().name, None)) if is_adapter(folder) else None
    for name in [failure.image for failure in facts.failures if failure.image] + list(facts.sheets):
        if not (folder / name).is_file():
            raise ValueError(f"the card shows {name}, which {str(folder)!r} does not hold: add the image.")
    results = _results(folder)
    if results is None and not facts.figures and not facts.not_evaluated:
        raise ValueError(
            f"{str(folder)!r} holds no {FOLDER}/results.json: run `unimedvl eval` and `unimedvl eval card`, or say "
            "under `not_evaluated` why there is none."
        )
    if (results is not None or facts.figures) and not facts.protocol:
        raise ValueError("the facts lack `protocol`: say on which split, with which prompts, figures were measured.")
    stated = adapter and base_on_the_hub(adapter, base, "name it as others find it")
    data = ModelCardData(
        license=facts.license,
        language=facts.language,
        tags=[*TAGS, *facts.tags],
        datasets=facts.datasets or None,
        base_model=stated[0] if stated else facts.base_model or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="any-to-any",
        model_name=results["model"] if results else None,
        eval_results=index_rows(results) if results else None,
    )
    text = (
        _environment()
        .get_template("model.md.jinja")
        .render(
            facts=facts,
            repository=repository,
            revision=revision,
            adapter={"base": stated[0], "base_revision": stated[1] or "main"} if stated else None,
            benchmarks=_benchmarks(results) if results else [],
            **(_adapter_numbers(adapter) if adapter else _numbers(_opened(folder))),
        )
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def write_card(folder: str | os.PathLike, text: str) -> Path:
    """Write README.md of a folder, whole or not at all."""
    path = Path(folder) / "README.md"
    write_text(path, text)
    return path


def pin_revision(text: str, commit: str, repository: str) -> str:
    """A card whose snippets pin `commit`, where they left it open or pinned another one of this repository.

    Commits of other repositories, such as an adapter's base, stay.
    """
    return _pinned(repository).sub(rf"\g<1>{commit}", text)


def pinned_revision(text: str, repository: str) -> str | None:
    """The commit that a card's snippets pin of its own repository; None for none."""
    return next((found[2] for found in _pinned(repository).finditer(text) if found[2] != UNPINNED), None)


def _pinned(repository: str) -> re.Pattern[str]:
    own = rf'^repository = "{re.escape(repository)}"\nrevision = "|--model {re.escape(repository)} --revision '
    opened = rf'(?:^revision = "|--revision )(?={UNPINNED}\b)'
    return re.compile(rf"({own}|{opened})({UNPINNED}|[0-9a-f]{{40}})\b", re.MULTILINE)


def _opened(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}: give the folder of a checkpoint or an adapter.")
    checkpoint = open_checkpoint(folder)
    if checkpoint.layout != "transformers":
        raise ValueError(f"{str(folder)!r} is in the upstream layout: run `unimedvl convert` first.")
    return checkpoint


def _results(folder: Path) -> dict[str, Any] | None:
    path = folder / FOLDER / "results.json"
    return read_json(path) if path.is_file() else None


def _benchmarks(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The primary score of every task, with its interval, number of samples and flags."""
    found = []
    for name, entry in results["benchmarks"].items():
        rows = []
        for task, scores in entry["tasks"].items():
            metric = scores["metrics"].get(TASKS[task].primary)
            if metric is None or metric["value"] is None:
                continue
            interval = "" if metric["low"] is None else f" ({metric['low']:.3f} to {metric['high']:.3f})"
            rows.append(
                {
                    "task": task.replace("_", " "),
                    "number": scores["count"],
                    "score": TASKS[task].primary,
                    "value": f"{metric['value']:.3f}{interval}",
                    "flags": "; ".join(scores["flags"]),
                }
            )
        found.append({"name": name, "split": ", ".join(entry["split"]), "note": entry["note"], "rows": rows})
    return found


def _numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Parameters by part and mode, memory by mode and type, work of a token and of an image."""
    whole = estimate_memory(checkpoint.tensors)
    less = estimate_memory(understanding_tensors(checkpoint.tensors))
    draws = "generation expert" in count_parts(checkpoint.tensors)
    return {
        **_parts(checkpoint.tensors),
        "memory": [(kind, size(less[kind]), size(whole[kind])) for kind in whole],
        "work": _work(UniMedVLConfig.from_pretrained(checkpoint.directory), draws),
        "draws": draws,
    }


def _adapter_numbers(adapter: Adapter) -> dict[str, Any]:
    """Parameters by part; memory and work are those of the base."""
    return {**_parts(adapter.tensors), "memory": [], "work": "", "draws": True}


def _parts(tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    """Parameters of each part and whether answering needs it, of all, and of those that answering needs."""
    counts = count_parts(tensors)
    return {
        "parts": [(name, count, name not in DRAWING_PARTS) for name, count in counts.items()],
        "total": sum(counts.values()),
        "understanding": sum(count_parts(understanding_tensors(tensors)).values()),
    }


def _work(config: UniMedVLConfig, draws: bool) -> str:
    text = (
        f"{_operations(token_flops(config, CONTEXT))} for a token of an answer after {CONTEXT} others, whose keys and "
        f"values take {size(CONTEXT * cache_bytes_per_token(config))} in bfloat16"
    )
    if not draws:
        return text + "."
    side = config.vae_config.sample_size
    tokens = (side // config.pixels_per_latent_token) ** 2
    work = _operations(update_flops(config, tokens, [CONTEXT, 0]))
    return text + f"; {work} for each denoising step of {side} x {side} pixels with text guidance."


def _operations(number: int) -> str:
    for unit, factor in (("TFLOP", 1e12), ("GFLOP", 1e9)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number / 1e6:.3g} MFLOP"


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
