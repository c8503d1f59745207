"""Runs: everything is scored, a stopped run ends with the same bytes, and what needs no model is caught."""

import json
import re
import shutil
from collections.abc import Sequence

import pytest
from huggingface_hub import ModelCard
from PIL import Image, ImageCms

from unimedvl.commands.main import main
from unimedvl.evaluation.baselines import NAMES, Baseline, TrainingSplit
from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.cards import fill_card_folder
from unimedvl.evaluation.compare import compare, markdown
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.predictions import Prediction, Predictor
from unimedvl.evaluation.reader_sheets import make_study, score_study
from unimedvl.evaluation.report import markdown as report
from unimedvl.evaluation.samples import TASKS, Sample
from unimedvl.evaluation.scoring import Settings
from unimedvl.evaluation.visuals import draw_all

pytestmark = pytest.mark.medium


class Painter:
    """Answers everything from the sample's own seed; counts what it was asked, and stops where it is asked to."""

    name = "painter"
    settings: dict = {}

    def __init__(self, stop_after: int | None = None):
        self.asked: list[str] = []
        self.stop_after = stop_after

    def supports(self, task: str, sample: Sample | None = None) -> bool:
        return True

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [sample.id for sample in samples]
        shade = [sample.seed(3) % 256 for sample in samples]
        return [
            Prediction(
                "yes it is" if value % 2 else "a scan",
                Image.new("RGB", (32, 24), (value, 90, 255 - value)) if TASKS[sample.task].draws else None,
                value / 256,
            )
            for sample, value in zip(samples, shade, strict=True)
        ]


def settings() -> Settings:
    return Settings(extractor=load_feature_extractor("pixels-2"), meteor=False)


def run(predictor: Predictor, folder, out, **options) -> dict:
    data = BenchmarkData(get_benchmark("unimed-mini"), folder, **options)
    return evaluate(Run("m", out, batch_size=3, scoring={"features": "x"}), predictor, [data], settings(), print)


@pytest.fixture(scope="module")
def finished(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(Painter(), records, out)


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


def test_a_card_gets_scores_and_no_image_of_the_data(finished, tmp_path):
    out, _ = finished
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    with pytest.raises(ValueError, match=r"neither config\.json nor model_index\.json"):
        fill_card_folder(out, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    files = fill_card_folder(out, tmp_path)
    assert ".eval_results/unimed-mini.yaml" in files and "evaluation/results.md" in files
    assert not any("sheet" in name or "images" in name for name in files)
    text = (tmp_path / "README.md").read_text()
    assert "model-index:" in text and "license: mit" in text and "# Card" in text
    with pytest.raises(ValueError, match=r"README\.md"):
        fill_card_folder(out, tmp_path / "nowhere")


@pytest.fixture
def published(finished, tmp_path):
    """A copy of the run with an image of generated ones and a plot, and the folder of a checkpoint."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    for name in ("made/text_to_image", "plots/scores", "plots/vqa_confusion"):
        (out / "unimed-mini" / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(out / "unimed-mini" / f"{name}.png")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "config.json").write_text("{}")
    return out, folder


def rewrite(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_card_replaces_its_own_files_only(published):
    out, folder = published
    fill_card_folder(out, folder)
    (folder / "evaluation" / "unimed-mini" / "plots" / "mine.png").write_bytes(b"x")
    (out / "unimed-mini" / "plots" / "vqa_confusion.png").unlink()
    fill_card_folder(out, folder)
    left = {path.name for path in (folder / "evaluation" / "unimed-mini" / "plots").iterdir()}
    assert {"mine.png", "scores.png"} <= left and "vqa_confusion.png" not in left
    (folder / "evaluation" / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="is not of `unimedvl eval card`"):
        fill_card_folder(out, folder)
    assert (folder / "evaluation" / "unimed-mini" / "plots" / "mine.png").is_file()


def test_a_card_shows_generated_images_only_where_none_is_a_copy(published):
    out, folder = published
    shown = "evaluation/unimed-mini/made/text_to_image.png"
    assert shown in fill_card_folder(out, folder)

    def change(results, **memory):
        results["benchmarks"]["unimed-mini"]["tasks"]["text_to_image"]["memorization"] |= memory

    for memory in ({"memorized": True, "copies": 4}, {"memorized": False, "copies": 1}):
        rewrite(out / "results.json", lambda results, memory=memory: change(results, **memory))
        assert shown not in fill_card_folder(out, folder) and not (folder / shown).exists()
    rewrite(out / "results.json", lambda results: change(results, memorized=False, copies=0))
    rewrite(out / "results.json", lambda results: results.update(model="baseline:training-image"))
    assert shown not in fill_card_folder(out, folder)

    def not_searched(results):
        del results["benchmarks"]["unimed-mini"]["tasks"]["text_to_image"]["memorization"]

    rewrite(out / "results.json", lambda results: results.update(model="m"))
    rewrite(out / "results.json", not_searched)
    assert shown not in fill_card_folder(out, folder)


def test_a_card_names_the_day_of_the_evaluation(published):
    out, folder = published
    rewrite(out / "manifest.json", lambda manifest: manifest.update(date="2001-02-03"))
    fill_card_folder(out, folder)
    assert "date: '2001-02-03'" in (folder / ".eval_results" / "unimed-mini.yaml").read_text()


def test_reader_study_is_blind_and_scored(finished, tmp_path):
    out, _ = finished
    study = tmp_path / "study"
    found = make_study(out, study, count=4)
    assert found["images"] == 8
    key = json.loads((study / "key.json").read_text())
    order = [entry["generated"] for entry in key.values()]
    assert sum(order) == 4 and order != sorted(order) and order != sorted(order, reverse=True)
    sizes = set()
    for path in (study / "images").iterdir():
        with Image.open(path) as image:
            sizes.add(image.size)
            assert not image.info
    assert len(sizes) == 1
    shown = re.findall(r'src="([^"]+)"', (study / "index.html").read_text())
    assert len(shown) == 8 and all((study / name).is_file() for name in shown)
    lines = ["number,rating,comment"] + [f"{n},{5 if entry['generated'] else 2}," for n, entry in key.items()]
    with pytest.raises(ValueError, match="no filled-in form"):
        score_study(study)
    (study / "anna.csv").write_text("\n".join(lines))
    assert score_study(study)["anna"]["balanced_accuracy"] == 1
    for divider in ";\t":
        # What a spreadsheet program saves: a byte order mark, other dividers and line ends, a comment in its encoding.
        saved = "\r\n".join(line.replace(",", divider) for line in lines).encode("utf-8-sig") + b"unscharf \xe4"
        (study / "anna.csv").write_bytes(saved)
        assert score_study(study)["anna"]["balanced_accuracy"] == 1
    (study / "anna.csv").write_text("\n".join(["image,rating", *lines[1:]]))
    with pytest.raises(ValueError, match="anna.csv: the first line must name the columns"):
        score_study(study)
    (study / "anna.csv").write_text("\n".join([*lines[:-1], f"{len(key)},9,"]))
    with pytest.raises(ValueError, match="anna.csv: image 8 needs a rating"):
        score_study(study)


def test_wrong_folders_get_one_line(records, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        BenchmarkData(get_benchmark("unimed-mini"), tmp_path / "none")
    with pytest.raises(ValueError, match="expected one of"):
        get_benchmark("imagenet")
    with pytest.raises(ValueError, match="none of vqa"):
        BenchmarkData(get_benchmark("bci"), records, tasks=["vqa"])
    with pytest.raises(ValueError, match="holds no virtual_staining record of the split test"):
        list(BenchmarkData(get_benchmark("bci"), records).samples())


def test_a_card_written_again_has_the_new_scores(published):
    out, folder = published
    fill_card_folder(out, folder)

    def change(results):
        for entry in results["benchmarks"]["unimed-mini"]["tasks"].values():
            for metric in entry["metrics"].values():
                metric["value"] = 0.123456

    rewrite(out / "results.json", change)
    fill_card_folder(out, folder)
    index = ModelCard.load(folder / "README.md").data.to_dict()["model-index"]
    found = [metric for result in index[0]["results"] for metric in result["metrics"]]
    assert {metric["value"] for metric in found} == {0.123456}
    assert len({metric["name"] for metric in found}) == len(found)


def test_a_run_that_lies_in_the_checkpoint_is_not_taken_for_a_card(published):
    out, folder = published
    shutil.copytree(out, folder / "evaluation")
    before = {path: path.read_bytes() for path in (folder / "evaluation").rglob("*") if path.is_file()}
    for run in (folder / "evaluation", out):
        with pytest.raises(ValueError, match="holds a run itself"):
            fill_card_folder(run, folder)
    assert {path: path.read_bytes() for path in (folder / "evaluation").rglob("*") if path.is_file()} == before


def test_a_card_forgets_the_benchmarks_of_the_run_before(published):
    out, folder = published
    other = out.parent / "other"
    shutil.copytree(out, other)
    (other / "unimed-mini").rename(other / "vqa-rad")

    def rename(results):
        results["benchmarks"] = {"vqa-rad": results["benchmarks"]["unimed-mini"]}

    rewrite(other / "results.json", rename)
    fill_card_folder(other, folder)
    assert (folder / ".eval_results" / "vqa-rad.yaml").is_file()
    fill_card_folder(out, folder)
    assert [path.name for path in (folder / ".eval_results").iterdir()] == ["unimed-mini.yaml"]


def test_a_reader_study_holds_no_color_profile(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for path in (out / "unimed-mini" / "images").rglob("*.png"):
        with Image.open(path) as image:
            image.load()
        image.save(path, icc_profile=profile)
    make_study(out, tmp_path / "study", 2)
    images = sorted((tmp_path / "study" / "images").iterdir())
    assert images and not any(b"iCCP" in path.read_bytes() for path in images)
    assert main(["eval", "sheet", str(out), str(tmp_path / "none"), "--count", "0"]) == 2
