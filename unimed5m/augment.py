"""Records in a model's words: plans for captioned images, and templated sentences said in other words.

    OUT/data/SHARD.parquet      the records of the input shard, and after each captioned one its planned record
    OUT/rejected/SHARD.jsonl    what the model's answer did not fit, with the reason

Planned records are caption augmented generation (paper, appendix A.3), rewriting is the diversity step of section 3.1.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unimedvl.utils.claims import keep_out_of_git
from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import replacing

from .pipeline import Executor, Job, ShardTask, batches, check_apart, parquet_writer, run_job
from .planning import REWRITTEN_TASKS, CaptionAugmenter, Writer, rewrite
from .schema import ARROW_SCHEMA, Record, Turn, record_id, to_table
from .shards import build_sources, shards_of_all, unfinished
from .templates.words import SHORT_NAMES

STEPS = ("plan", "rewrite")
PLANNED_TASKS = frozenset({"caption", "report"})


def planned(record: Record, writer: Writer, name: str) -> Record:
    """The planned text-to-image record of a captioned image: its prompt, thought and list are the model's.

    Args:
        record: of one image with a caption or report.
        writer: the model.
        name: of the model, kept in `extra`.

    Raises:
        ValueError: for a record of another kind, or an answer that is not in the form asked for.
    """
    if record.sub_task_type not in PLANNED_TASKS or len(record.input_img) != 1:
        raise ValueError(f"record {record.id!r}: expected one image with its caption, found {record.sub_task_type!r}.")
    modality = SHORT_NAMES.get(record.modality, "medical")
    plan = CaptionAugmenter(writer).plan(record.input_img[0], record.message[-1].value, modality)
    return record.replace(
        id=record_id(record.dataset, record.id, "planned_text_to_image", "written"),
        main_task_type="image_generation",
        sub_task_type="planned_text_to_image",
        input_img=(),
        output_img=record.input_img,
        message=(Turn("human", plan.prompt), Turn("gpt", f"{plan.answer()}\n<image>")),
        synthetic=True,
        quality=None,
        extra=json.dumps({"caption_of": record.id, "writer": name}, ensure_ascii=False, sort_keys=True),
    )


@dataclasses.dataclass(frozen=True)
class AugmentShard:
    """The function of the job: one shard's records, rewritten and planned.

    Attributes:
        writer: the model; it is loaded where the shard is done.
        name: of the model.
        steps: of `STEPS`.
    """

    writer: Writer
    name: str
    steps: tuple[str, ...]

    def __call__(self, task: ShardTask) -> dict[str, Any]:
        output, counts = Path(task.output), Counter[str]()
        files = [f"data/{task.name}.parquet", f"rejected/{task.name}.jsonl"]
        with ExitStack() as stack:
            data = stack.enter_context(replacing(output / files[0]))
            lost = stack.enter_context(open(stack.enter_context(replacing(output / files[1])), "w", encoding="utf-8"))
            parquet = stack.enter_context(parquet_writer(data, ARROW_SCHEMA))
            for batch in batches(task.source):
                records: list[Record] = []
                for row in batch.to_pylist():
                    counts["read"] += 1
                    records += self._of(Record.from_row(row), counts, lost)
                parquet.write_table(to_table(records))
        return {"files": files, **{name: counts[name] for name in ("read", "planned", "rewritten", "failed")}}

    def _of(self, record: Record, counts: Counter[str], lost: Any) -> list[Record]:
        made = [record]
        try:
            if "rewrite" in self.steps and record.sub_task_type in REWRITTEN_TASKS:
                new = rewrite(record, self.writer)
                new.validate()
                made = [new]
                counts["rewritten"] += 1
            elif "plan" in self.steps and record.sub_task_type in PLANNED_TASKS and len(record.input_img) == 1:
                new = planned(record, self.writer, self.name)
                new.validate()
                made.append(new)
                counts["planned"] += 1
        except ValueError as error:
            counts["failed"] += 1
            lost.write(json.dumps({"id": record.id, "reason": str(error)}, ensure_ascii=False) + "\n")
        return made


def augment(
    records: str | Path | Sequence[str | Path],
    output: str | Path,
    writer: Writer,
    name: str,
    steps: Sequence[str] = ("plan",),
    settings: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
) -> dict[str, int]:
    """Write the records with what a model adds to `output`; a second call resumes.

    No record is lost: one whose answer does not fit stays as it was, and `rejected/` says why.

    Args:
        records: a record folder, or several.
        output: a new or empty folder, or one with an earlier run.
        writer: the model that writes.
        name: of the model; another one does the work anew.
        steps: "plan" adds a planned text-to-image record for every captioned image, "rewrite" says the templated
            sentences of image-to-image records in other words.
        settings: what else the answers depend on, JSON-safe: weights, limits. Other ones do the work anew.
        executor: where the shards run; this process by default.

    Returns:
        Counts of records read, planned and rewritten, and of answers that failed.

    Raises:
        ValueError: for an unknown step, folders without records, or an `output` that holds other files.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown or not steps:
        raise ValueError(f"steps: expected some of {', '.join(STEPS)}, found {', '.join(unknown) or 'none'}.")
    sources, output = shards_of_all(records), Path(output)
    check_apart(sources, output)
    keep_out_of_git(output)
    answers_depend_on = {"writer": name, "steps": sorted(steps), **(settings or {})}
    job = Job("augment", AugmentShard(writer, name, tuple(steps)), answers_depend_on)
    with unfinished(output, "summary"):
        receipts = run_job(job, sources, output, executor)
        counts = {key: sum(receipt[key] for receipt in receipts) for key in ("read", "planned", "rewritten", "failed")}
        write_json(output / "augment.json", {**counts, **answers_depend_on, "sources": build_sources(records)})
    return counts
