"""A sheet of pictures that a nano makes from words: one row for each prompt, generated images only.

python -m unimedvl.training.nano.sheet --model CHECKPOINT --out FILE.png
"""

import argparse

from PIL import Image, ImageDraw

from .evaluate import Nano

PROMPTS = (
    "A chest X-ray",
    "A frontal chest radiograph, labelled pneumonia",
    "A CT image of chest",
    "A brain MRI, labelled glioma tumor",
    "A brain MRI, labelled no tumor",
    "A T2 brain MRI",
    "An MRI image of hippocampus",
    "An ultrasound image of fetal head",
    "A colonoscopy image, labelled polyp",
    "An H&E histopathology image, lung, labelled lung adenocarcinoma",
    "An H&E histopathology image, lung, labelled benign lung tissue",
    "A blood smear light microscopy image",
)
COLUMNS, SCALE, CAPTION, MARGIN = 8, 2, 18, 4


def contact_sheet(nano: Nano, seed: int = 0) -> Image.Image:
    """One row of generated pictures for each of `PROMPTS`, with the prompt above it."""
    made = nano.draw([prompt for prompt in PROMPTS for _ in range(COLUMNS)], "t2i", seed=seed)
    side = made[0].width * SCALE
    height = CAPTION + side + MARGIN
    sheet = Image.new("RGB", (MARGIN + COLUMNS * (side + MARGIN), len(PROMPTS) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, prompt in enumerate(PROMPTS):
        pen.text((MARGIN, number * height + 3), prompt, fill="black")
        for column, picture in enumerate(made[number * COLUMNS : (number + 1) * COLUMNS]):
            place = (MARGIN + column * (side + MARGIN), number * height + CAPTION)
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--out", required=True, help="the sheet (PNG)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    contact_sheet(Nano(arguments.model), arguments.seed).save(arguments.out)


if __name__ == "__main__":
    main()
