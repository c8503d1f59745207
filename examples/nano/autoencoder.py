"""A small image autoencoder (diffusers `AutoencoderKL`) trained from scratch on the images of the records.

    python -m examples.nano.autoencoder --work WORK --out FOLDER [--steps 4000] [--device cuda]

`examples/nano/latent_comparison.py` compares latents; `benchmarks/results/latents.json` holds what it found. After the
same few steps stride 4 is closer to the images than stride 8 with as many numbers in a token, and what a flow draws in
it is closer to real images, though its tokens show more. Noise before the decoder changed little. The perceptual term
of `RECIPE` was not compared.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from typer import Option

from unimedvl.evaluation.metrics.images import psnr, ssim
from unimedvl.evaluation.metrics.masks import dice, read_mask
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import write_json

from .image_crops import Images, center_squares, random_crops, read_images
from .model import SIDE
from .prepare import record_digests
from .resumable_loop import EVERY, ResumableSteps, one_cycle
from .teacher import GRID_CELL, GRID_CHANNELS, Teacher, alignment_loss

# An `AutoencoderKL`: diffusers' types hide that it is a module.
Autoencoder: TypeAlias = Any

MASK_SHARE = 0.1  # share of rendered segmentation masks among the training images
BATCH = 32  # images encoded or decoded at once when nothing is trained
SCALED_IMAGES = 256
ALIGNED_SHARE = 0.5  # of the steps, over which the weight of the alignment falls to zero


@dataclass(frozen=True)
class LatentRecipe:
    """An autoencoder and the terms of its loss, beside the mean squared error over pixel values in [-1, 1].

    Attributes:
        channels: widths of the levels; each level after the first halves the sides.
        latent_channels: numbers in a cell of the latent.
        absolute: weight of the mean absolute error.
        divergence: weight of the Kullback-Leibler divergence from a standard normal, a mean over latent values.
        noise: what the decoder sees added to the latents, as standard deviations of the latents: an image has the
            absolute value of a normal number of this deviation.
        alignment: weight at the first step of the distance from a teacher's features (see `teacher.py`), which
            falls to zero over the first half of the steps.
        perceptual: weight of the distance of the teacher's first features.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    latent_channels: int = 16
    absolute: float = 0.1
    divergence: float = 1e-4
    noise: float = 0.0
    alignment: float = 0.0
    perceptual: float = 0.0

    def config(self) -> dict[str, Any]:
        """The fields of `AutoencoderKL`."""
        return {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * len(self.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(self.channels),
            "block_out_channels": list(self.channels),
            "layers_per_block": 1,
            "latent_channels": self.latent_channels,
            "norm_num_groups": 8,
            "act_fn": "silu",
            "mid_block_add_attention": False,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }

    @property
    def stride(self) -> int:
        """Pixels of a cell of the latent along one side."""
        return 2 ** (len(self.channels) - 1)


RECIPE = LatentRecipe(channels=(16, 32, 64), latent_channels=4, noise=0.25, perceptual=0.02)


def crop_shapes(side: int) -> tuple[tuple[int, int], ...]:
    """Training crops (height, width) in pixels, of multiples of 8: half of the time small squares, which allow more
    steps in the same time, else whole squares and narrower crops."""
    small, narrow = side * 2 // 3 // 8 * 8, side * 3 // 4 // 8 * 8
    return ((small, small),) * 3 + ((side, side), (side, narrow), (narrow, side))


def initialize(autoencoder: Autoencoder) -> None:
    """Start every residual branch at zero and keep the variance through the other convolutions.

    The short runs of a nano gain 1.8 dB over PyTorch's default, which shrinks the signal at every layer.
    """
    for name, module in autoencoder.named_modules():
        if isinstance(module, nn.Conv2d):
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)


class TrainedAutoencoder(nn.Module):
    """The autoencoder, with the linear map from its tokens to the teacher's features where it is aligned with
    them."""

    def __init__(self, recipe: LatentRecipe):
        super().__init__()
        autoencoder: Autoencoder = AutoencoderKL(**recipe.config())
        initialize(autoencoder)
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        self.recipe = recipe
        cells = GRID_CELL // recipe.stride
        self.map = nn.Conv2d(recipe.latent_channels, GRID_CHANNELS, cells, cells) if recipe.alignment else None

    def forward(self, images: torch.Tensor, teacher: Teacher | None, progress: float) -> dict[str, torch.Tensor]:
        """The unweighted terms of the loss of images (N, 3, H, W) in [-1, 1], `progress` in [0, 1] of the steps."""
        recipe = self.recipe
        posterior = self.autoencoder.encode(images).latent_dist
        mean, logarithm = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * logarithm).exp() * torch.randn_like(mean)
        shown = latents
        if recipe.noise:
            size = recipe.noise * torch.randn(len(latents), 1, 1, 1, device=latents.device).abs()
            shown = latents + size * latents.detach().std() * torch.randn_like(latents)
        decoded = self.autoencoder.decode(shown).sample.float()
        error = decoded - images
        terms = {
            "square": error.square().mean(),
            "absolute": error.abs().mean(),
            "divergence": 0.5 * (mean.square() + logarithm.exp() - 1.0 - logarithm).mean(),
        }
        if teacher is not None and recipe.perceptual:
            terms["perceptual"] = teacher.distance(decoded, images)
        if teacher is not None and self.map is not None and progress < ALIGNED_SHARE:
            terms["alignment"] = alignment_loss(self.map(latents).float(), teacher.grid(images).float())
        return terms

    def weights(self, progress: float) -> dict[str, float]:
        """The weights of the terms at this share of the steps."""
        recipe = self.recipe
        return {
            "square": 1.0,
            "absolute": recipe.absolute,
            "divergence": recipe.divergence,
            "perceptual": recipe.perceptual,
            "alignment": recipe.alignment * max(0.0, 1 - progress / ALIGNED_SHARE),
        }


@torch.no_grad()
def encode(autoencoder: Autoencoder, squares: torch.Tensor) -> torch.Tensor:
    """Modes of the latents, float32 on the processor, of uint8 images (N, 3, H, W)."""
    device = autoencoder.device
    parts = [part.to(device).float() / 127.5 - 1.0 for part in squares.split(BATCH)]
    return torch.cat([autoencoder.encode(part).latent_dist.mode().float().cpu() for part in parts])


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """8-bit images (N, 3, H, W) on the processor of latents as `encode` gives them."""
    device = autoencoder.device
    parts = [autoencoder.decode(part.to(device)).sample.float().clamp(-1, 1) for part in latents.split(BATCH)]
    return torch.cat([((part + 1) * 127.5).round().to(torch.uint8).cpu() for part in parts])


def as_images(pixels: torch.Tensor) -> list[Image.Image]:
    """RGB images of uint8 (N, 3, H, W)."""
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]


def reconstruction_scores(autoencoder: Autoencoder, images: Images, side: int) -> dict[str, float]:
    """Mean PSNR in dB and SSIM over the central squares of the images, mean Dice over those of masks that are not
    empty; latents at their mode."""

    def pairs(masks: bool) -> list[tuple[Image.Image, Image.Image]]:
        places = images.places(masks)
        if not places:
            return []
        squares = center_squares(images.chosen(places), side)
        return list(zip(as_images(decode(autoencoder, encode(autoencoder, squares))), as_images(squares), strict=True))

    shown = pairs(False)
    ratios = [psnr(made, truth) for made, truth in shown]
    scores = {
        "psnr": _mean([ratio for ratio in ratios if ratio is not None]),
        "ssim": _mean([ssim(made, truth) for made, truth in shown]),
        "images": len(shown),
    }
    overlaps = [dice(made, truth) for made, truth in pairs(True) if read_mask(truth).any()]
    return scores | ({"dice": _mean(overlaps), "masks": len(overlaps)} if overlaps else {})


def _mean(values: Sequence[float]) -> float:
    return float(numpy.mean(values))


def train_autoencoder(
    work: Path,
    folder: str | Path,
    steps: int = 4000,
    batch_size: int = 4,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
    recipe: LatentRecipe = RECIPE,
    device: str = "cpu",
    side: int = SIDE,
    shapes: Sequence[tuple[int, int]] | None = None,
    data: tuple[Images, Images] | None = None,
) -> tuple[Autoencoder, dict]:
    """Train for `steps`, from the last checkpoint in `folder` on, and save there.

    Afterwards `scaling_factor` and `shift_factor` are set so that the training latents have mean 0 and variance 1
    (one number each for all channels, as in FLUX).

    Args:
        device: on a GPU the network computes in bfloat16, its weights stay in float32.
        side: longer side in pixels of the images as the model reads them.
        shapes: (height, width) of the crops, drawn alike; those of `crop_shapes` without them.
        data: the training and the held-out images of `work`, where they have been read before.

    Returns:
        The autoencoder, and its record: settings, seconds, and the scores of `reconstruction_scores` on the held-out
        part.

    Raises:
        ValueError: where there are no records, or the checkpoint in `folder` was made with other settings.
    """
    images, held_out = data or (read_images(work, "train"), read_images(work, "validation"))
    images = images.to(device)
    shapes = shapes or crop_shapes(side)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    trained = TrainedAutoencoder(recipe).to(device)
    teacher = Teacher().to(device) if recipe.alignment or recipe.perceptual else None
    optimizer = torch.optim.AdamW(trained.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = one_cycle(optimizer, learning_rate, steps, rising=0.05)
    settings = {
        "batch": batch_size,
        "rate": learning_rate,
        "seed": seed,
        "side": side,
        "shapes": [list(shape) for shape in shapes],
        "recipe": dataclasses.asdict(recipe) | {"channels": list(recipe.channels)},
    }
    course = ResumableSteps(
        folder, steps, trained, optimizer, schedule, generator, {**settings, **record_digests(work)}
    )
    rarity = images.rarity(MASK_SHARE)
    for step in course:
        progress = (step - 1) / steps
        shape = shapes[int(torch.randint(len(shapes), (1,), generator=generator))]
        index = torch.multinomial(rarity, batch_size, replacement=True, generator=generator).to(device)
        batch = random_crops(images, index, shape, side, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda):
            terms = trained(batch, teacher, progress)
        weights = trained.weights(progress)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % EVERY == 0:
            said = "  ".join(f"{name} {term.item():.4f}" for name, term in terms.items())
            print(
                f"autoencoder {step}/{steps}  {said}  {course.seconds:.0f} s, {course.seconds_left(step):.0f} s left",
                flush=True,
            )
    seconds = course.seconds
    autoencoder: Autoencoder = trained.autoencoder.eval().to(memory_format=torch.contiguous_format)
    scale_latents(autoencoder, images.to("cpu"), side)
    record = {
        "steps": steps,
        "seconds": seconds,
        "device": device,
        **settings,
        "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
        **reconstruction_scores(autoencoder, held_out, side),
    }
    print(f"autoencoder: {record['psnr']:.2f} dB on {record['images']} held-out images", flush=True)
    autoencoder.save_pretrained(folder)
    return autoencoder, record


def scale_latents(autoencoder: Autoencoder, images: Images, side: int) -> None:
    """Set `scaling_factor` and `shift_factor` from the latents of about `SCALED_IMAGES` images spread over the
    data."""
    places = images.places(masks=False)
    chosen = images.chosen(places[:: max(1, len(places) // SCALED_IMAGES)])
    values = encode(autoencoder, center_squares(chosen, side))
    autoencoder.register_to_config(scaling_factor=1.0 / values.std().item(), shift_factor=values.mean().item())


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    out: Annotated[Path, Option(help="Folder of the autoencoder.")],
    steps: int = 4000,
    batch: Annotated[int, Option(help="Crops in a step.")] = 4,
    side: Annotated[int, Option(help="Longer side in pixels of the images as the model reads them.")] = SIDE,
    seed: int = 0,
    device: str = "cpu",
    teacher: Annotated[bool, Option(help="Whether the loss has the terms of EfficientNet-lite2.")] = True,
) -> None:
    recipe = RECIPE if teacher else dataclasses.replace(RECIPE, alignment=0.0, perceptual=0.0)
    _, record = train_autoencoder(
        work, out, steps, batch_size=batch, seed=seed, recipe=recipe, device=device, side=side
    )
    write_json(out / "training.json", record)


if __name__ == "__main__":
    sys.exit(run_module(main))
