"""Do the alignment scores distinguish true texts from exchanged ones? AUROC of S, M and S_final.

    python -m unimedvl.unimed5m.quality.separation RECORDS --text-encoder MINILM --scorer SCORER
        [--captioner MODEL [--trust-remote-code]] [--split validation] [--max-records N]

Each text is exchanged for another one in three ways:

* `within`: any different text of its source and task. Templates word the same facts in many ways, so that many of
  these texts are as true as the one they replace and no score can distinguish them;
* `other_facts`: a text of its source and task about an image of which the source states something else;
* `across`: a text of another modality, within its task.

Exchanging is blind to the scores. Intervals are percentiles over resampled groups (patients, slides), because the
records of a group are no independent draws.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy
from PIL import Image
from typer import Argument, Option

from unimedvl.evaluation.metrics.intervals import STATISTIC_RESAMPLES, percentiles, resampled_places
from unimedvl.evaluation.metrics.ranking import auroc
from unimedvl.utils.command_line import comma_separated, run_module
from unimedvl.utils.json_files import write_json

from ..pipeline import batches, shard_paths
from ..task_images import open_stored_image
from .alignment import CAPTIONS, AlignmentModels, caption_once, final_scores, shuffled_texts, text_similarity
from .models import NEAREST, ModelPaths
from .record_texts import ALIGNED_TASKS, described_image, original_text, stated_facts

COLUMNS = ("sub_task_type", "modality", "dataset", "split", "group_id", "input_img", "output_img", "message", "extra")
SCORES = ("s", "m", "s_final", "s_final (minmax)")


def read_samples(
    records: str | Path, split: str, limit: int | None = None, seed: int = 0, tasks: Sequence[str] = ALIGNED_TASKS
) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Up to `limit` random records (all by default) of a split whose text describes an image: (samples, images).

    A sample holds `sub_task_type`, `modality`, `dataset`, `group`, `text` and `facts`. Raises ValueError where there
    is none.
    """
    samples: list[dict[str, Any]] = []
    stored: list[bytes] = []
    known: dict[bytes, bytes] = {}
    for path in shard_paths(records):
        for batch in batches(path, COLUMNS):
            for row in batch.to_pylist():
                data = described_image(row) if row["split"] == split and row["sub_task_type"] in tasks else None
                if data is not None:
                    labels = {name: row[name] for name in ("sub_task_type", "modality", "dataset")}
                    group = (row["dataset"], row["group_id"])
                    samples.append({**labels, "group": group, "text": original_text(row), "facts": stated_facts(row)})
                    stored.append(known.setdefault(data, data))
    chosen = sorted(numpy.random.default_rng(seed).permutation(len(samples))[:limit].tolist())
    kept, images = [], []
    opened: dict[bytes, Image.Image] = {}
    for place in chosen:
        try:
            image = opened.setdefault(stored[place], open_stored_image(stored[place]))
        except ValueError:
            # A damaged image has no true text to distinguish from others.
            continue
        kept.append(samples[place])
        images.append(image)
    if not kept:
        raise ValueError(f"expected {split} records with an image and a text about it in {records}, found none.")
    return kept, images


def separation(
    models: AlignmentModels,
    samples: Sequence[Mapping[str, Any]],
    images: Sequence[Image.Image],
    captions: int = CAPTIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """For each way of exchanging: pairs compared, and for all of them (`overall`) and per modality the AUROC of every
    score with its 95 % interval, as [value, low, high]; the ends are None where all records are of one group.

    `s_final` is normalized as `affine`; the scope of `minmax` is everything scored here. A way or a modality without a
    text to exchange has no figures.
    """
    written = caption_once(models.captioner, images, captions)
    texts = [sample["text"] for sample in samples]
    blocks = [(sample["dataset"], sample["sub_task_type"]) for sample in samples]
    exchanged = {
        "within": shuffled_texts(texts, blocks, seed),
        "other_facts": shuffled_texts(texts, blocks, seed, [sample["facts"] for sample in samples]),
        "across": shuffled_texts(
            texts, [sample["sub_task_type"] for sample in samples], seed, [sample["modality"] for sample in samples]
        ),
    }
    result: dict[str, Any] = {
        "records": len(samples),
        "images": len({id(image) for image in images}),
        "models": [models.captioner.name, models.text_encoder.name, models.image_text_encoder.name],
    }
    for name, others in exchanged.items():
        places = [place for place, other in enumerate(others) if other is not None]
        result[name] = {"pairs": len(places)}
        if not places:
            continue
        true = _scores(models, images, written, texts, places)
        false = _scores(models, images, written, others, places)
        for how, label in (("affine", "s_final"), ("minmax", "s_final (minmax)")):
            s, m = (numpy.concatenate([true[score], false[score]]) for score in ("s", "m"))
            final = final_scores(s, m, how)[2]
            true[label], false[label] = final[: len(places)], final[len(places) :]
        groups = [samples[place]["group"] for place in places]
        modalities = numpy.array([samples[place]["modality"] for place in places])
        result[name]["overall"] = _figures(true, false, groups, seed)
        result[name]["modalities"] = {}
        for modality in sorted(set(modalities.tolist())):
            part = numpy.flatnonzero(modalities == modality)
            result[name]["modalities"][modality] = {
                "pairs": len(part),
                **_figures(
                    {score: values[part] for score, values in true.items()},
                    {score: values[part] for score, values in false.items()},
                    [groups[place] for place in part],
                    seed,
                ),
            }
    return result


def _scores(
    models: AlignmentModels,
    images: Sequence[Image.Image],
    written: Sequence[Sequence[str]],
    said: Sequence[str | None],
    places: Sequence[int],
) -> dict[str, numpy.ndarray]:
    texts = [str(said[place]) for place in places]
    similarity = models.image_text_encoder.similarity([images[place] for place in places], texts)
    return {
        "s": text_similarity(models.text_encoder, texts, [written[place] for place in places]),
        "m": numpy.asarray(similarity, dtype=numpy.float64),
    }


def _figures(
    true: Mapping[str, numpy.ndarray], false: Mapping[str, numpy.ndarray], groups: Sequence[Any], seed: int
) -> dict[str, list[float | None]]:
    drawn = list(resampled_places(groups, STATISTIC_RESAMPLES, seed))
    result = {}
    for score in SCORES:
        areas = [_area(true[score][places], false[score][places]) for places in drawn]
        ends = percentiles(areas) if areas else (None, None)
        figures = (_area(true[score], false[score]), *ends)
        result[score] = [None if figure is None else round(float(figure), 4) for figure in figures]
    return result


def _area(true: numpy.ndarray, false: numpy.ndarray) -> float:
    """The chance that a true text scores above an exchanged one."""
    area = auroc([*true.tolist(), *false.tolist()], [1] * len(true) + [0] * len(false))
    assert area is not None, "there are as many true texts as exchanged ones"
    return area


def main(
    records: Annotated[Path, Argument(help="Folder of built records.")],
    text_encoder: Annotated[str, Option(help="Folder of a sentence encoder.")],
    scorer: Annotated[str, Option(help="Folder written by train_scorer.")],
    captioner: Annotated[str, Option(help="An image-text-to-text model.")] = NEAREST,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Run the captioner's own code (UniMedVL).")
    ] = False,
    split: str = "validation",
    max_records: Annotated[int | None, Option(help="A random part of this size (default: all).")] = None,
    tasks: Annotated[str, Option(metavar="A,B", help="Tasks of the records.")] = ",".join(ALIGNED_TASKS),
    captions: Annotated[int, Option(help="Captions per image.")] = CAPTIONS,
    out: Annotated[Path | None, Option(help="JSON file for the result.")] = None,
) -> None:
    """Measure on built records, print the figures and write them to a file."""
    models = ModelPaths(text_encoder, scorer, captioner, trust_remote_code=trust_remote_code)()
    samples, images = read_samples(records, split, max_records, tasks=comma_separated(tasks))
    result = separation(models, samples, images, captions)
    print(json.dumps(result, indent=1, ensure_ascii=False))  # noqa: T201
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    sys.exit(run_module(main))
