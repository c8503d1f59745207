"""What of a run goes into a card and into a reader study."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from PIL import Image, ImageCms

from unimedvl.commands.main import main
from unimedvl.evaluation.cards import fill_card_folder
from unimedvl.evaluation.reader_sheets import make_study, score_study

pytestmark = pytest.mark.medium


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
    with pytest.raises(ValueError, match=r"neither config\.json"):
        fill_card_folder(out, tmp_path / "nowhere")
    # A card may follow: `unimedvl card` reads the results.
    (tmp_path / "README.md").unlink()
    assert "README.md" not in fill_card_folder(out, tmp_path)
    assert not (tmp_path / "README.md").exists()


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
