"""Question sets as they lie on the Hub: their rows become the samples that `unimedvl eval` makes of the publishers'
folders, with the same prompts and the same rules."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from PIL import Image

from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.builders.publisher_texts import choice
from unimedvl.unimed5m.builders.source_texts import options_in
from unimedvl.unimed5m.schema import RecordImage

from ..benchmarks import get_benchmark
from ..metrics.answers import score_answer
from ..samples import TASKS, Sample, final_answer, sample_of

MAX_NEW_TOKENS = TASKS["vqa"].max_new_tokens
OPTION_COLUMNS = ("option_A", "option_B", "option_C", "option_D")


@dataclasses.dataclass(frozen=True)
class HubSet:
    """A benchmark in a data set repository.

    Attributes:
        benchmark: name in `evaluation.benchmarks`.
        repository: id on the Hub. A folder of that path below the working directory is read in its place.
        answer: column of the right answer. Questions are in `question`, images in `image`, options, if any, in
            `OPTION_COLUMNS`.
        split: the split that is asked.
    """

    benchmark: str
    repository: str
    answer: str = "answer"
    split: str = "test"

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """The question of a row, without its image.

        Raises:
            ValueError: if a column is missing, or the right answer is the letter of an option without a text.
        """
        if missing := [name for name in ("question", self.answer) if name not in row]:
            raise ValueError(f"{self.repository}: expected the column {missing[0]}, found {', '.join(row)}.")
        origin = tasks.Origin(
            dataset=self.benchmark,
            original_id=str(row["question"]),
            group_id="",
            split=self.split,
            modality="RAD",
            license="",
            redistributable="unclear",
            provenance=self.repository,
        )
        image = RecordImage(None, "image", 0, 0)
        question, answer = str(row["question"]), str(row[self.answer])
        if OPTION_COLUMNS[0] in row:
            record = choice(origin, [image], question, options_in(row, *OPTION_COLUMNS), answer)
        else:
            record = tasks.vqa(origin, [image], question, answer)
        benchmark = get_benchmark(self.benchmark)
        sample = sample_of(record, benchmark.prompt, benchmark.choice_prompt)
        assert sample is not None
        return dataclasses.replace(sample, rule=sample.rule or benchmark.rule)

    def conversation(self, row: Mapping[str, Any], image: Image.Image) -> list[dict[str, Any]]:
        """The messages that a model is asked with, in the form of transformers' chat templates."""
        return [
            {
                "role": role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": image}
                    for part in parts
                ],
            }
            for role, parts in self.sample(row).messages
        ]

    def scores(self, row: Mapping[str, Any], text: str) -> dict[str, float]:
        """The scores of a model's text, see `metrics.answers.score_answer`."""
        sample = self.sample(row)
        return score_answer(final_answer(text), sample.reference, sample.kind, sample.options or None, sample.rule)


HUB_SETS = {
    "vqa_rad": HubSet("vqa-rad", "flaviagiammarino/vqa-rad"),
    "path_vqa": HubSet("path-vqa", "flaviagiammarino/path-vqa"),
    "omnimedvqa": HubSet("omnimedvqa", "simwit/omni-med-vqa", answer="gt_answer"),
}
