"""The shipped tuning recipes run through the same door as all recipes, and their adapters are finished folders."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import record, write_folder
from tests.unimedvl.commands.bad_files import Trap
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.training.language.trl_datasets import generation_examples
from unimedvl.training.recipe import load_recipe
from unimedvl.training.run import main, run
from unimedvl.training.tuning_recipe import TuningRecipe

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes" / "tuning"
QUICK = {
    "sft": ["arguments.per_device_train_batch_size=2"],
    "dpo": ["arguments.per_device_train_batch_size=2"],
    "grpo": [
        "arguments.num_generations=2",
        "arguments.per_device_train_batch_size=2",
        "arguments.per_device_eval_batch_size=2",
        "arguments.max_completion_length=3",
    ],
    "flow-grpo": [
        "arguments.prompts_per_step=1",
        "arguments.group_size=2",
        "arguments.num_inference_steps=2",
        "arguments.height=16",
        "arguments.width=16",
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    for split in ("train", "validation"):
        write_folder(folder / "records", {"vqa": 6, "text_to_image": 3}, split)
    tiny_checkpoint(folder / "model")
    return folder


def overrides(place, output, name, *more):
    records = place / "records"
    own = [f"model={place / 'model'}", f"output_dir={output}", "bf16=false", "arguments.max_steps=1"]
    own += [f"train.path={records}", f"evaluation.path={records}", "evaluation.limit=2"]
    return [*own, *QUICK[name], *more]


@pytest.mark.parametrize("name", QUICK)
def test_every_method_ends_in_an_adapter(place, tmp_path, name):
    path, changes = RECIPES / f"{name}.yaml", overrides(place, tmp_path / name, name)
    final = run(path, changes)
    base = UniMedVLForConditionalGeneration.from_pretrained(place / "model")
    adapted = PeftModel.from_pretrained(base, final)
    expert = "_moe_gen" in str(adapted.peft_config["default"].target_modules)
    assert expert == (name == "flow-grpo")
    # A finished run is left as it is.
    times = {file: file.stat().st_mtime_ns for file in final.iterdir()}
    assert run(path, changes) == final
    assert times == {file: file.stat().st_mtime_ns for file in final.iterdir()}


def test_examples_of_images_to_make():
    made, changed = generation_examples([record("text_to_image", 1), record("segmentation", 2)])
    assert made["images"] == [] and made["reference"].size == (32, 32)
    assert made["prompt"] == "shadow bright" and made["answer"] == "magnetic resonance imaging"
    assert changed["images"][0].size == (40, 24) and changed["prompt"] == "find the shadow bright left"
    with pytest.raises(ValueError, match="vqa-0-train is not one instruction for one image"):
        generation_examples([record("vqa", 0)])


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("sft", ["method=ppo"], "method must be one of 'sft', 'dpo', 'grpo', 'flow_grpo'"),
        ("sft", ["rewards.answer_match=1"], "method sft reads no `rewards`"),
        ("grpo", ["rewards={}"], "method grpo needs `rewards`"),
        ("grpo", ["rewards={kindness: 1}"], "rewards must name some of answer_match"),
        ("flow-grpo", ["rewards={kindness: 1}"], "rewards must name some of dice, psnr, ssim, answer"),
        ("flow-grpo", ["arguments.group=3"], "Did you mean: 'group_size'"),
        ("flow-grpo", ["arguments.group_size=1"], "group_size must be at least 2"),
        ("sft", ["arguments.learning_rat=1"], "SFTConfig has no setting learning_rat"),
        ("sft", ["arguments.seed=1"], "arguments.seed is set twice"),
        ("dpo", ["train.tasks=[report]"], "holds no train record of the wanted tasks"),
    ],
)
def test_wrong_settings_are_one_sentence(place, tmp_path, capsys, name, changes, message):
    assert main([str(RECIPES / f"{name}.yaml"), *overrides(place, tmp_path / "run", name, *changes)]) == 2
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert last.startswith("python -m unimedvl.training.run: ") and message in last


def test_a_checkpoints_pickles_run_no_code(place, tmp_path, capsys):
    changes = overrides(place, tmp_path / "run", "sft", "arguments.save_steps=1")
    run(RECIPES / "sft.yaml", changes)
    shutil.rmtree(tmp_path / "run" / "final")
    [state] = (tmp_path / "run").glob("checkpoint-*/optimizer.pt")
    torch.save({"state": Trap(tmp_path / "sprung")}, state)
    assert main([str(RECIPES / "sft.yaml"), *changes, "arguments.max_steps=2"]) == 2
    assert "which could run code: remove it" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def test_numbers_without_a_point_are_numbers(place, tmp_path):
    recipe = load_recipe(RECIPES / "sft.yaml", overrides(place, tmp_path, "sft", "arguments.learning_rate=1e-3"))
    assert isinstance(recipe, TuningRecipe) and recipe.arguments["learning_rate"] == 1e-3
    run(RECIPES / "sft.yaml", overrides(place, tmp_path / "run", "sft", "arguments.learning_rate=1e-3"))
    arguments = torch.load(next((tmp_path / "run").glob("checkpoint-*")) / "training_args.bin", weights_only=False)
    assert arguments.learning_rate == 1e-3
