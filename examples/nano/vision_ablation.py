"""What each ingredient of the ViT's pre-training gives: short runs of a smaller ViT, one changed thing each.

    python -m examples.nano.vision_ablation --work WORK --out FOLDER --teacher CACHE [--steps 300] [--result FILE]

Every line has the same seed and sees the same number of patches, and is measured on the held-out part of the training
split. Lines that lie finished in FOLDER are taken as they are.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from benchmarks.origin import origin
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json, write_json

from .views import Augmentation
from .vision import Ingredients, pretrain_on
from .vision_data import read_corpus

BASE = Ingredients(
    side=64,
    layers=3,
    kept=(0.5, 0.5),
    distillation=0.0,
    augmentation=Augmentation(texture=False),
    mask_hidden=0,
    average=0.0,
)
LINES = {
    "base": BASE,
    "distilled spatial and pooled features": replace(BASE, distillation=1.0),
    "soft captions of probes": replace(BASE, soft=0.5),
    "pixels of dropped patches first": replace(BASE, reconstruction=0.25),
    "texture, gamma and noise": replace(BASE, augmentation=Augmentation()),
    "images mixed in pairs": replace(BASE, mixed=0.5),
    "hidden layer for masks": replace(BASE, mask_hidden=384),
    "all patches, half the steps": replace(BASE, kept=(1.0, 1.0)),
    "patches that grow from a quarter to three": replace(BASE, kept=(0.25, 0.75)),
    "averaged weights": replace(BASE, average=0.98),
    "skipped branches": replace(BASE, depth=0.1),
}


def steps_of(line: Ingredients, steps: int) -> int:
    """Steps in which a line sees as many patches as the base does in `steps`."""
    return round(steps * sum(BASE.kept) / sum(line.kept))


def ablate(
    work: Path, out: Path, teacher: Path, steps: int, batch: int = 24, seed: int = 0, names: list[str] | None = None
) -> dict[str, dict]:
    """Run the lines, or those named; returns what was measured of each."""
    found, corpus = {}, None
    for name, line in LINES.items():
        if names is not None and name not in names:
            continue
        folder = out / name.replace(" ", "-").replace(",", "")
        path = folder / "measured.json"
        if not path.is_file():
            corpus = read_corpus(work, teacher) if corpus is None else corpus
            _, measured = pretrain_on(corpus, folder, steps_of(line, steps), batch, seed=seed, ingredients=line)
            write_json(path, measured)
        found[name] = read_json(path)
    return found


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    out: Annotated[Path, Option(help="Folder of the runs.")],
    teacher: Annotated[Path, Option(help="Folder of the features of EfficientNet-lite2.")],
    steps: Annotated[int, Option(help="Of the base.")] = 300,
    batch: int = 24,
    seed: int = 0,
    lines: Annotated[str | None, Option(metavar="A;B", help="Only these lines.")] = None,
    result: Annotated[Path | None, Option(help="JSON file of all lines.")] = None,
) -> None:
    names = lines.split(";") if lines else None
    made = origin()
    found = ablate(work, out, teacher, steps, batch, seed, names)
    if result is not None:
        settings = {"side": BASE.side, "layers": BASE.layers, "steps": steps, "batch": batch, "seed": seed}
        write_json(result, {"origin": made, **settings, "lines": found})


if __name__ == "__main__":
    sys.exit(run_module(main))
