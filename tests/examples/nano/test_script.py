"""The nano's steps on a few drawn images: that every one runs, what they publish and how they measure."""

import errno
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from examples.nano import (
    ablation,
    asking,
    autoencoder,
    contact_sheets,
    evaluate,
    generated_images,
    left_out_patient,
    prepare,
    release,
    sampling,
    vision,
)
from examples.nano.card import AIMS, facts_of
from examples.nano.model import SIDE, nano_presets
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.processing.chat_template_unimedvl import CHAT_TEMPLATE
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor
from unimedvl.training.recipe import CurriculumRecipe, TrainingRecipe, load_recipe
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json

pytestmark = pytest.mark.medium

RECIPES = prepare.Path(prepare.__file__).with_name("recipes") / "unimedvl-nano"
NANO = prepare.Path(prepare.__file__).parents[2] / "hub_cards" / "unimedvl-nano"


@pytest.mark.slow
def test_every_step_runs_and_the_checkpoint_is_measured(finished, work, built, tmp_path, monkeypatch):
    monkeypatch.setattr(generated_images, "JUDGE_STEPS", 20)
    monkeypatch.setattr(generated_images, "PER_MODALITY", 1)
    monkeypatch.setattr(generated_images, "PER_CLASS", 1)
    monkeypatch.setattr(asking, "BATCH", 16)
    nano = asking.Nano(str(finished), {"num_inference_steps": 3})
    records = list(prepare.read_records(built, "validation"))
    out = tmp_path / "figures.json"
    evaluate.evaluate(nano, records, work, most=2, out=out, model="this")
    results = read_json(out)
    assert results.pop("model") == "this"
    monkeypatch.setattr(asking.Nano, "ask", None)  # what the file holds is not asked again
    assert evaluate.evaluate(nano, records, work, most=2, out=out, model="this") == {"model": "this", **results}
    with pytest.raises(ValueError, match="another checkpoint or split"):
        evaluate.evaluate(nano, records, work, most=2, out=out, model="that")
    assert results["modality"]["count"] == 11
    assert results["segmentation, Dice: fetal head"]["count"] == 3
    assert results["VQA-RAD closed"]["count"] == 2
    assert set(results["4x super-resolution"]["ssim"]) == {"nano", "bicubic", "autoencoder", "gain over bicubic"}
    assert results["text to image: modality recognized"]["count"] == 8
    for name, value in results.items():
        if value.get("low") is not None:
            assert value["low"] <= value["value"] <= value["high"], name
    # The card finds every figure where the evaluation leaves it.
    rows = {row.measured: row.value for row in facts_of({"validation": results}).figures}
    for aim in AIMS:
        if aim.path[0] == "validation" and aim.path[1] in results:
            assert rows[aim.measured] != "not measured", aim
    assert sum(value != "not measured" for value in rows.values()) >= 12


@pytest.mark.slow
def test_sampling_settings_are_scored_once(finished, work, tmp_path, monkeypatch):
    monkeypatch.setattr(generated_images, "JUDGE_STEPS", 20)
    few = {
        task: [{**settings, "num_inference_steps": 1} for settings in found[:1]]
        for task, found in sampling.CANDIDATES.items()
    }
    held_out = ["segmentation", "super_resolution"]
    monkeypatch.setattr(sampling, "CANDIDATES", few)
    sampling.main(str(finished), work, tmp_path / "scores.json", only=held_out)
    found = read_json(tmp_path / "scores.json")
    assert list(found) == held_out and found["segmentation"]["records"] == "held-out"
    assert 0 <= found["segmentation"]["candidates"][0]["score"] <= 1
    before = (tmp_path / "scores.json").stat().st_mtime_ns
    sampling.main(str(finished), work, tmp_path / "scores.json", only=held_out)
    assert (tmp_path / "scores.json").stat().st_mtime_ns == before, "what was scored is not scored again"


NOT_THERE = ["--work", "not-there", "--out", "never-made"]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (prepare, ["--records", "not-there", "--out", "never-made"], "expected Parquet shards in not-there"),
        (autoencoder, NOT_THERE, "run `python -m examples.nano.prepare` first"),
        (vision, NOT_THERE, "run `python -m examples.nano.prepare` first"),
        (ablation, NOT_THERE, "holds no untrained checkpoint"),
        (left_out_patient, NOT_THERE, "holds no untrained checkpoint"),
        (release, ["--model", "./not-there", "--out", "never-made"], "not-there"),
        (contact_sheets, ["--model", "./not-there", "--out", "never-made.png"], "not-there"),
        (prepare, ["--records", "r", "--out", "never-made", "--autoencoder", "not-there"], "not-there"),
        (prepare, ["--records", "r", "--out", "m", "--autoencoder", str(NANO), "--vision", "v"], "no pre-trained ViT"),
        (evaluate, ["--model", "./not-there", "--records", "not-there", "--work", "w"], "w holds no records"),
        (contact_sheets, ["--model", "./not-there", "--out", "made"], "made is no name of a PNG"),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else "",
)
def test_a_folder_that_is_not_there_is_reported_in_one_line(module, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_module(module.main, arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not any(tmp_path.rglob("*"))


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_release_holds_the_stages_weights_the_nanos_presets_and_what_was_written_beside_them(
    finished, tmp_path, monkeypatch
):
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "left.bin").write_text("of the release before")
    with pytest.raises(ValueError, match="and no published model"):
        release.release(finished, tmp_path)
    (tmp_path / "config.json").write_text('{"my": "application"}')
    with pytest.raises(ValueError, match="and no published model"):
        release.release(finished, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unimedvl"}')
    with pytest.raises(ValueError, match="holds left.bin, which no release has written"):
        release.release(finished, tmp_path)
    (tmp_path / "left.bin").unlink()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_text("of the release before")
    # As a killed release leaves it.
    (tmp_path / ".cache" / "release-killed").mkdir(parents=True)
    for folder in release.OUTDATED:
        (tmp_path / folder).mkdir()
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space"):
        full.setattr(UniMedVLProcessor, "save_pretrained", no_space)
        release.release(finished, tmp_path)
    assert (tmp_path / "model-00001-of-00002.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match="the checkpoint .* itself"):
        release.release(finished, finished)
    old = shutil.copytree(finished, tmp_path.parent / f"{tmp_path.name}-old")
    (old / "chat_template.jinja").write_text("{{ messages }}")
    assert run_module(release.main, ["--model", str(old), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    stage, written = (asking.Nano(str(folder)).model for folder in (finished, tmp_path))
    weights, stored = written.state_dict(), load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    for name, value in stage.state_dict().items():
        assert weights[name].dtype == torch.float32 and torch.equal(weights[name], value.to(torch.bfloat16).float())
    presets = written.generation_config.task_presets
    assert presets == nano_presets(presets) and presets["t2i"]["height"] == SIDE
    assert (tmp_path / "README.md").read_text() == "card"
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"model.safetensors"}
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".cache"]


def test_a_sheet_of_edits_holds_generated_images_only_unless_asked(finished, work, tmp_path):
    arguments = ["--model", str(finished), "--kind", "edits", "--out", str(tmp_path / "made.png")]
    assert run_module(contact_sheets.main, arguments) == 2
    assert run_module(contact_sheets.main, [*arguments, "--work", str(work)]) == 0
    nano, side = asking.Nano(str(finished)), SIDE * contact_sheets.SCALE
    record = read_provenance(tmp_path / "made.png")
    assert record["synthetic"] and record["digital_source_type"].endswith("/trainedAlgorithmicMedia")
    with Image.open(tmp_path / "made.png") as made:
        rows = made.height / (contact_sheets.CAPTION + side + contact_sheets.MARGIN)
    # The drawn records hold one of the edits, fetal heads.
    assert rows == 1
    assert contact_sheets.edit_sheet(nano, work, with_inputs=True).height == 3 * made.height


UPRIGHT = {"CXR", "RAD", "nih-chestxray14-subset", "covid-chestxray", "vqa-rad"}


def test_the_shipped_recipes_are_read():
    curriculum = load_recipe(RECIPES / "curriculum.yaml")
    assert isinstance(curriculum, CurriculumRecipe)
    for stage in curriculum.stages:
        recipe = load_recipe(RECIPES / stage.recipe)
        assert isinstance(recipe, TrainingRecipe)
        assert sum(group.weight for group in recipe.data.groups) == pytest.approx(1.0, abs=1e-3)
        for group in recipe.data.groups:
            shown = {*group.modalities, *group.sources}
            assert not group.augmentation.flip_horizontal or (
                # Tasks of one modality each, which is none of the upright ones.
                {"cross_modal", "virtual_staining"}.issuperset(group.tasks) if not shown else not UPRIGHT & shown
            ), group.name
