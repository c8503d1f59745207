"""Record folders as a stream of packed micro-batches, the same for every number of processes."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pyarrow
import pyarrow.parquet as parquet
from torch.utils.data import IterableDataset, get_worker_info

from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.unimed5m.schema import Record, Turn, features
from unimedvl.unimed5m.shards import shard_paths

from ..data_recipe import DataRecipe, GroupRecipe
from .collate import Collator
from .packing import Pack, PackPlanner, SampleKey
from .posterior_cache import LatentCache
from .sequences import ImageSize, Layout, Outline, TrainingSample

# `datasets` is imported where record folders are read: the trainer runs on other batches without it.
if TYPE_CHECKING:
    import datasets


class EmptyGroupError(ValueError):
    """A folder holds no record of the kind that a group wants.

    Attributes:
        held: numbers of what it holds, by split and task.
    """

    def __init__(self, wanted: str, folder: str | Path, split: str, held: Mapping[tuple[str, str], int]):
        self.held = dict(held)
        if any(part == split for part, _ in held):
            missing = f"no {split} record of the wanted tasks, sources and modalities"
        else:
            missing = f"no {split} record"
        found = ", ".join(f"{count} {part}/{task}" for (part, task), count in sorted(held.items()))
        super().__init__(f"{wanted}{folder} holds {missing}; it holds {found or 'nothing'}.")


class RecordGroup:
    """The records of a group, memory-mapped.

    Raises:
        EmptyGroupError: if the folder holds none of the wanted kind.
        ValueError: if a shard is damaged, naming it.
    """

    def __init__(self, recipe: GroupRecipe):
        import datasets

        self.recipe = recipe
        paths = published_paths(recipe.path, recipe.split)
        try:
            rows, columns = _shared_rows(tuple((str(path), path.stat().st_mtime_ns) for path in paths))
        except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"Group {recipe.name!r}: {_damaged(paths) or recipe.path} cannot be read "
                f"({' '.join(str(error.__cause__ or error).split())}): build the records again."
            ) from error
        keep = columns["split"] == recipe.split
        for column, wanted in (
            ("main_task_type", recipe.kinds),
            ("sub_task_type", recipe.tasks),
            ("dataset", recipe.sources),
            ("modality", recipe.modalities),
        ):
            if wanted:
                keep &= numpy.isin(columns[column], wanted)
        self.rows, self.kept = rows, numpy.flatnonzero(keep)
        self.arrow = rows.with_format("arrow")
        if len(self.kept) == 0:
            held = Counter(zip(columns["split"].tolist(), columns["sub_task_type"].tolist(), strict=True))
            raise EmptyGroupError(f"Group {recipe.name!r}: ", recipe.path, recipe.split, held)

    def __len__(self) -> int:
        return len(self.kept)

    def record(self, index: int) -> Record:
        """The whole record."""
        return Record.from_row(self.rows[int(self.kept[index])])

    def outline(self, index: int) -> Outline:
        """The record without its images, which stay on the disk."""
        row: pyarrow.Table = self.arrow[int(self.kept[index])]
        text = {name: row[name][0].as_py() for name in ("id", "sub_task_type", "modality", "message")}
        turns = tuple(Turn(turn["from"], turn["value"]) for turn in text["message"])
        return Outline(
            text["id"],
            text["sub_task_type"],
            text["modality"],
            _sizes(row, "input_img"),
            _sizes(row, "output_img"),
            turns,
        )


def _damaged(paths: Sequence[Path]) -> Path | None:
    for path in paths:
        try:
            parquet.read_table(path)
        except (pyarrow.ArrowException, OSError):
            return path
    return None


@functools.lru_cache(maxsize=16)
def _shared_rows(files: tuple[tuple[str, int], ...]) -> "tuple[datasets.Dataset, dict[str, numpy.ndarray]]":
    """The rows of Parquet files, given with their times of change, and the columns that groups choose by: groups of
    one folder share them."""
    import datasets

    rows = datasets.Dataset.from_parquet([path for path, _ in files], features=features(decode=False))
    names = ("split", "main_task_type", "sub_task_type", "dataset", "modality")
    return rows, {name: numpy.asarray(rows.data.column(name).to_pylist(), dtype=str) for name in names}


def _sizes(row: pyarrow.Table, column: str) -> tuple[ImageSize, ...]:
    images = row[column].combine_chunks().flatten()
    fields = [images.field(name).to_pylist() for name in ("path", "width", "height")]
    return tuple(ImageSize(path or "", width or 0, height or 0) for path, width, height in zip(*fields, strict=True))


def published_paths(folder: str | Path, split: str) -> list[Path]:
    """Parquet shards of a built folder, or those of a split of a published one: all of them where it has no such
    split, so that a message can say which it has."""
    for pattern in (f"data/*/{split}-*.parquet", "data/*/*.parquet"):
        if published := sorted(Path(folder).glob(pattern)):
            return published
    return shard_paths(folder)


def text_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text to token ids, in which no text of a record becomes a special token."""
    return functools.partial(tokenizer.encode, add_special_tokens=False, split_special_tokens=True)


class PackedRecords(IterableDataset):
    """Micro-batches for one process out of `world`, for `DataLoader(..., batch_size=None)`.

    Micro-batch number i of the common stream belongs to process i % world, and among a process's `DataLoader` workers
    in turn, so a loader gives them in the stream's order.

    Args:
        groups: what to draw from.
        recipe: see `DataRecipe`.
        encode: text to token ids, without special tokens.
        config: of the model.
        seed: of order, dropout and noise.
        rank, world: this process and their number.
        timestep_shift: of the training times; the model's own if None.
        cache: of posteriors.
    """

    def __init__(
        self,
        groups: Sequence[RecordGroup],
        recipe: DataRecipe,
        encode: Callable[[str], list[int]],
        config: UniMedVLConfig,
        seed: int,
        rank: int = 0,
        world: int = 1,
        timestep_shift: float | None = None,
        cache: LatentCache | None = None,
    ):
        super().__init__()
        self.groups, self.recipe, self.seed = list(groups), recipe, seed
        self.rank, self.world = rank, world
        # Wordings repeat from record to record, and a sample is laid out once to be planned and once to be packed.
        vision: Any = config.vision_config
        encode = functools.lru_cache(maxsize=1 << 16)(encode)
        self.sample = functools.lru_cache(maxsize=1 << 12)(self._sample)
        self.layouts = [
            Layout(
                group.recipe,
                recipe.condition_dropout,
                recipe.vit_source,
                encode,
                vision.patch_size,
                config.pixels_per_latent_token,
                seed,
            )
            for group in self.groups
        ]
        self.collate = Collator(config, seed, timestep_shift, cache)
        self._state: dict[str, Any] | None = None

    def settings(self) -> dict[str, Any]:
        """What the order of the samples, their conditions and their noise depend on besides the records; JSON-safe."""
        kept = dataclasses.asdict(self.recipe)
        for name in ("path", "rows_per_batch", "latent_cache", "workers"):
            del kept[name]
        shifts = {}
        for group in kept["groups"]:
            del group["path"]
            own = group.pop("timestep_shift")
            shifts[group["name"]] = self.collate.shift if own is None else own
        return json.loads(json.dumps({"seed": self.seed, "timestep_shift": shifts, **kept}))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the micro-batch whose `BatchInfo.state` this is.

        Raises:
            ValueError: if the data are not those of the state.
        """
        self._planner().load_state_dict(state)
        self._state = state

    def _sample(self, key: SampleKey) -> TrainingSample:
        """The sample of a key, without images."""
        return self.layouts[key.group](self.groups[key.group].outline(key.index), key.epoch)

    def _planner(self) -> PackPlanner:
        assert self.recipe.sample_tokens is not None
        return PackPlanner(
            sizes=[len(group) for group in self.groups],
            weights=[group.recipe.weight for group in self.groups],
            length=lambda key: self.sample(key).num_tokens,
            pack_tokens=self.recipe.pack_tokens,
            sample_tokens=self.recipe.sample_tokens,
            open_packs=self.recipe.open_packs,
            seed=self.seed,
            name=lambda key: self.groups[key.group].outline(key.index).id,
        )

    def plan(self) -> Iterator[list[Pack]]:
        """Packs of the common stream, a micro-batch at a time."""
        planner = self._planner()
        if self._state is not None:
            planner.load_state_dict(self._state)
        stream = iter(planner)
        while True:
            yield [next(stream) for _ in range(self.recipe.rows_per_batch)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        part, parts = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, packs in enumerate(self.plan()):
            turn, rank = divmod(number, self.world)
            if rank == self.rank and turn % parts == part:
                yield self.batch(packs) if worker is None else self._batch_or_refusal(packs)

    def _batch_or_refusal(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """The micro-batch, or what is wrong with its data: an error that leaves a worker comes with its traceback."""
        try:
            return self.batch(packs)
        except ValueError as error:
            return {"refused": str(error)}

    def batch(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """The micro-batch of some packs."""
        rows = [[(self.sample(key), self.groups[key.group].record(key.index)) for key in pack.keys] for pack in packs]
        return self.collate(rows, self.recipe.pack_tokens, packs[-1].state)
