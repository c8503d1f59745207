"""Train the specialists on a benchmark's training split: the data that the benchmark's model may have seen as well.

python -m unimedvl.evaluation.specialists.train --benchmark unimed-mini=RECORDS --out FOLDER [--steps 1500]
unimedvl eval --model specialist:FOLDER --benchmark unimed-mini=RECORDS --out OUT
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any

import torch
from torch import nn
from typer import Option

from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.command_line import comma_separated, run_module

from ..benchmarks import BenchmarkData, get_benchmark
from ..samples import TASKS, Sample
from .specialist import ANSWERS, SEGMENTATION, Specialist, pixels

# Rarer answers are not worth a class.
MOST_ANSWERS = 300
BATCH = 32
logger = logging.getLogger(__name__)
# Images are kept as bytes: a quarter of the memory of floats.
Rows = dict[str, list[Any]]


def collect(samples: Iterable[Sample], side: int) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Training rows of each network, and the design of the specialist."""
    rows: dict[str, Rows] = {}
    for sample in samples:
        task = TASKS[sample.task]
        if not sample.inputs or (task.family == "answer" and sample.kind == "multiple_choice"):
            continue
        image = _bytes(shown_image(sample.inputs[-1]), side)
        if task.family == "answer":
            _add(rows, ANSWERS, image=image, text=sample.text, answer=sample.reference)
        elif sample.output is not None and task.family == "segmentation":
            target = str(sample.extra.get("target", ""))
            _add(rows, SEGMENTATION, image=image, truth=_bytes(shown_image(sample.output), side), target=target)
        elif sample.output is not None and task.family == "translation":
            _add(rows, sample.task, image=image, truth=_bytes(shown_image(sample.output), side))
    counts = Counter(rows.get(ANSWERS, {}).get("answer", []))
    design = {
        "side": side,
        "answers": [answer for answer, _ in counts.most_common(MOST_ANSWERS)],
        "targets": sorted(set(rows.get(SEGMENTATION, {}).get("target", []))),
        "tasks": sorted(name for name in rows if name not in (ANSWERS, SEGMENTATION)),
        "training_samples": {name: len(found["image"]) for name, found in sorted(rows.items())},
    }
    return rows, design


def _bytes(image: Any, side: int) -> torch.Tensor:
    return ((pixels(image, side) + 1) * 127.5).round().to(torch.uint8)


def _add(rows: dict[str, Rows], name: str, **values: Any) -> None:
    found = rows.setdefault(name, {key: [] for key in values})
    for key, value in values.items():
        found[key].append(value)


def fit(network: nn.Module, count: int, loss_of: Callable[[list[int]], torch.Tensor], steps: int, seed: int) -> float:
    """Train a network on random batches of rows with AdamW and a one-cycle learning rate.

    Args:
        network: trained in place, and in evaluation mode afterwards.
        count: number of rows to draw from.
        loss_of: the loss of a batch, from the places of its rows.
        steps: number of updates.
        seed: of the drawing.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    network.train()
    losses = []
    for _ in range(steps):
        chosen = torch.randint(count, (min(BATCH, count),), generator=generator).tolist()
        loss = loss_of(chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    network.eval()
    last = losses[-max(steps // 10, 1) :]
    return sum(last) / len(last)


def train(samples: Iterable[Sample], steps: int, side: int = 64, seed: int = 0) -> Specialist:
    """Specialists for every task that the samples have.

    Args:
        samples: the training split.
        steps: updates of each network.
        side: pixels of a side of the images, divisible by 4.
        seed: of initialization and batches.
    """
    torch.manual_seed(seed)
    rows, design = collect(samples, side)
    specialist = Specialist.build(design)
    for name, network in specialist.networks.items():
        loss = fit(network, len(rows[name]["image"]), _loss(name, network, rows[name], design), steps, seed)
        logger.info("%s: %d samples, loss %.4f", name, len(rows[name]["image"]), loss)
    return specialist


def _loss(name: str, network: nn.Module, rows: Rows, design: dict[str, Any]) -> Callable[[list[int]], torch.Tensor]:
    answers = {answer: place for place, answer in enumerate(design["answers"])}
    targets = {target: place for place, target in enumerate(design["targets"])}

    def images(column: str, chosen: Collection[int]) -> torch.Tensor:
        return torch.stack([rows[column][place] for place in chosen]).float() / 127.5 - 1

    def of_answers(chosen: list[int]) -> torch.Tensor:
        classes = torch.tensor([answers.get(rows["answer"][place], -100) for place in chosen])
        logits = network(images("image", chosen), [rows["text"][place] for place in chosen])
        return nn.functional.cross_entropy(logits, classes)

    def of_masks(chosen: list[int]) -> torch.Tensor:
        places = torch.tensor([targets[rows["target"][place]] for place in chosen])
        logits = network(images("image", chosen))[torch.arange(len(chosen)), places]
        truth = (images("truth", chosen).mean(dim=1) > 0).float()
        overlap = (2 * (logits.sigmoid() * truth).sum() + 1) / (logits.sigmoid().sum() + truth.sum() + 1)
        return nn.functional.binary_cross_entropy_with_logits(logits, truth) + 1 - overlap

    def of_images(chosen: list[int]) -> torch.Tensor:
        return nn.functional.l1_loss(network(images("image", chosen)), images("truth", chosen))

    return {ANSWERS: of_answers, SEGMENTATION: of_masks}.get(name, of_images)


def main(
    benchmark: Annotated[str, Option(metavar="NAME=PATH", help="The benchmark and the folder of its data.")],
    out: Annotated[str, Option(metavar="FOLDER", help="Folder of the specialists.")],
    steps: Annotated[int, Option(help="Of each network.")] = 1500,
    side: Annotated[int, Option(help="Pixels of a side.")] = 64,
    tasks: Annotated[str | None, Option(metavar="A,B", help="Only these tasks.")] = None,
) -> None:
    """Train on the training split of a benchmark and save the networks."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, _, folder = benchmark.partition("=")
    data = BenchmarkData(get_benchmark(name), folder, tasks=comma_separated(tasks))
    train(data.training(), steps, side).save(out)


if __name__ == "__main__":
    sys.exit(run_module(main))
