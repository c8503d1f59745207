"""The image of the README: `python docs/site/readme_image.py [--model M]` draws docs/figures/nano.png.

What the shipped nano answers about two images that Python packages hold, draws from words and makes of images: the
first results of seed 0, as `make demo` shows them, whatever they are.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from typer import Option

from unimedvl.checkpoint.loading import load
from unimedvl.checkpoint.provenance import NOTICE, save_generated_image
from unimedvl.commands.demonstration import PROMPTS, Demonstration
from unimedvl.hub_cards.demo_images import FUNDUS, ULTRASOUND
from unimedvl.utils.command_line import run_module

README_IMAGE = Path(__file__).resolve().parents[1] / "figures" / "nano.png"
DRAWN = ("CXR", "CT", "CFP", "HIS")
COLUMNS, INK, FAINT = 6, "#1d2b2a", "#5b6b69"
# Of a cell in inches: image, and the words below it.
SIDE, WORDS, DOTS = 2.0, 0.62, 110
Cell = tuple[Image.Image, str, str]


def cells_of(shown: Demonstration) -> list[Cell]:
    """Image, what was asked, and what came back, for every cell, row by row."""
    cells: list[Cell] = []
    for image in (FUNDUS, ULTRASOUND):
        pixels = image.open()
        answer = shown.answers(image.questions[:1], pixels)[0]
        verdict = "" if answer.right else f" (wrong: {answer.truth})"
        cells.append((pixels, answer.question, f"→ {answer.answer}{verdict}"))
    cells += [(shown.drawings(modality)[0].image, f"“{PROMPTS[modality]}”", "drawn") for modality in DRAWN]
    for edit in shown.edits():
        before, after = edit.figures[:2]
        cells += [(before.image, edit.prompt, "given"), (after.image, "", "made")]
    return cells


def draw(cells: list[Cell], foot: str) -> Image.Image:
    """Rows of `COLUMNS` cells with their words below them, and a line at the foot."""
    rows = -(-len(cells) // COLUMNS)
    size = COLUMNS * SIDE, rows * (SIDE + WORDS) + 0.3
    figure = Figure(figsize=size, dpi=DOTS)
    canvas = FigureCanvasAgg(figure)
    for number, (image, asked, result) in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        bottom = size[1] - (row + 1) * SIDE - row * WORDS
        box = (
            (column * SIDE + 0.06) / size[0],
            (bottom + 0.03) / size[1],
            (SIDE - 0.12) / size[0],
            (SIDE - 0.06) / size[1],
        )
        axes = figure.add_axes(box)
        axes.imshow(image.convert("RGB"), interpolation="lanczos" if max(image.size) < 200 else "antialiased")
        axes.axis("off")
        left = (column * SIDE + 0.08) / size[0]
        figure.text(left, (bottom - 0.18) / size[1], asked, fontsize=8, color=FAINT)
        figure.text(left, (bottom - 0.38) / size[1], result, fontsize=8.5, color=INK, fontweight="bold")
    figure.text(0.08 / size[0], 0.1 / size[1], foot, fontsize=8, color=FAINT)
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def main(
    model: Annotated[str | None, Option(help="Checkpoint; the nano by default.")] = None,
    out: Annotated[Path, Option(help="The file (PNG).")] = README_IMAGE,
    seed: Annotated[int, Option(help="Of all draws.")] = 0,
) -> None:
    """Ask, draw and edit, and write the image with its synthetic-image record."""
    loaded = load(model)
    with tempfile.TemporaryDirectory() as folder:
        shown = Demonstration(loaded, Path(folder), seed)
        cells = cells_of(shown)
    millions = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    foot = f"Answered, drawn and edited by the nano of this package ({millions:.0f} million parameters). {NOTICE}"
    record = {"model": loaded.checkpoint.name, "revision": loaded.checkpoint.revision, "seed": seed}
    save_generated_image(draw(cells, foot), out, overwrite=True, composite=True, settings=shown.settings, **record)


if __name__ == "__main__":
    sys.exit(run_module(main))
