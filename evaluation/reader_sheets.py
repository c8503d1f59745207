"""Reader studies: generated and real images in a blinded order, forms to fill in, and the scores of the answers.

FOLDER/images/001.png ..     all of one size and format, without metadata
FOLDER/index.html            the images with their numbers
FOLDER/form.csv              number, rating (1 surely real .. 5 surely generated), comment: one copy for each reader
FOLDER/key.json              what is what: not for readers
"""

import csv
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from unimedvl.unimed5m.pages import render_page
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.claims import keep_out_of_git
from unimedvl.utils.json_files import read_json

from .benchmarks import BenchmarkData, get_benchmark
from .metrics.ranking import reader_study
from .predictions import PredictionStore
from .samples import TASKS

SIDE = 512


def make_study(out: str | Path, folder: str | Path, count: int, seed: int = 0) -> dict[str, Any]:
    """A study of `count` generated images of a run and the real images of the same prompts.

    Real images go through the size of the generated ones, so that sharpness does not give the answer away.

    Raises:
        ValueError: if the run has no generated images, or the folder is not empty.
    """
    out, folder = Path(out), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder.")
    mark = out / "run.json"
    if not mark.is_file():
        raise ValueError(f"{out} holds no run: give the --out folder of `unimedvl eval`.")
    places = read_json(out / "folders.json", "give the --out folder of a finished `unimedvl eval`")
    pairs: list[tuple[str, Image.Image, Image.Image]] = []
    for name, place in places.items():
        store = PredictionStore(out / name)
        rows = store.read()
        data = BenchmarkData(get_benchmark(name), place["folder"], place["limit"], place["tasks"], place["splits"])
        for _, sample in data.samples():
            if TASKS[sample.task].family == "generation" and sample.id in rows and sample.output is not None:
                made = store.load(rows[sample.id]).image
                if made is not None:
                    pairs.append((sample.id, made, shown_image(sample.output)))
    if not pairs:
        raise ValueError(f"{out} has no generated images: run a benchmark with text_to_image first.")
    pairs.sort(key=lambda pair: hashlib.sha256(f"{seed}/{pair[0]}".encode()).hexdigest())
    entries = [(name, True, made) for name, made, _ in pairs[:count]]
    entries += [(name, False, real.resize(made.size, Image.Resampling.BICUBIC)) for name, made, real in pairs[-count:]]
    random.Random(seed).shuffle(entries)
    keep_out_of_git(folder)
    (folder / "images").mkdir()
    key = {}
    for number, (name, generated, image) in enumerate(entries, 1):
        scale = SIDE / max(image.size)
        size = round(image.width * scale), round(image.height * scale)
        shown = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        # A color profile would be saved along, and real images alone have one.
        shown.info.clear()
        shown.save(folder / "images" / f"{number:03d}.png")
        key[str(number)] = {"id": name, "generated": generated}
    with open(folder / "form.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["number", "rating", "comment"])
        writer.writerows([number, "", ""] for number in range(1, len(entries) + 1))
    (folder / "index.html").write_text(
        render_page("reader_study", numbers=range(1, len(entries) + 1)), encoding="utf-8"
    )
    (folder / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    return {"images": len(entries), "generated": min(count, len(pairs)), "folder": str(folder)}


def score_study(folder: str | Path) -> dict[str, Any]:
    """Scores of every filled-in form (`*.csv`) of a study, and of all readers together.

    Raises:
        ValueError: naming the form and what is wrong: its columns, or the number where a rating is missing or is none.
    """
    folder = Path(folder)
    if not (folder / "key.json").is_file():
        raise ValueError(f"{folder} holds no reader study: make one with `unimedvl eval sheet`.")
    key = read_json(folder / "key.json")
    ratings: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*.csv")):
        rows = _ratings(path)
        if not any(rows.values()):
            continue
        for number in key:
            if rows.get(number, "") not in ("1", "2", "3", "4", "5"):
                raise ValueError(f"{path.name}: image {number} needs a rating from 1 to 5.")
        ratings[path.stem] = [float(rows[number]) for number in key]
    if not ratings:
        raise ValueError(f"{folder} holds no filled-in form: copy form.csv for each reader and fill in the ratings.")
    truth = [int(entry["generated"]) for entry in key.values()]
    found = {name: reader_study(values, truth) for name, values in ratings.items()}
    together = [value for values in ratings.values() for value in values]
    return found | {"all readers": reader_study(together, truth * len(ratings))}


def _ratings(path: Path) -> dict[str, str]:
    """The rating of each number in a form, as it was written or as a spreadsheet program saves it.

    Such a program may put a byte order mark in front, divide by semicolons or tabs, and encode comments as it likes.
    """
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    divider = max(",;\t", key=lines[0].count) if lines else ","
    rows = list(csv.DictReader(lines, delimiter=divider))
    if rows and not {"number", "rating"} <= rows[0].keys():
        raise ValueError(f"{path.name}: the first line must name the columns number and rating, as form.csv does.")
    return {(row["number"] or "").strip(): (row["rating"] or "").strip() for row in rows}
