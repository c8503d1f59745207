"""The figures of the concept pages: `python docs/site/figures.py` draws docs/figures/model.svg and blocks.svg.

The attention of blocks.svg is that of the model's own table of block rules.
"""

from html import escape
from pathlib import Path

import torch

from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind, block_layout, dense_mask, rope_position_ids

FIGURES = Path(__file__).resolve().parents[1] / "figures"
PAPER, INK, FAINT = "#ffffff", "#1d2b2a", "#5b6b69"
COLORS = {"text": "#dfe7e6", "vit": "#b7d7f0", "clean": "#f4d9a8", "noised": "#f0b3a4"}
FILL = {BlockKind.TEXT: "text", BlockKind.VIT: "vit", BlockKind.CLEAN: "clean", BlockKind.NOISED: "noised"}
FONT = "font-family='Helvetica, Arial, sans-serif'"

# An edit, named in rows and columns: the input image twice, the instruction, the image that is made, the next text.
SAMPLE = [
    ("input image, latents", "latents", BlockKind.CLEAN, 4),
    ("input image, patches", "patches", BlockKind.VIT, 4),
    ("instruction", "instruction", BlockKind.TEXT, 4),
    ("new image, noised", "noised", BlockKind.NOISED, 4),
    ("next text", "next", BlockKind.TEXT, 2),
]


def text(
    x: float, y: float, words: str, size: int = 13, anchor: str = "middle", color: str = INK, weight: str = ""
) -> str:
    """A line of words; x and y of its baseline."""
    bold = f" font-weight='{weight}'" if weight else ""
    place = f"x='{x:g}' y='{y:g}' font-size='{size}' text-anchor='{anchor}'"
    return f"<text {place} fill='{color}'{bold}>{escape(words)}</text>"


def rectangle(x: float, y: float, width: float, height: float, color: str, radius: int) -> str:
    """A filled rectangle with an edge and round corners."""
    place = f"x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}'"
    return f"<rect {place} rx='{radius}' fill='{color}' stroke='{INK}'/>"


def box(x: float, y: float, width: float, height: float, color: str, lines: list[str]) -> str:
    """A box with lines of words in its middle, the first one bold."""
    parts = [rectangle(x, y, width, height, color, 6)]
    top = y + height / 2 - 8.5 * (len(lines) - 1) + 4.5
    for number, line in enumerate(lines):
        parts.append(
            text(x + width / 2, top + 17 * number, line, 13 if number == 0 else 12, weight="600" if not number else "")
        )
    return "".join(parts)


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line with a head."""
    return f"<path d='M{x:g} {y:g} L{to_x:g} {to_y:g}' stroke='{INK}' stroke-width='1.4' marker-end='url(#head)'/>"


def drawing(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole figure on white, which reads on dark pages too."""
    head = (
        f"<marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker>"
    )
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {FONT}>\n"
        f"<title>{escape(title)}</title><defs>{head}</defs>\n"
        f"<rect width='{width}' height='{height}' rx='8' fill='{PAPER}'/>\n{body}\n</svg>\n"
    )


def model() -> str:
    """Inputs at the bottom, one stack of layers with two experts in the middle, outputs at the top."""
    parts = [
        box(20, 330, 170, 62, COLORS["vit"], ["SigLIP ViT", "an image to be read"]),
        box(215, 330, 170, 62, COLORS["text"], ["token embedding", "text"]),
        box(410, 330, 170, 62, COLORS["clean"], ["FLUX VAE encoder", "an image to be edited"]),
        box(605, 330, 175, 62, COLORS["noised"], ["noise", "an image to be generated"]),
        text(105, 425, "medical image"),
        text(300, 425, "question, instruction"),
        text(495, 425, "medical image"),
        text(692, 425, "seed"),
    ]
    parts += [arrow(x, 410, x, 395) for x in (105, 300, 495, 692)]
    parts += [arrow(x, 330, x, 296) for x in (105, 300, 495, 692)]
    parts += [
        rectangle(20, 150, 760, 144, "#f5f8f7", 8),
        text(400, 172, "Qwen2 layers, repeated: each with two experts (Mixture-of-Transformers)", 13, weight="600"),
        box(40, 184, 345, 44, COLORS["text"], ["understanding expert: text, patches, markers"]),
        box(415, 184, 345, 44, COLORS["noised"], ["generation expert: latents"]),
        box(
            40, 240, 720, 40, "#ffffff", ["one attention over all tokens: causal for text, bidirectional in an image"]
        ),
        arrow(212, 150, 212, 116),
        arrow(587, 150, 587, 116),
        box(97, 62, 230, 52, COLORS["text"], ["text head", "next token"]),
        box(472, 62, 230, 52, COLORS["noised"], ["flow head", "velocity; noise to latent in steps"]),
        arrow(212, 62, 212, 40),
        arrow(587, 62, 587, 40),
        text(212, 30, "answer, report, plan"),
        text(587, 30, "VAE decoder: image, mask, virtual stain, other modality"),
    ]
    return drawing(
        800, 440, "UniMedVL: one stack of layers with two experts reads text and images and makes both", parts
    )


def blocks() -> str:
    """Which token of an edit attends to which, with the position of each."""
    kinds: list[int] = []
    owners: list[int] = []
    for number, (_, _, kind, count) in enumerate(SAMPLE):
        patches = kind is not BlockKind.TEXT
        kinds += [0, *[int(kind)] * (count - 2), 0] if patches else [0] * count
        owners += [number] * count
    layout = block_layout(torch.tensor([kinds]))
    allowed = dense_mask(layout)[0]
    positions = rope_position_ids(layout)[0].tolist()
    cell, left, top, size = 22, 190, 62, len(kinds)
    parts = [text(left + cell * size / 2, 22, "may attend to (columns)", 13, weight="600")]
    start = 0
    for name, short, kind, count in SAMPLE:
        middle = start + count / 2
        color = COLORS[FILL[kind]]
        parts.append(rectangle(left + cell * start, 32, cell * count - 3, 24, color, 4))
        parts.append(text(left + cell * middle - 1, 48, short, 12))
        parts.append(rectangle(10, top + cell * start, 172, cell * count - 3, color, 4))
        parts.append(text(96, top + cell * middle + 3, name, 13))
        start += count
    for query in range(size):
        for key in range(size):
            color = COLORS[FILL[SAMPLE[owners[key]][2]]] if allowed[query, key] else "#ffffff"
            parts.append(
                f"<rect x='{left + cell * key}' y='{top + cell * query}' width='{cell - 3}' height='{cell - 3}' "
                f"fill='{color}' stroke='{INK if allowed[query, key] else '#d6dcdb'}' stroke-width='0.8'/>"
            )
        parts.append(text(left + cell * size + 24, top + cell * query + 15, str(positions[query]), 12, color=FAINT))
    parts.append(text(left + cell * size + 24, 48, "position", 12, color=FAINT))
    height = top + cell * size + 14
    return drawing(
        left + cell * size + 60,
        height,
        "Attention between the blocks of an edit, and the position of each token",
        parts,
    )


DRAWN = {"model": model, "blocks": blocks}


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for name, make in DRAWN.items():
        (FIGURES / f"{name}.svg").write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
