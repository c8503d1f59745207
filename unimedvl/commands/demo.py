"""Show a checkpoint at work on one page: what it answers about real images, what it draws and how it edits.

python -m unimedvl.commands.demo [--out FOLDER] [--model M] [--seed S]

The real images come inside Python packages, and no nano checkpoint was trained on them; what is true of them stands
beside every answer. The folder receives `index.html`, which needs no network and no other file, `contact-sheet.png`
with the same images, and every generated image with its synthetic-image record.
"""

import os
import platform
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ..utils.command_line import require, run_module
from .shared import NOTICE, Device, Model, Revision, choose_seed, load_model, silence_libraries

if TYPE_CHECKING:
    from ..checkpoint.loading import Loaded
    from .demonstration import Answer, Demonstration, Edit, Figure

PAGE, SHEET = "index.html", "contact-sheet.png"
# Longer side of the images of the contact sheet in pixels, and letters of a line below it.
CELL, LETTERS = 192, 31


def main(
    out: Annotated[str, Option("--out", metavar="FOLDER", help="Made if it is missing; files are replaced.")] = "demo",
    model: Model = None,
    revision: Revision = None,
    device: Device = "auto",
    seed: Annotated[int, Option(metavar="S", help="Seed of all random draws.")] = 0,
) -> None:
    started, busy = time.monotonic(), time.process_time()
    require("demo", "skimage", "pydicom", "nibabel", "pyarrow")
    choose_seed(seed)
    folder = _made_folder(out)
    # OpenMP's threads else wait for each other in a busy loop, which beside other work takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    silence_libraries()
    print(NOTICE, flush=True)
    loaded = load_model(model, revision=revision, device=device)
    if not loaded.model.config.visual_gen:
        raise ValueError(f"{loaded.checkpoint.name!r} makes no images: name a checkpoint that does.")

    from ..hub_cards.demo_images import ASKED, MEDICAL
    from .demonstration import PROMPTS, Demonstration, real_figure

    def note(text: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {text}", flush=True)

    shown = Demonstration(loaded, folder, seed)
    note(f"model: {loaded.checkpoint.name} ({loaded.checkpoint.revision})")
    answers: list[tuple[Figure, list[Answer]]] = []
    for image in ASKED:
        pixels = image.open()
        answers.append((real_figure(image, pixels, image.name), shown.answers(image.questions, pixels)))
        for answer in answers[-1][1]:
            verdict = "right" if answer.right else f"wrong, it is: {answer.truth}"
            note(f"{image.name}: {answer.question} -> {answer.answer} ({verdict})")
    drawings: list[tuple[str, str, list[Figure]]] = []
    for number, (modality, prompt) in enumerate(PROMPTS.items(), start=1):
        drawings.append((modality, prompt, shown.drawings(modality)))
        note(f"drawn, {number} of {len(PROMPTS)}: {prompt}")
    edits = shown.edits()
    for edit in edits:
        note(f"{edit.title}: {'succeeded' if edit.succeeded else 'failed'}: {edit.verdict}")
    named = sum(found[0].right for _, found in answers[: len(MEDICAL)])
    summary = f"{named} of {len(MEDICAL)} modalities of real images named right"
    facts = _facts(loaded, shown, seed) | {
        "Time": f"{time.monotonic() - started:.1f} s, {time.process_time() - busy:.1f} s of processor time"
    }
    _write(shown, summary, answers, drawings, edits, facts)
    note(f"{summary}; see {folder / PAGE} and {folder / SHEET}")


def _made_folder(out: str) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out!r} ({error.strerror}): choose another --out.") from error
    return folder


def _facts(loaded: "Loaded", shown: "Demonstration", seed: int) -> dict[str, Any]:
    """What the foot of the page says of the run."""
    import torch
    import transformers

    from ..version import __version__

    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return {
        "Model": f"{loaded.checkpoint.name}, {parameters:,} parameters",
        "Revision": loaded.checkpoint.revision,
        "Seed": seed,
        "Device": f"{loaded.model.device}, {loaded.model.dtype}".replace("torch.", ""),
        "Versions": f"unimedvl {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "Written": time.strftime("%Y-%m-%d %H:%M"),
        **{f"Settings of {name}": settings for name, settings in shown.settings.items()},
    }


def _write(
    shown: "Demonstration",
    summary: str,
    answers: list[tuple["Figure", list["Answer"]]],
    drawings: list[tuple[str, str, list["Figure"]]],
    edits: list["Edit"],
    facts: dict[str, Any],
) -> None:
    """The page and the contact sheet."""
    from ..checkpoint.provenance import save_generated_image
    from ..evaluation.contact_sheets import draw_rows
    from ..unimed5m.pages import render_page
    from ..utils.whole_files import write_text

    values = {"summary": summary, "answers": answers, "drawings": drawings, "edits": edits, "facts": facts}
    page = render_page("demo", notice=NOTICE, sheet=SHEET, **values)
    write_text(shown.folder / PAGE, page)
    asked = [(_caption(figure.caption, *_lines(found)), figure.image) for figure, found in answers]
    rows: list[Any] = [([NOTICE, f"{facts['Model']}: {summary}"], asked)]
    for first, second in zip(drawings[::2], drawings[1::2], strict=True):
        made = [(f"synthetic: {prompt}", figure.image) for _, prompt, figures in (first, second) for figure in figures]
        rows.append(([], made))
    for edit in edits:
        cells = [(_caption(f"{'synthetic, ' * f.synthetic}{f.caption}"), f.image) for f in edit.figures]
        verdict = f"{'SUCCEEDED' if edit.succeeded else 'FAILED'}: {edit.verdict}"
        rows.append(([f"{edit.title}: {edit.prompt}", verdict], cells))
    save_generated_image(
        draw_rows(rows, CELL),
        shown.folder / SHEET,
        overwrite=True,
        composite=True,
        model=shown.checkpoint.name,
        revision=shown.checkpoint.revision,
        seed=shown.seed,
        settings=shown.settings,
    )


def _lines(answers: list["Answer"]) -> list[str]:
    lines = []
    for found in answers:
        lines += [found.question, f"  {found.answer}", "  RIGHT" if found.right else f"  WRONG: {found.truth}"]
    return lines


def _caption(*lines: str) -> str:
    return "\n".join(part for line in lines for part in textwrap.wrap(line, LETTERS, subsequent_indent="  "))


if __name__ == "__main__":
    sys.exit(run_module(main))
