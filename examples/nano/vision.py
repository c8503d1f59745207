"""Pre-training of the nano's ViT on the images of its own records.

    python -m examples.nano.vision --work WORK --out FOLDER [--teacher CACHE] [--steps 6000]

The paper's ViT comes pre-trained on image-text pairs (SigLIP 2). The nano's names the caption of an image, of which
its records hold a few dozen; draws every mask from the features of the patches; and follows the features of a
convolutional network trained on ImageNet (examples/nano/teacher_features.py), over the image and as a whole. A step
sees a part of the patches, which costs less and is an augmentation; the part grows. All heads are thrown away.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoTokenizer
from typer import Option

from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLVAEConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel
from unimedvl.utils.command_line import run_module
from unimedvl.utils.digests import hash_file
from unimedvl.utils.json_files import write_json

from .model import SIDE, VISION_FILE, VIT_PATCH, build_config, initialize_vision
from .prepare import record_digests
from .resumable_loop import EVERY, ResumableSteps, one_cycle
from .views import Augmentation, cells_inside, mask_views, random_views
from .vision_data import Corpus, Data, caption_targets, drawing_weights, read_corpus
from .vision_measures import measure
from .vision_network import (
    VisionPretraining,
    at,
    direction_loss,
    drop_paths,
    kept_patches,
    mask_loss,
    mask_patches,
    patch_positions,
    patches,
    pixel_loss,
)

NETWORK_FILE = "network.safetensors"  # ViT and heads, in float32
MEASURED = 5  # checkpoints from measurement to measurement
RECONSTRUCTED_FROM = 0.25  # share of the patches from which the others' pixels are predicted


@dataclass(frozen=True)
class Ingredients:
    """What a pre-training is made of; each can be left out by itself.

    Attributes:
        side: pixels of a view's side.
        layers: layers of the ViT, at most the nano's.
        kept: shares of the patches that the first and the last step see; it grows evenly between.
        focus: how much more often than by their rarity the images of FOCUS are drawn.
        distillation: weight of the teacher's spatial and of its pooled features.
        soft: share of the caption's target that the teacher's probes give.
        reconstruction: share of the steps, the first, in which nothing but dropped pixels is predicted.
        augmentation: of the views.
        mask_hidden: width within the head of masks; 0 for a linear one.
        average: decay of the averaged weights in each step; 0 for none.
        depth: probability with which the last layer's branches are skipped.
        mixed: share of the steps in which images are mixed in pairs.
        decay: weight decay of matrices.
    """

    side: int = SIDE
    layers: int = 6
    kept: tuple[float, float] = (0.25, 0.75)
    focus: float = 4.0
    distillation: float = 1.0
    soft: float = 0.0
    reconstruction: float = 0.0
    augmentation: Augmentation = Augmentation()
    mask_hidden: int = 384
    average: float = 0.998
    depth: float = 0.0
    mixed: float = 0.0
    decay: float = 0.05


class Averaged(nn.Module):
    """The network in training and, if wanted, the moving average of its weights."""

    def __init__(self, network: VisionPretraining, decay: float):
        super().__init__()
        self.network = network
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None

    def update(self) -> None:
        """Follow the network by one step."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    @property
    def best(self) -> VisionPretraining:
        """What is measured and kept."""
        if self.average is None:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, VisionPretraining)
        return averaged


def pixels_step(
    network: VisionPretraining, data: Data, ingredients: Ingredients, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """The loss of predicting the pixels of most patches of random images from the others (masked autoencoding)."""
    assert network.decoder is not None
    index = torch.randint(len(data.images.captions), (batch,), generator=generator).to(data.images.pixels.device)
    images, theta = random_views(data.images, index, generator, ingredients.augmentation, ingredients.side)
    inside = cells_inside(data.images, index, theta, ingredients.side // VIT_PATCH)
    kept = kept_patches(inside, RECONSTRUCTED_FROM, generator)
    positions = patch_positions(ingredients.side, ingredients.side).to(index.device)
    made = network.decoder(network.features(images, kept), kept, positions)
    return pixel_loss(made.float(), patches(images), kept)


def step_loss(
    network: VisionPretraining,
    data: Data,
    ingredients: Ingredients,
    batch: int,
    generator: torch.Generator,
    progress: float,
) -> torch.Tensor:
    """The loss of a random batch whose captions are named, masks drawn and teacher followed.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    side, half = ingredients.side, batch - batch // 2
    index, drawn = data.draw(batch, generator)
    images, theta = random_views(data.images, index, generator, ingredients.augmentation, side)
    targets = data.targets[index]
    followed = torch.arange(batch, device=index.device)
    if float(torch.rand((), generator=generator)) < ingredients.mixed:
        part = float(torch.rand((), generator=generator)) / 2
        images = torch.cat([images[:half].lerp(images[:half].roll(1, 0), part), images[half:]])
        targets = torch.cat([targets[:half].lerp(targets[:half].roll(1, 0), part), targets[half:]])
        followed = followed[half:]
    first, last = ingredients.kept
    inside = cells_inside(data.images, index, theta, side // VIT_PATCH)
    kept = kept_patches(inside, first + (last - first) * progress, generator)
    features = network.features(images, kept)
    loss = F.cross_entropy(network.captions(features).float(), targets)
    truth = at(mask_patches(mask_views(data.masks.pixels[drawn], theta[half:], side)), kept[half:])
    loss = loss + mask_loss(network.masks(features[half:], data.masks.kinds[drawn]).float(), truth)
    if data.teacher is not None and ingredients.distillation:
        wanted = at(data.teacher.views(index[followed], theta[followed], side // VIT_PATCH), kept[followed])
        spatial, pooled = network.taught(features[followed])
        whole = data.teacher.standardized[index[followed]]
        loss = loss + ingredients.distillation * (direction_loss(spatial, wanted) + direction_loss(pooled, whole))
    return loss


def pretrain(
    work: Path,
    folder: Path,
    steps: int,
    batch: int = 24,
    rate: float = 1e-3,
    seed: int = 0,
    teacher: Path | None = None,
    device: str = "cpu",
    ingredients: Ingredients = Ingredients(),
    start: Path | None = None,
) -> tuple[nn.Module, dict]:
    """Train for `steps`, from the last checkpoint in `folder` on; returns the ViT and what was measured on the
    held-out part.

    Args:
        work: what `prepare` has written.
        batch: images of a step, half drawn by caption and half by mask.
        rate: highest learning rate.
        teacher: cache of the teacher's features, filled where it is empty; None for no teacher.
        device: of training; a GPU computes in bfloat16 and keeps float32 weights.
        start: folder of a finished pre-training whose weights are trained further.

    Raises:
        ValueError: if `folder` holds the training of other settings, `work` holds no records, or the teacher is not
            installed.
    """
    return pretrain_on(read_corpus(work, teacher, device), folder, steps, batch, rate, seed, ingredients, start)


def pretrain_on(
    corpus: Corpus,
    folder: Path,
    steps: int,
    batch: int = 24,
    rate: float = 1e-3,
    seed: int = 0,
    ingredients: Ingredients = Ingredients(),
    start: Path | None = None,
) -> tuple[nn.Module, dict]:
    """As `pretrain`, on what was read before and on its device; writes NETWORK_FILE into `folder` at the end.

    Raises:
        ValueError: if `start` holds no finished pre-training, `folder` holds the training of other settings, or
            ingredients need a teacher and there is none.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device, taught = corpus.device, corpus.teacher if ingredients.distillation or ingredients.soft else None
    if ingredients.soft and taught is None:
        raise ValueError("soft captions come from a teacher: give a folder for its features (--teacher).")
    network = VisionPretraining(
        untrained(corpus.work, ingredients.layers),
        len(corpus.names),
        len(corpus.kinds),
        ingredients.mask_hidden,
        taught.channels if taught is not None else None,
        decoder=ingredients.reconstruction > 0,
    )
    if start is not None:
        load_start(network, start)
    if ingredients.depth:
        drop_paths(network.vit, ingredients.depth)
    model = Averaged(network.to(device), ingredients.average).train()
    images, masks = corpus.train
    targets = caption_targets(images, len(corpus.names), taught, ingredients.soft).to(device)
    data = Data(images, masks, targets, drawing_weights(images, ingredients.focus), taught)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    plain = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": ingredients.decay}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    schedule = one_cycle(optimizer, rate, steps, rising=0.1)
    settings = {
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "teacher": taught is not None,
        "start": None if start is None else hash_file(start / NETWORK_FILE),
        **json.loads(json.dumps(dataclasses.asdict(ingredients))),
        **record_digests(corpus.work),
    }
    course = ResumableSteps(folder, steps, model, optimizer, schedule, generator, settings)
    total = torch.zeros((), device=device)

    def measured_now() -> dict:
        return measure(model.best, *corpus.held_out, corpus.names, corpus.kinds, ingredients.side)

    for step in course:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            if step <= ingredients.reconstruction * steps:
                loss = pixels_step(network, data, ingredients, batch, generator)
            else:
                loss = step_loss(network, data, ingredients, batch, generator, step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.update()
        total += loss.detach()
        if step % EVERY == 0 and step < steps:
            print(f"step {step}: loss {float(total) / EVERY:.3f}, {course.seconds_left(step):.0f} s left", flush=True)
            total.zero_()
        if step % (MEASURED * EVERY) == 0 and step < steps:
            print(json.dumps({"step": step, **measured_now()}), flush=True)
    measured = {
        "steps": steps,
        "seconds": round(course.seconds, 1),
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in network.vit.parameters()),
        **measured_now(),
    }
    print(json.dumps(measured), flush=True)
    save_model(model.best, str(folder / NETWORK_FILE))
    return model.best.vit, measured


def load_start(network: VisionPretraining, start: Path) -> None:
    """Load the weights of a finished pre-training with the same heads.

    Raises:
        ValueError: if there is none, or its heads are others.
    """
    path = start / NETWORK_FILE
    if not path.is_file():
        raise ValueError(f"{start} holds no finished pre-training of a ViT: it would have a {NETWORK_FILE}.")
    weights, found = network.state_dict(), load_file(path)
    if {name: tensor.shape for name, tensor in weights.items()} != {
        name: tensor.shape for name, tensor in found.items()
    }:
        raise ValueError(f"{path} has other heads: train further on the same records with the same teacher.")
    network.load_state_dict(found)


def untrained(work: Path, layers: int | None = None) -> nn.Module:
    """A ViT of random weights (see `initialize_vision`); `layers` keeps the first of its layers alone."""
    config = build_config(AutoTokenizer.from_pretrained(work / "tokenizer"), UniMedVLVAEConfig().to_dict())
    vit: Any = UniMedVLModel(config).vit_model
    vit.encoder.layers = vit.encoder.layers[:layers]
    initialize_vision(vit)
    return vit


def save_vision(vit: nn.Module, path: Path) -> None:
    """Write the weights in bfloat16."""
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in vit.state_dict().items()
    }
    save_file(weights, path)


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    out: Annotated[Path, Option(help="Folder of the weights.")],
    teacher: Annotated[
        Path | None, Option(help="Folder for the features of EfficientNet-lite2, which teaches if this is given.")
    ] = None,
    steps: int = 6000,
    batch: Annotated[int, Option(help="Images of a step, half of them with masks.")] = 24,
    rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    kept: Annotated[str, Option(metavar="FIRST,LAST", help="Shares of the patches that steps see.")] = "0.25,0.75",
    soft: Annotated[float, Option(help="Share of a caption's target that probes of the teacher give.")] = 0.0,
    start: Annotated[Path | None, Option(help="Folder of a finished run to train further.")] = None,
) -> None:
    first, last = (float(share) for share in kept.split(","))
    ingredients = Ingredients(kept=(first, last), soft=soft)
    vit, measured = pretrain(work, out, steps, batch, rate, seed, teacher, device, ingredients, start)
    save_vision(vit, out / VISION_FILE)
    write_json(out / "training.json", measured)


if __name__ == "__main__":
    sys.exit(run_module(main))
