"""Rows of the copies on the Hub become the questions that the publishers' folders become, scored alike."""

import io
import re
from pathlib import Path

import datasets
import numpy
import pyarrow.parquet as parquet
import pytest
import yaml
from PIL import Image

from benchmarks.engines.environments import entry_points
from benchmarks.engines.question_sets import write_sets
from unimedvl.evaluation import harnesses
from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.harnesses.hub_sets import HUB_SETS, MAX_NEW_TOKENS
from unimedvl.evaluation.metrics.answers import KINDS, score_answer
from unimedvl.processing.medical_formats_unimedvl import open_image
from unimedvl.processing.pixel_windows_unimedvl import convert_to_rgb
from unimedvl.unimed5m.task_images import shown_image

TASKS = Path(harnesses.__file__).parent / "lmms_eval_tasks"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_sets(root)
    return root


def rows_of(root: Path, name: str) -> list[dict]:
    (path,) = (root / "hub" / HUB_SETS[name].repository).rglob("*.parquet")
    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("name", HUB_SETS)
def test_questions_and_right_answers_are_those_of_the_publishers_folder(name, sets):
    hub_set = HUB_SETS[name]
    rule = get_benchmark(hub_set.benchmark).rule
    data = BenchmarkData(get_benchmark(hub_set.benchmark), sets / "published" / name)
    theirs = {sample.text: sample for _, sample in data.samples()}
    rows = rows_of(sets, name)
    assert len(rows) == len(theirs)
    # VQA-RAD's publisher alone says which questions are closed.
    assert ("closed" in {sample.kind for sample in theirs.values()}) == (name == "vqa_rad")
    for row in rows:
        ours = hub_set.sample(row)
        sample = theirs.pop(ours.text)
        assert (ours.reference, ours.options) == (sample.reference, sample.options)
        # The copies do not say which questions with other answers than yes and no are closed: the accuracy is equal.
        assert ours.kind == ("open" if sample.kind == "closed" else sample.kind)
        for said in (sample.reference, "another plane", ""):
            scores = score_answer(said, sample.reference, sample.kind, sample.options or None, rule)
            assert hub_set.scores(row, said)["accuracy"] == scores["accuracy"]
        image = datasets.Image().decode_example(row["image"])
        asked, said = hub_set.conversation(row, image), sample.conversation()
        assert [item["type"] for item in asked[0]["content"]] == [item["type"] for item in said[0]["content"]]
        # What the processor makes of an image that harnesses hand over.
        assert numpy.array_equal(convert_to_rgb(open_image(image)), shown_image(sample.inputs[0]))


@pytest.mark.parametrize("name", HUB_SETS)
@pytest.mark.parametrize(
    "said", ["yes", "No.", "<think>is it C?</think> B", "CT", "x-ray", "the right upper lobe", "D"]
)
def test_texts_are_scored_by_the_benchmarks_rule(name, said, sets):
    hub_set = HUB_SETS[name]
    benchmark = get_benchmark(hub_set.benchmark)
    answer = re.sub(r"<think>.*</think>", "", said).strip()
    for row in rows_of(sets, name):
        sample = hub_set.sample(row)
        expected = score_answer(answer, sample.reference, sample.kind, sample.options or None, benchmark.rule)
        assert hub_set.scores(row, said) == expected


def test_fixtures_have_every_kind_of_image_and_answer(sets):
    modes, kinds, turned = set(), set(), 0
    for name in HUB_SETS:
        for row in rows_of(sets, name):
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            modes.add(image.mode)
            turned += image.getexif().get(0x0112, 1) != 1
            kinds.add(HUB_SETS[name].sample(row).kind)
            assert numpy.asarray(convert_to_rgb(open_image(image))).std() > 5
    assert modes >= {"L", "RGB", "CMYK", "RGBA", "I;16", "P"} and turned
    assert kinds == {"yes_no", "multiple_choice", "open"}


def test_a_row_of_other_columns_gets_one_line():
    with pytest.raises(ValueError, match="simwit/omni-med-vqa: expected the column gt_answer, found question, answer"):
        HUB_SETS["omnimedvqa"].sample({"question": "Which?", "answer": "CT"})


class _Tasks(yaml.SafeLoader):
    """Reads lmms-eval's task files, its functions as their names."""


_Tasks.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("name", HUB_SETS)
def test_task_files_of_lmms_eval_say_what_the_package_says(name):
    task = yaml.load((TASKS / f"{name}.yaml").read_text(), _Tasks)
    assert (task["task"], task["dataset_path"]) == (name, HUB_SETS[name].repository)
    assert task["process_docs"] == f"utils.{name}_docs"
    shared = yaml.load((TASKS / task["include"]).read_text(), _Tasks)
    assert shared["generation_kwargs"]["max_new_tokens"] == MAX_NEW_TOKENS
    assert shared["test_split"] == HUB_SETS[name].split
    reported = {entry["metric"] for entry in shared["metric_list"]}
    assert reported >= {"accuracy", *(f"accuracy_{kind}" for kind in KINDS if kind != "closed")}
    assert reported >= set(score_answer("a", "b", "open"))


def test_the_description_of_the_package_declares_model_and_task_files(tmp_path):
    (described,) = entry_points(tmp_path).iterdir()
    declared = (described / "entry_points.txt").read_text()
    assert "[lmms_eval.models]\nunimedvl = unimedvl.evaluation.harnesses.lmms_eval_manifest:MANIFEST" in declared
    held = (described / "SOURCES.txt").read_text().splitlines()
    for path in TASKS.iterdir():
        if path.is_file():
            assert f"unimedvl/evaluation/harnesses/lmms_eval_tasks/{path.name}" in held
