"""Do the alignment scores tell true texts from exchanged ones? AUROC of S, M and S_final.

    python -m unimedvl.processing.unimed5m.quality.separation RECORDS --text-encoder MINILM --scorer SCORER
        [--captioner MODEL] [--split validation] [--max-records 600]

Each text is exchanged for another one `within` its source and task (the hard case: the same kind of image and
phrasing, another finding) and `across` modalities within its task. An exchanged text is never equal to the true one,
but it may say the same in other words; no labels are used to avoid that, so `within` has a ceiling below 1.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from ..pipeline import batches, shard_paths, write_json
from .alignment import CAPTIONS, AlignmentModels, auroc, caption_once, final_scores, shuffled_texts, text_similarity
from .models import NEAREST, ModelPaths
from .pictures import DAMAGED, open_picture
from .text import ALIGNED_TASKS, described_image, original_text

COLUMNS = ("sub_task_type", "modality", "dataset", "split", "input_img", "output_img", "message")


def read_samples(
    records: str | Path, split: str, limit: int, seed: int = 0, tasks: Sequence[str] = ALIGNED_TASKS
) -> tuple[list[dict[str, str]], list[Image.Image]]:
    """Up to `limit` random records of a split whose text describes an image: (labels and text, images)."""
    samples: list[dict[str, str]] = []
    stored: list[bytes] = []
    for path in shard_paths(records):
        for batch in batches(path, COLUMNS):
            for row in batch.to_pylist():
                data = described_image(row) if row["split"] == split and row["sub_task_type"] in tasks else None
                if data is not None:
                    labels = {name: row[name] for name in ("sub_task_type", "modality", "dataset")}
                    samples.append({**labels, "text": original_text(row)})
                    stored.append(data)
    chosen = sorted(numpy.random.default_rng(seed).permutation(len(samples))[:limit].tolist())
    kept, images = [], []
    for place in chosen:
        try:
            images.append(open_picture(stored[place], "RGB"))
        except DAMAGED:
            # A damaged image has no true text to tell from others.
            continue
        kept.append(samples[place])
    if not kept:
        raise ValueError(f"expected {split} records with an image and a text about it in {records}, found none")
    return kept, images


def separation(
    models: AlignmentModels,
    samples: Sequence[Mapping[str, str]],
    images: Sequence[Image.Image],
    captions: int = CAPTIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """For `within` and `across`: pairs compared and, per normalisation, the AUROC of s, m and s_final.

    `affine` and `minmax` differ in s_final alone; the scope of `minmax` is everything scored here.
    """
    written = caption_once(models.captioner, images, captions)
    texts = [sample["text"] for sample in samples]
    exchanged = {
        "within": shuffled_texts(texts, [(sample["dataset"], sample["sub_task_type"]) for sample in samples], seed),
        "across": _from_other_modalities(samples, seed),
    }
    result: dict[str, Any] = {
        "records": len(samples),
        "modalities": dict(sorted(Counter(sample["modality"] for sample in samples).items())),
        "models": [models.captioner.name, models.text_encoder.name, models.image_text_encoder.name],
    }
    for name, others in exchanged.items():
        pairs = [place for place, other in enumerate(others) if other is not None]
        if not pairs:
            result[name] = {"pairs": 0}
            continue
        part_images, part_captions = [images[place] for place in pairs], [written[place] for place in pairs]
        values: dict[str, numpy.ndarray] = {}
        for kind, said in (("true", texts), ("false", others)):
            now = [str(said[place]) for place in pairs]
            values[f"s {kind}"] = text_similarity(models.text_encoder, now, part_captions)
            similarity = models.image_text_encoder.similarity(part_images, now)
            values[f"m {kind}"] = numpy.asarray(similarity, dtype=numpy.float64)
        result[name] = {"pairs": len(pairs), **_areas(values)}
    return result


def _areas(values: Mapping[str, numpy.ndarray]) -> dict[str, float]:
    count = len(values["s true"])
    s = numpy.concatenate([values["s true"], values["s false"]])
    m = numpy.concatenate([values["m true"], values["m false"]])
    areas = {"s": auroc(s[:count], s[count:]), "m": auroc(m[:count], m[count:])}
    for how in ("affine", "minmax"):
        final = final_scores(s, m, how)[2]
        areas[f"s_final ({how})"] = auroc(final[:count], final[count:])
    return {name: round(area, 4) for name, area in areas.items()}


def _from_other_modalities(samples: Sequence[Mapping[str, str]], seed: int) -> list[str | None]:
    generator = numpy.random.default_rng(seed)
    result: list[str | None] = []
    for sample in samples:
        others = [
            other["text"]
            for other in samples
            if other["sub_task_type"] == sample["sub_task_type"]
            and other["modality"] != sample["modality"]
            and other["text"] != sample["text"]
        ]
        result.append(others[int(generator.integers(len(others)))] if others else None)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--text-encoder", required=True, help="folder of a sentence encoder")
    parser.add_argument("--scorer", required=True, help="folder written by train_scorer")
    parser.add_argument("--captioner", default=NEAREST, help="an image-text-to-text model (its own code is run)")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--max-records", type=int, default=600)
    parser.add_argument("--tasks", nargs="+", default=list(ALIGNED_TASKS))
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    models = ModelPaths(options.text_encoder, options.scorer, options.captioner, trust_remote_code=True)()
    samples, images = read_samples(options.records, options.split, options.max_records, tasks=options.tasks)
    result = separation(models, samples, images, options.captions)
    print(json.dumps(result, indent=1, ensure_ascii=False))  # noqa: T201
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
