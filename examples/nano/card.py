"""The nano's card: its facts, the figures that were measured, and what was aimed at.

    python -m examples.nano.card --figures benchmarks/results/nano.json --out hub_cards/unimedvl-nano

FIGURES is one JSON file: "validation" (what `examples.nano.evaluate` writes), and, where they were measured, "frechet"
(`examples.nano.frechet`), "counterfactual" (the `change` of `unimedvl eval`), "left out" (of
`examples.nano.left_out_patient`), "specialists" (of `examples.nano.vision_specialists`) and "parts" (`parts.json` of
`examples.nano.train`). What was aimed at is stated here and nowhere else; a figure that is missing is a row that says
so.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from unimedvl.hub_cards.card_facts import CardFacts, Figure, Measured, read_facts
from unimedvl.hub_cards.model_card import UNNAMED, build_card, write_card
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json

from .generated_images import BY_CLASS, BY_MODALITY, CLOSER

FACTS = Path(__file__).with_name("card.yaml")
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """A figure of the card.

    Attributes:
        measured: what, in words.
        path: keys to its value in the file of figures.
        unit: "%" shows a share as percents; else what follows the number.
        least: what it is to reach; None for nothing.
        most: what it may reach; None for nothing.
        above: whether the whole interval is to lie above zero.
        digits: after the point.
    """

    measured: str
    path: tuple[str, ...]
    unit: str = ""
    least: float | None = None
    most: float | None = None
    above: bool = False
    digits: int = 2

    def text(self) -> str:
        """What is aimed at, in words."""
        if self.above:
            return "interval above 0"
        if self.least is not None:
            return f">= {self.number(self.least)}"
        return "" if self.most is None else f"<= {self.number(self.most)}"

    def number(self, value: float) -> str:
        """A value with its unit."""
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        return f"{value:.{self.digits}f} {self.unit}".strip()

    def met(self, value: float, low: float | None) -> bool | None:
        """Whether a figure with this lower bound reaches its aim; None where there is none."""
        if self.above:
            return low is not None and low > 0
        if self.least is not None:
            return value >= self.least
        return None if self.most is None else value <= self.most


def dice_of(name: str, least: float) -> Aim:
    """The overlap of masks of one kind."""
    return Aim(f"segmentation, Dice: {name}", ("validation", f"segmentation, Dice: {name}"), least=least)


UNET_KINDS = ("hc18: fetal head", "kvasir-seg: polyp", "monuseg: nuclei region")
SUPER = ("validation", "4x super-resolution")
AIMS = (
    Aim("modality, seven (validation holds no OCT)", ("validation", "modality"), "%", 0.99),
    Aim("what an image shows and what it does not", ("validation", "contrasts"), "%"),
    Aim("NIH pneumonia / no finding", ("validation", "NIH pneumonia / no finding"), "%", 0.88),
    Aim("LC25000 lung, 3 classes", ("validation", "LC25000 lung, 3 classes"), "%", 0.93),
    Aim("brain tumor, 4 classes (patients shared with training)", ("validation", "brain tumor, 4 classes"), "%", 0.85),
    Aim("referable diabetic retinopathy", ("validation", "referable diabetic retinopathy"), "%"),
    Aim("VQA-RAD closed", ("validation", "VQA-RAD closed"), "%"),
    Aim("VQA-RAD closed, gain over another image", ("validation", "VQA-RAD closed", "gain"), "%", above=True),
    dice_of("polyp", 0.70),
    dice_of("fetal head", 0.95),
    dice_of("hippocampus", 0.88),
    dice_of("nuclei", 0.72),
    dice_of("optic disc", 0.80),
    Aim("autoencoder, PSNR", ("validation", "autoencoder, PSNR"), "dB", digits=1),
    Aim("4x super-resolution, SSIM over bicubic", (*SUPER, "ssim", "gain over bicubic"), least=0.03, digits=3),
    Aim("4x super-resolution, PSNR over bicubic", (*SUPER, "psnr", "gain over bicubic"), "dB", 1.0),
    Aim("drawn images: modality recognized", ("validation", BY_MODALITY), "%", 0.97),
    Aim(
        "drawn images: class recognized, of the rate on real images",
        ("validation", BY_CLASS, "ratio to real"),
        least=0.95,
    ),
    Aim(
        "drawn images but OCT: closer to training images than 5 % of real ones",
        ("validation", CLOSER),
        "%",
        most=0.05,
    ),
    Aim("counterfactuals: asked change made", ("counterfactual",), least=0.30),
)


def figure_of(aim: Aim, figures: Found) -> Figure:
    """A row of the card; one without a number where the figure was not measured."""
    found: Any = figures
    for key in aim.path:
        found = found.get(key) if isinstance(found, Mapping) else None
    # A gain is a `paired_difference`, everything else a `mean_interval` or a rate with the same keys.
    value = found.get("value", found.get("difference")) if isinstance(found, Mapping) else None
    if value is None:
        return Figure(aim.measured, 0, "not measured", aim.text(), None)
    number: Callable[[float], str] = aim.number
    low, high = found.get("low"), found.get("high")
    shown = number(value) if low is None or high is None else f"{number(value)} ({number(low)} to {number(high)})"
    return Figure(aim.measured, int(found.get("count", 0)), shown, aim.text(), aim.met(value, low))


def distance_rows(figures: Found) -> list[Figure]:
    """Frechet distances by modality, beside those of the release before."""
    found = figures.get("frechet", {})
    rows = []
    for modality, ratio in sorted(found.get("ratio", {}).items()):
        after, before = (found[when][modality]["distance"] for when in ("after", "before"))
        value = f"{after:.1f}; the release before {before:.1f}: {100 * (ratio - 1):+.0f} %"
        number = found["after"][modality]["drawn"]
        rows.append(Figure(f"Frechet distance of drawn images, {modality}", number, value, "-40 %", ratio <= 0.6))
    return rows


def translation_rows(figures: Found) -> list[Figure]:
    """Translations for patients that were left out of short runs, beside the best map from gray level to level."""
    rows = []
    for patient, found in sorted(figures.get("left out", {}).items()):
        for translation, row in found.items():
            value = f"{row['nano']:.1f} dB; gray-level map {row['gray-level map']:.1f} dB"
            name = f"{translation}, run without patient {patient}"
            rows.append(Figure(name, row["slices"], value, "above the map", row["gain"] > 0))
    return rows


def probe_rows(figures: Found) -> list[Figure]:
    """Linear probes of the frozen ViT on held-out training patients, beside a small network on the same rows."""
    rows = []
    for source, found in sorted(figures.get("specialists", {}).items()):
        own = found.get("linear probe of the model's ViT")
        if own is not None:
            others = [
                f"{name} {100 * found[key]['accuracy']:.1f} %"
                for name, key in (("small network", "small network"), ("ImageNet probe", "linear probe"))
                if key in found
            ]
            folds = found["small network"].get("folds")
            more = f" (of {folds} folds, {found['small network']['number']} images)" if folds else ""
            value = f"{100 * own['accuracy']:.1f} %; {', '.join(others)}{more}"
            rows.append(Figure(f"linear probe of the ViT, held-out part: {source}", own["number"], value))
    return rows


def unet_rows(figures: Found) -> list[Figure]:
    """A U-Net's masks of held-out training images, for those that the nano was scored on."""
    masks = figures.get("specialists", {}).get("masks", {})
    numbers = figures.get("parts", {}).get("vision", {}).get("number", {})
    return [
        Figure(f"U-Net of all masks, Dice, held-out part: {kind}", numbers.get(kind, 0), f"{value:.2f}")
        for kind, value in sorted(masks.items())
        if kind in UNET_KINDS
    ]


def training_rows(parts: Found) -> list[Measured]:
    """Time, memory and pace of every part of the training."""
    rows = []
    for name, part in parts.items():
        seconds, samples = part["seconds"], part.get("samples", part.get("steps", 0) * part.get("batch", 0))
        pace = f"; {samples / seconds:.1f} samples a second" if samples else ""
        memory = f"{part['peak_memory_mib'] / 1024:.1f} GiB"
        time = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.0f} minutes"
        rows.append(Measured(f"training: {name}", part["device"], memory, f"{time}{pace}"))
    return rows


def missed(rows: list[Figure]) -> str:
    """One sentence of the aims that were not met."""
    names = [row.measured for row in rows if row.met is False]
    return f"Missed: {'; '.join(names)}." if names else "Every aim was met."


def facts_of(figures: Found, path: Path = FACTS) -> CardFacts:
    """The facts of the card, with the rows of its table."""
    facts = read_facts(path)
    rows = [figure_of(aim, figures) for aim in AIMS]
    rows += probe_rows(figures) + unet_rows(figures) + translation_rows(figures) + distance_rows(figures)
    parts = figures.get("parts", {})
    trained = {name: part for name, part in parts.items() if "steps" in part}
    if trained:
        steps = ", ".join(f"{name} {part['steps']:,}" for name, part in trained.items())
        # Of CPU cores: parts that run side by side share the hours of the clock.
        hours = sum(part.get("processor_seconds", 0.0) for part in parts.values()) / 3600
        devices = sorted({part["device"] for part in parts.values()})
        duration = f"{hours:.1f} hours of a CPU core; of each part see below"
        training = dataclasses.replace(facts.training, steps=steps, duration=duration, device=", ".join(devices))
        facts = dataclasses.replace(facts, training=training)
    measured = [*facts.measured, *training_rows(parts)]
    return dataclasses.replace(facts, figures=rows, measured=measured, limitations=[missed(rows), *facts.limitations])


def main(
    figures: Annotated[Path, Option(help="JSON file of all figures.")],
    out: Annotated[Path, Option(help="Folder of the release.")],
    repository: Annotated[str, Option(help="Hub id that the snippets name.")] = UNNAMED,
) -> None:
    """Write the card of a release."""
    write_card(out, build_card(out, facts_of(read_json(figures)), repository))


if __name__ == "__main__":
    sys.exit(run_module(main))
