"""Asking a model every sample of a benchmark: in fixed batches, onto disk at once, and again from where it stopped.

NAME/parts/00000.jsonl    one line per sample in whole batches, written by one process
NAME/images/ID.png        generated images, written before their lines
NAME/predictions.jsonl    all lines in order, when everything is done

A batch is cut from the samples of one task in their order, so what shares a batch never depends on where a run was
killed or on how many processes share the work. A line is only believed if its whole batch is there.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import gather_object
from PIL import Image

from unimedvl.utils.whole_files import remove_partials, replacing, write_text

from .distributed import join
from .model_wrappers.base import Model
from .samples import TASKS, Sample


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was answered: a text, an image, or both. `confidence`: see `Model.write`."""

    text: str = ""
    image: Image.Image | None = None
    confidence: float | None = None


class Predictor(Protocol):
    """Whatever answers samples: a model, or a baseline that knows the training split."""

    name: str
    settings: dict[str, Any]

    def supports(self, task: str, sample: Sample | None = None) -> bool:
        """Whether it can do a task at all."""
        ...

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """The answers to samples of one task."""
        ...


class ModelPredictor:
    """Asks a model by what it is able to do.

    Args:
        seed: base of the noise of all samples.
        max_new_tokens: length limit of every text; the task's own by default.
    """

    def __init__(self, model: Model, seed: int = 0, max_new_tokens: int | None = None):
        self.model, self.seed, self.max_new_tokens = model, seed, max_new_tokens
        self.name, self.settings = model.name, model.settings

    def supports(self, task: str, sample: Sample | None = None) -> bool:
        needed = set()
        if TASKS[task].draws:
            needed.add("image" if TASKS[task].family == "generation" else "image_from_image")
        elif TASKS[task].writes:
            needed.add("text" if task == "dialogue" else "text_from_image")
        return needed <= self.model.abilities

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        task = TASKS[samples[0].task]
        conversations = [sample.conversation() for sample in samples]
        texts: list[tuple[str, float | None]] = [("", None)] * len(samples)
        images: list[Image.Image | None] = [None] * len(samples)
        if task.writes and {"text", "text_from_image"} & self.model.abilities:
            texts = self.model.write(conversations, self.max_new_tokens or task.max_new_tokens)
        if task.draws:
            seeds = [sample.seed(self.seed) for sample in samples]
            images = list(self.model.draw(conversations, task.preset, seeds))
        return [Prediction(text, image, sure) for (text, sure), image in zip(texts, images, strict=True)]


def batched(samples: Iterable[tuple[float, Sample]], size: int) -> Iterator[tuple[int, float, list[Sample]]]:
    """(number, share walked, samples of one task and number of images), in an order that depends on nothing else."""
    waiting: dict[tuple[str, int], list[Sample]] = {}
    number, share = 0, 0.0
    for share, sample in samples:
        key = sample.task, len(sample.inputs)
        waiting.setdefault(key, []).append(sample)
        if len(waiting[key]) == size:
            yield number, share, waiting.pop(key)
            number += 1
    for batch in waiting.values():
        yield number, 1.0, batch
        number += 1


class PredictionStore:
    """The files of one benchmark's predictions."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.parts = folder / "parts"
        self.images = folder / "images"
        self.final = folder / "predictions.jsonl"

    def prepare(self, rank: int) -> set[int]:
        """Put whole batches of an earlier run into the first part, drop torn ones; the numbers of what is done."""
        state = join()
        if rank == 0:
            self.parts.mkdir(parents=True, exist_ok=True)
            self.images.mkdir(exist_ok=True)
            remove_partials(self.folder)
            rows = self._whole_batches()
            write_text(self.parts / "00000.jsonl", "".join(_line(row) for row in rows))
            for path in self.parts.glob("*.jsonl"):
                if path.name != "00000.jsonl":
                    path.unlink()
        state.wait_for_everyone()
        return {row["batch"] for row in _rows(self.parts / "00000.jsonl")}

    def _whole_batches(self) -> list[dict[str, Any]]:
        found: dict[int, list[dict[str, Any]]] = {}
        for path in sorted(self.parts.glob("*.jsonl")):
            of_file: dict[int, list[dict[str, Any]]] = {}
            for row in _rows(path):
                of_file.setdefault(row["batch"], []).append(row)
            found |= {number: rows for number, rows in of_file.items() if len(rows) == rows[0]["of"]}
        rows = [row for number in sorted(found) for row in found[number]]
        missing = {row["batch"] for row in rows if row["image"] and not (self.folder / row["image"]).is_file()}
        return [row for row in rows if row["batch"] not in missing]

    def write(self, rank: int, number: int, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> None:
        """Add a batch: images first, then its lines in one write that reaches the disk."""
        lines = []
        for place, (sample, prediction) in enumerate(zip(samples, predictions, strict=True)):
            image = ""
            if prediction.image is not None:
                image = f"images/{sample.id}.png"
                with replacing(self.folder / image) as partial:
                    prediction.image.save(partial, format="PNG")
            row: dict[str, Any] = {"id": sample.id, "task": sample.task, "text": prediction.text, "image": image}
            row |= {"confidence": prediction.confidence, "batch": number, "of": len(samples), "place": place}
            lines.append(_line(row))
        with open(self.parts / f"{rank:05d}.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Join the parts in order."""
        rows = sorted(self._whole_batches(), key=lambda row: (row["batch"], row["place"]))
        with replacing(self.final) as partial:
            kept = ({name: row[name] for name in ("id", "task", "text", "image", "confidence")} for row in rows)
            partial.write_text("".join(_line(row) for row in kept), encoding="utf-8")

    def read(self) -> dict[str, dict[str, Any]]:
        """The finished predictions by the sample's id."""
        return {row["id"]: row for row in _rows(self.final)}

    def load(self, row: dict[str, Any]) -> Prediction:
        """A stored prediction with its image."""
        if not row["image"]:
            return Prediction(row["text"])
        with Image.open(self.folder / row["image"]) as image:
            return Prediction(row["text"], image.convert("RGB"))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; a killed process may leave half a line at the end."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


def predict_all(
    predictor: Predictor,
    samples: Iterable[tuple[float, Sample]],
    store: PredictionStore,
    batch_size: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Answer every sample that the predictor can do and that is not answered yet.

    Args:
        predictor: answers batches of samples.
        samples: with the share, in [0, 1], of the benchmark that is read once the sample is.
        store: keeps the answers, batch by batch.
        batch_size: samples of one task asked together.
        say: prints a line of progress.

    Returns:
        Counts over all processes and seconds, for the manifest.
    """
    state = join()
    done = store.prepare(state.process_index)
    progress = _Progress(say)
    asked = (pair for pair in samples if predictor.supports(pair[1].task, pair[1]))
    made = kept = 0
    for number, share, batch in batched(asked, batch_size):
        if number % state.num_processes != state.process_index:
            continue
        if number in done:
            kept += len(batch)
            continue
        store.write(state.process_index, number, batch, predictor.predict(batch))
        made += len(batch)
        progress.step(made, kept, share, batch[0].task)
    state.wait_for_everyone()
    if state.is_main_process:
        store.finish()
    counts = gather_object([(made, kept)])
    made, kept = (sum(column) for column in zip(*counts, strict=True))
    return {"answered": made, "kept": kept, "seconds": round(time.monotonic() - progress.start, 3)}


class _Progress:
    """A line every few seconds: samples, rate, time left by the share of the folder that is done."""

    INTERVAL = 10.0

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.start = self.last = time.monotonic()
        self.first_share: float | None = None

    def step(self, made: int, kept: int, share: float, task: str) -> None:
        now = time.monotonic()
        self.first_share = share if self.first_share is None else self.first_share
        if now - self.last < self.INTERVAL:
            return
        self.last = now
        moved = share - self.first_share
        left = f", about {_clock((now - self.start) * (1 - share) / moved)} left" if moved > 0 else ""
        self.say(f"{made + kept} samples ({task}), {made / (now - self.start):.2f}/s{left}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
