"""The task file of `lighteval custom ... --custom-tasks lighteval_tasks.py`: vqa_rad, path_vqa and omnimedvqa."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetricGrouping
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from unimedvl.evaluation.harnesses.hub_sets import HUB_SETS, MAX_NEW_TOKENS, HubSet
from unimedvl.evaluation.metrics.answers import KINDS, score_answer
from unimedvl.evaluation.samples import final_answer


def ask(row: Mapping[str, Any], task_name: str, hub_set: HubSet) -> Doc:
    """A row as lighteval's question."""
    sample = hub_set.sample(row)
    return Doc(
        task_name=task_name,
        query=sample.text,
        choices=[sample.reference],
        gold_index=0,
        images=[row["image"]],
        specific={"kind": sample.kind, "options": list(sample.options), "rule": sample.rule},
    )


class AnswerScores(SampleLevelComputation):
    """The scores of one answer by the rule of its benchmark."""

    def compute(self, doc: Doc, model_response: ModelResponse, **others: Any) -> dict[str, float]:
        about, text = doc.specific, final_answer(model_response.final_text[0])
        return score_answer(text, doc.choices[0], about["kind"], about["options"] or None, about["rule"])


# Of a task, lighteval reports those that its answers have.
NAMES = ["accuracy", *(f"accuracy_{kind}" for kind in KINDS), "open_exact", "open_recall", "open_f1"]
METRIC = SampleLevelMetricGrouping(
    metric_name=NAMES,
    higher_is_better=dict.fromkeys(NAMES, True),
    category=SamplingMethod.GENERATIVE,
    sample_level_fn=AnswerScores(),
    corpus_level_fn=dict.fromkeys(NAMES, numpy.mean),
)

TASKS_TABLE = [
    LightevalTaskConfig(
        name=name,
        prompt_function=partial(ask, hub_set=hub_set),
        hf_repo=hub_set.repository,
        hf_subset="default",
        hf_avail_splits=[hub_set.split],
        evaluation_splits=[hub_set.split],
        metrics=[METRIC],
        generation_size=MAX_NEW_TOKENS,
        version=1,
    )
    for name, hub_set in HUB_SETS.items()
]
