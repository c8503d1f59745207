"""Which latent should the nano draw in? Autoencoders of one seed and budget, and what a small flow makes of each.

    python -m examples.nano.latent_comparison --work WORK --out OUT [--only "NAME;NAME"]

Every candidate of `CANDIDATES` adds to, or changes, one ingredient. It is scored on the held-out part of the training
split (reconstructions of 96 pixels) and by what a small DiT draws after the same steps on its latents, conditioned on
the modality, at 64 pixels: Frechet and kernel distances to training images in the features of EfficientNet-lite0,
which teaches nothing, and how much the squares of the latent tokens show. Finished candidates are kept.
"""

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from PIL import Image
from typer import Option

from benchmarks.origin import origin
from unimedvl.evaluation.metrics.distributions import frechet_distance, kernel_distance
from unimedvl.evaluation.metrics.image_features import FeatureExtractor
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json, write_json

from .autoencoder import (
    Autoencoder,
    LatentRecipe,
    as_images,
    decode,
    encode,
    train_autoencoder,
)
from .contact_sheets import draw_rows
from .frechet import lite0_features
from .image_crops import Images, center_squares, read_images
from .model import UNIT
from .resumable_loop import one_cycle
from .token_borders import border_ratio

SIDE = 96  # of reconstructions
FLOW_SIDE = 64  # of what is drawn
STRIDE_4 = LatentRecipe(channels=(16, 32, 64), latent_channels=4)
STRIDE_8 = LatentRecipe(channels=(16, 32, 64, 128), latent_channels=16)
NOISY = dataclasses.replace(STRIDE_4, noise=0.25)
# Each with what it is compared with; all but the last have 16 numbers in a token of 8 pixels.
CANDIDATES: dict[str, tuple[LatentRecipe, str | None]] = {
    "stride 4, 4 channels": (STRIDE_4, None),
    "stride 8, 16 channels": (STRIDE_8, "stride 4, 4 channels"),
    "noise": (NOISY, "stride 4, 4 channels"),
    "noise, alignment": (dataclasses.replace(NOISY, alignment=0.05), "noise"),
    "noise, perceptual": (dataclasses.replace(NOISY, perceptual=0.02), "noise"),
    "noise, ten times the divergence": (dataclasses.replace(NOISY, divergence=1e-3), "noise"),
    "noise, 8 channels": (dataclasses.replace(NOISY, latent_channels=8), "noise"),
}
# Whether more is better (1), less (-1), or what is nearest to "one".
SCORES: dict[str, Any] = {
    "psnr": 1,
    "ssim": 1,
    "dice": 1,
    "frechet": -1,
    "kernel": -1,
    "frechet of reconstructions": -1,
    "border ratio": "one",
    "border ratio of reconstructions": "one",
    "step over real": "one",
}
TRAINED_PER_MODALITY = 128
DRAWN_PER_MODALITY = 32
SAMPLER_STEPS = 12
FLOW_BATCH, FLOW_RATE = 16, 2e-3


@dataclasses.dataclass
class Examples:
    """What the flow is trained on: square images uint8 (N, 3, H, W) and the numbers (N,) of their modalities."""

    squares: torch.Tensor
    labels: torch.Tensor
    modalities: list[str]

    def drawn_labels(self) -> torch.Tensor:
        """As many of each modality as are drawn: no more than there are real ones."""
        counts = torch.bincount(self.labels)
        return torch.cat([torch.full((min(int(n), DRAWN_PER_MODALITY),), i) for i, n in enumerate(counts)])

    def first(self, labels: torch.Tensor) -> torch.Tensor:
        """As many real squares of each modality as in `labels`."""
        wanted = Counter(labels.tolist())
        places = [torch.nonzero(self.labels == label)[: wanted[label], 0] for label in sorted(wanted)]
        return self.squares[torch.cat(places)]


def examples_of(images: Images, seed: int, side: int = FLOW_SIDE) -> Examples:
    """At most `TRAINED_PER_MODALITY` images of each modality."""
    order = numpy.random.default_rng(seed).permutation(images.places(masks=False)).tolist()
    modalities = sorted({images.modalities[place] for place in order})
    chosen = [
        [place for place in order if images.modalities[place] == modality][:TRAINED_PER_MODALITY]
        for modality in modalities
    ]
    labels = torch.tensor([label for label, places in enumerate(chosen) for _ in places])
    return Examples(center_squares(images.chosen(sum(chosen, [])), side), labels, modalities)


def train_flow(
    latents: torch.Tensor, labels: torch.Tensor, patch: int, steps: int, seed: int
) -> DiTTransformer2DModel:
    """A small DiT that predicts the velocity from latents (N, C, H, W) to noise, a modality as often as another."""
    torch.manual_seed(seed)
    kinds = int(labels.max()) + 1
    flow = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        num_layers=4,
        norm_num_groups=1,
        sample_size=latents.shape[2],
        patch_size=patch,
        num_embeds_ada_norm=kinds,
    )
    module: Any = flow
    optimizer = torch.optim.AdamW(module.parameters(), lr=FLOW_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = one_cycle(optimizer, FLOW_RATE, steps, rising=0.1)
    evenly = 1.0 / torch.bincount(labels)[labels]
    module.train()
    for _ in range(steps):
        index = torch.multinomial(evenly, FLOW_BATCH, replacement=True)
        clean, noise = latents[index], torch.randn(FLOW_BATCH, *latents.shape[1:])
        times = torch.randn(FLOW_BATCH).sigmoid()
        mixed = torch.lerp(clean, noise, times[:, None, None, None])
        velocity = module(mixed, timestep=times * 1000, class_labels=labels[index]).sample
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(velocity, noise - clean).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


@torch.no_grad()
def draw_latents(flow: Any, labels: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Latents (N, *shape) of these modalities, by Euler steps of equal size from noise."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(labels), *shape, generator=generator)
    made = []
    for part, kinds in zip(latents.split(64), labels.split(64), strict=True):
        for step in range(SAMPLER_STEPS):
            times = torch.full((len(part),), 1000 * (1 - step / SAMPLER_STEPS))
            part = part - flow(part, timestep=times, class_labels=kinds).sample / SAMPLER_STEPS
        made.append(part)
    return torch.cat(made)


def mean_step(images: list[Image.Image]) -> float:
    """Mean difference in levels of neighboring pixels: grain raises it, and blur lowers it."""
    levels = [numpy.asarray(image, dtype=numpy.float64) for image in images]
    return float(numpy.mean([numpy.abs(numpy.diff(image, axis=axis)).mean() for image in levels for axis in (0, 1)]))


@dataclasses.dataclass
class Comparison:
    """What all candidates share: data, features of real images, budget and seed."""

    work: Path
    data: tuple[Images, Images]
    examples: Examples
    extractor: FeatureExtractor
    steps: int
    flow_steps: int
    seed: int

    @cached_property
    def real(self) -> torch.Tensor:
        """Training squares uint8 (N, 3, H, W), as many of each modality as are drawn."""
        return self.examples.first(self.examples.drawn_labels())

    @cached_property
    def real_features(self) -> numpy.ndarray:
        """Features of `real`, float64 (N, D)."""
        return self.extractor(as_images(self.real))

    def score_flow(self, autoencoder: Autoencoder, recipe: LatentRecipe, sheet: Path) -> dict[str, Any]:
        """Train a flow on the latents of the examples and score what it draws; writes a contact sheet, too."""
        config = autoencoder.config
        latents = (encode(autoencoder, self.examples.squares) - config.shift_factor) * config.scaling_factor
        started = time.perf_counter()
        flow = train_flow(latents, self.examples.labels, UNIT // recipe.stride, self.flow_steps, self.seed)
        seconds = time.perf_counter() - started
        labels = self.examples.drawn_labels()
        drawn = draw_latents(flow, labels, tuple(latents.shape[1:]), self.seed)
        made = as_images(decode(autoencoder, drawn / config.scaling_factor + config.shift_factor))
        copies, truths = as_images(decode(autoencoder, encode(autoencoder, self.real))), as_images(self.real)
        by_modality = {
            name: [image for image, kind in zip(made, labels.tolist(), strict=True) if kind == label]
            for label, name in enumerate(self.examples.modalities)
        }
        draw_rows([(name, images[:8]) for name, images in by_modality.items()]).save(sheet)
        features = self.extractor(made)
        return {
            "flow seconds": round(seconds),
            "drawn": len(made),
            "frechet": frechet_distance(features, self.real_features),
            "kernel": kernel_distance(features, self.real_features),
            "frechet of reconstructions": frechet_distance(self.extractor(copies), self.real_features),
            "border ratio": border_ratio(made),
            "border ratio by modality": {name: border_ratio(images) for name, images in by_modality.items()},
            "border ratio of reconstructions": border_ratio(copies),
            "border ratio of real images": border_ratio(truths),
            "step over real": mean_step(made) / mean_step(truths),
        }

    def run(self, name: str, folder: Path) -> dict[str, Any]:
        """Train and score one candidate, or read what was scored before.

        Raises:
            ValueError: if that was made with other settings.
        """
        recipe, reference = CANDIDATES[name]
        fields = dataclasses.asdict(recipe) | {"channels": list(recipe.channels)}
        settings = {"steps": self.steps, "flow steps": self.flow_steps, "seed": self.seed, "recipe": fields}
        result = folder / "result.json"
        if result.is_file():
            kept = read_json(result)
            if kept["settings"] != settings:
                raise ValueError(f"{result} was made with other settings: choose another --out.")
            return kept
        autoencoder, record = train_autoencoder(
            self.work,
            folder / "autoencoder",
            self.steps,
            seed=self.seed,
            recipe=recipe,
            side=SIDE,
            shapes=[(FLOW_SIDE, FLOW_SIDE)],
            data=self.data,
        )
        scores = {kind: record[kind] for kind in ("psnr", "ssim", "dice") if kind in record}
        values = {
            "candidate": name,
            "compared with": reference,
            "settings": settings,
            "parameters": record["parameters"],
            "autoencoder seconds": round(record["seconds"]),
            "scores": scores | self.score_flow(autoencoder, recipe, folder / "drawn.png"),
        }
        write_json(result, values)
        print(json.dumps(values), flush=True)
        return values


def folder_of(name: str) -> str:
    """A file name for a candidate."""
    return name.replace(", ", "-").replace(" ", "_")


def comparisons(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each ingredient changes: scores of a candidate and of the one without it, and how much better it is.

    The gain is in the unit of the score, positive where the ingredient helps; of the border ratio and the step over
    real images it is how much nearer to one it comes.
    """
    by = {result["candidate"]: result["scores"] for result in results}
    rows = []
    for result in results:
        reference = by.get(result["compared with"])
        if reference is None:
            continue
        for name, better in SCORES.items():
            if name in reference and name in result["scores"]:
                before, after = reference[name], result["scores"][name]
                gain = abs(before - 1) - abs(after - 1) if better == "one" else (after - before) * better
                rows.append(
                    {
                        "candidate": result["candidate"],
                        "compared with": result["compared with"],
                        "score": name,
                        "reference": before,
                        "value": after,
                        "gain": gain,
                    }
                )
    return rows


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    out: Annotated[Path, Option(help="Folder of the candidates and the results.")],
    steps: Annotated[int, Option(help="Of each autoencoder.")] = 300,
    flow_steps: Annotated[int, Option(help="Of the flow on each latent.")] = 300,
    only: Annotated[str, Option(metavar="NAME;NAME", help="Candidates; all of them without it.")] = "",
    seed: int = 0,
) -> None:
    names = [name.strip() for name in only.split(";")] if only else list(CANDIDATES)
    unknown = sorted(set(names) - set(CANDIDATES))
    if unknown:
        raise ValueError(f"no candidate {unknown[0]!r}: choose of {'; '.join(CANDIDATES)}.")
    made = origin()
    data = read_images(work, "train"), read_images(work, "validation")
    examples = examples_of(data[0], seed)
    comparison = Comparison(work, data, examples, lite0_features(), steps, flow_steps, seed)
    results = [comparison.run(name, out / folder_of(name)) for name in names]
    report = {
        "origin": made,
        "features": comparison.extractor.name,
        "side": SIDE,
        "drawn side": FLOW_SIDE,
        "runs": results,
        "comparisons": comparisons(results),
    }
    write_json(out / "results.json", report)


if __name__ == "__main__":
    sys.exit(run_module(main))
