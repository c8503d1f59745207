"""Runs: everything is scored, a stopped run ends with the same bytes, and what needs no model is caught."""

import json
import shutil

import pytest

from tests.evaluation.painter import Painter, run, settings
from unimedvl.evaluation.baselines import NAMES, Baseline, TrainingSplit
from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.compare import compare, markdown
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.report import markdown as report
from unimedvl.evaluation.samples import TASKS
from unimedvl.evaluation.visuals import draw_all

pytestmark = pytest.mark.medium


def test_every_task_is_scored(finished):
    _, results = finished
    tasks = results["benchmarks"]["unimed-mini"]["tasks"]
    assert set(tasks) == set(TASKS) - {"reasoning"}
    for task, entry in tasks.items():
        assert entry["count"] and TASKS[task].primary in entry["metrics"], task
        found = entry["metrics"][TASKS[task].primary]
        assert found["low"] is None or found["low"] <= found["value"] <= found["high"], task
    assert "memorization" in tasks["text_to_image"] and tasks["segmentation"]["baselines"]


def test_images_stay_out_of_git_and_plots_are_there(finished, records):
    out, results = finished
    draw_all(results, [BenchmarkData(get_benchmark("unimed-mini"), records)], out)
    assert (out / ".gitignore").read_text() == "*\n"
    for name in ("plots/scores", "plots/vqa_confusion", "plots/vqa_reliability", "sheets/segmentation_worst"):
        assert (out / "unimed-mini" / f"{name}.png").stat().st_size > 1000, name


@pytest.mark.parametrize("stop_after", [1, 40])
def test_a_stopped_run_ends_with_the_same_bytes_and_repeats_no_work(finished, records, tmp_path, stop_after):
    whole, _ = finished
    first, second = Painter(stop_after), Painter()
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(first, records, out)
    # What a killed process leaves: half a line, a batch of which some lines are missing, a half-written image.
    part = out / "unimed-mini" / "parts" / "00000.jsonl"
    last = part.read_text().splitlines()[-1]
    with open(part, "a") as file:
        file.write(json.dumps(json.loads(last) | {"batch": 9999, "of": 3, "place": 0}) + "\n" + last[:20])
    (out / "unimed-mini" / "images" / "x.png.1.partial").write_bytes(b"half")
    run(second, records, out)
    for name in ("results.json", "unimed-mini/predictions.jsonl", "unimed-mini/scores.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not set(first.asked) & set(second.asked)
    assert json.loads((out / "manifest.json").read_text())["timings"]["unimed-mini"]["kept"] == len(first.asked)


def test_a_lost_image_is_made_again(finished, records, tmp_path):
    whole, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    lost = next((out / "unimed-mini" / "images").iterdir())
    lost.unlink()
    again = Painter()
    run(again, records, out)
    assert lost.stem in again.asked and len(again.asked) <= 3
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_the_data_folder_and_built_records_give_the_same_scores(mini_data, records, tmp_path):
    options = {"tasks": ["vqa", "segmentation"]}
    left, right = (run(Painter(), folder, tmp_path / folder.name, **options) for folder in (mini_data, records))
    tasks = [found["benchmarks"]["unimed-mini"]["tasks"] for found in (left, right)]
    for task in options["tasks"]:
        assert tasks[0][task]["count"] == tasks[1][task]["count"]
        assert tasks[0][task]["metrics"]["accuracy" if task == "vqa" else "dice"]["value"] == pytest.approx(
            tasks[1][task]["metrics"]["accuracy" if task == "vqa" else "dice"]["value"]
        )


def test_another_run_in_the_folder_is_refused(finished, records):
    out, _ = finished
    with pytest.raises(ValueError, match="holds another run .different: benchmarks"):
        run(Painter(), records, out, limit=1)


def test_a_model_that_answers_nothing_is_an_error(records, training, tmp_path):
    with pytest.raises(ValueError, match="m answers nothing here .vqa.: choose another benchmark"):
        run(Baseline("copy-input", training), records, tmp_path / "out", tasks=["vqa"])
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_model_of_other_settings_does_not_resume_a_run(finished, records, tmp_path):
    painter = Painter()
    painter.settings = {"presets": {"t2i": {"num_inference_steps": 3}}}
    with pytest.raises(ValueError, match="holds another run .different: model_settings"):
        run(painter, records, finished[0])


def test_what_a_run_killed_at_its_start_leaves_is_no_other_run(records, tmp_path):
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "run.json.17.partial").write_text("{")
    assert run(Painter(), records, tmp_path, limit=1, tasks=["vqa"])["benchmarks"]


def test_a_benchmark_given_twice_is_refused(records, tmp_path):
    data = BenchmarkData(get_benchmark("unimed-mini"), records)
    with pytest.raises(ValueError, match="benchmark unimed-mini is given twice"):
        evaluate(Run("m", tmp_path / "out"), Painter(), [data, data], settings(), print)


def test_limit_takes_the_same_few_of_each_task(records, tmp_path):
    asked = []
    for name in ("a", "b"):
        painter = Painter()
        run(painter, records, tmp_path / name, limit=2, tasks=["vqa", "report"])
        asked.append(painter.asked)
    assert asked[0] == asked[1] and len(asked[0]) == 4


@pytest.fixture(scope="module")
def training(records):
    return TrainingSplit(BenchmarkData(get_benchmark("unimed-mini"), records).training())


@pytest.mark.parametrize(
    ("name", "task", "flag"),
    [
        ("majority", "vqa", "not above majority"),
        ("question-only", "vqa", "not above question-only"),
        ("majority", "segmentation", "not above majority"),
        ("copy-input", "super_resolution", "returns the input image"),
        ("copy-input", "counterfactual", "returns the input image"),
        ("training-image", "text_to_image", "memorization"),
    ],
)
def test_models_that_need_no_model_are_caught(name, task, flag, records, training, tmp_path):
    found = run(Baseline(name, training), records, tmp_path / "out", tasks=[task])
    flags = found["benchmarks"]["unimed-mini"]["tasks"][task]["flags"]
    assert any(flag in entry for entry in flags), flags
    assert flag in report(found)


def test_baselines_are_of_these_names(training, finished):
    assert NAMES == ("majority", "question-only", "copy-input", "training-image")
    _, results = finished
    tasks = results["benchmarks"]["unimed-mini"]["tasks"]
    caught = tasks["text_to_image"]["baselines"]["training-image"]
    assert caught["memorized"] and any("memorization" in flag for flag in caught["flags"])


def test_compare_finds_the_better_run(finished, records, training, tmp_path):
    out, _ = finished
    run(Baseline("copy-input", training), records, tmp_path / "copy")
    found = compare(out, tmp_path / "copy")
    rows = {row["task"]: row for row in found["rows"]}
    assert rows["super_resolution"]["difference"] > 0 and rows["super_resolution"]["significant"]
    assert "| unimed-mini | super_resolution | ssim |" in markdown(found)
    assert found["notes"] == []
    same = compare(out, out)
    assert all(row["difference"] == 0 and row["p"] in (1, None) for row in same["rows"])
    with pytest.raises(ValueError, match="holds no results.json"):
        compare(out, tmp_path)


def test_compare_takes_means_over_shared_samples_and_says_what_differs(finished, records, tmp_path):
    out, _ = finished
    data = BenchmarkData(get_benchmark("unimed-mini"), records, tasks=["report", "text_to_image"])
    few = Run("few", tmp_path / "few", scoring={"features": "y"}, baselines=False)
    evaluate(few, Painter(), [data], settings(), print)
    file = tmp_path / "few" / "unimed-mini" / "scores.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    report = sorted((row for row in rows if row["task"] == "report"), key=lambda row: row["scores"]["rouge_l"])
    drawn = [row for row in rows if row["task"] == "text_to_image"]
    assert compare(out, tmp_path / "few")["rows"][1]["score"] == "kid"
    file.write_text("".join(json.dumps(row) + "\n" for row in report[:2] + drawn[1:]))
    found = compare(out, tmp_path / "few")
    assert [row["task"] for row in found["rows"]] == ["report"]
    row, mean = found["rows"][0], sum(row["scores"]["rouge_l"] for row in report[:2]) / 2
    assert row["first"] == row["second"] == pytest.approx(mean, abs=1e-6)
    assert (row["difference"], row["count"]) == (0, 2)
    assert found["notes"] == [
        "scored differently, features: x and y",
        "kid of unimed-mini, text_to_image, is left out: the runs scored different samples",
    ]
    assert "**scored differently, features: x and y**" in markdown(found)


def test_wrong_folders_get_one_line(records, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        BenchmarkData(get_benchmark("unimed-mini"), tmp_path / "none")
    with pytest.raises(ValueError, match="expected one of"):
        get_benchmark("imagenet")
    with pytest.raises(ValueError, match="none of vqa"):
        BenchmarkData(get_benchmark("bci"), records, tasks=["vqa"])
    with pytest.raises(ValueError, match="holds no virtual_staining record of the split test"):
        list(BenchmarkData(get_benchmark("bci"), records).samples())
