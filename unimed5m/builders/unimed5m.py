"""The sources as a builder of the `datasets` library: `UniMed5M(config_name="busi", data_dir=FOLDER)`.

A configuration is the name of a source, alone or with a task: `vqa-rad`, `busi-segmentation`. Nothing is downloaded.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import datasets

from ..schema import SPLITS, features
from .registry import get_source, list_sources

# Into how many parts a folder is read; `num_proc` processes share them, the result does not depend on their number.
PARTS = 8


@dataclasses.dataclass
class UniMed5MConfig(datasets.BuilderConfig):
    """Which source, and which of its tasks ("" for all)."""

    source: str = ""
    task: str = ""


def _configurations() -> list[UniMed5MConfig]:
    found = []
    for source in list_sources():
        version = datasets.Version("1.0.0")
        found.append(
            UniMed5MConfig(name=source.name, version=version, description=source.card.title, source=source.name)
        )
        if len(source.tasks) > 1:
            for task in source.tasks:
                name = f"{source.name}-{task.replace('_', '-')}"
                found.append(UniMed5MConfig(name=name, version=version, source=source.name, task=task))
    return found


class UniMed5M(datasets.GeneratorBasedBuilder):
    """Records of a source as a `datasets` builder.

    Example:
        builder = UniMed5M(config_name="busi", data_dir="Dataset_BUSI")
        builder.download_and_prepare("parquet folder", file_format="parquet", max_shard_size="500MB", num_proc=2)
    """

    BUILDER_CONFIG_CLASS = UniMed5MConfig
    BUILDER_CONFIGS: ClassVar[list[UniMed5MConfig]] = _configurations()

    def _info(self) -> datasets.DatasetInfo:
        source = get_source(self.config.source)
        card = source.card
        return datasets.DatasetInfo(
            description=f"{card.title}. {card.notes}".strip(),
            features=features(decode=True),
            homepage=card.url,
            license=card.license,
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        folder = self.config.data_dir
        if not folder:
            raise ValueError(
                f"{self.config.name}: expected data_dir with {get_source(self.config.source).card.layout}, found none."
            )
        # A split without records becomes an empty file; finding out which are empty would take a walk of its own.
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"folder": str(folder), "split": split, "parts": list(range(PARTS))}
            )
            for split in SPLITS
        ]

    def _generate_examples(
        self, folder: str, split: str, parts: Sequence[int]
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        source = get_source(self.config.source)
        for part in parts:
            for position, record in enumerate(source.records(folder, split, (part, PARTS), _leave)):
                if self.config.task in ("", record.sub_task_type):
                    yield (part, position), record.to_row()


def _leave(name: str, reason: str) -> None:
    """`datasets` has no place for rejected samples; `unimed5m.build` keeps their reasons."""
    datasets.logging.get_logger(__name__).info(f"{name}: {reason}")
