"""Recipes say what they mean or stop with the nearest thing that exists."""

from pathlib import Path

import pytest
import yaml

from unimedvl.training.recipe import CurriculumRecipe, TrainingRecipe, load_recipe

BASE = {
    "model": "somewhere",
    "output_dir": "out",
    "steps": 5,
    "data": {"groups": [{"name": "all", "path": "records", "vae": {"min_side": 16, "max_side": 48}}]},
}


def write(tmp_path: Path, values) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_defaults_are_the_papers(tmp_path):
    recipe = load_recipe(write(tmp_path, BASE))
    assert isinstance(recipe, TrainingRecipe)
    assert (recipe.ce_weight, recipe.mse_weight, recipe.ema_decay) == (0.25, 1.0, 0.995)
    assert (recipe.optimizer.betas, recipe.optimizer.eps) == ([0.9, 0.95], 1e-15)
    dropout = recipe.data.condition_dropout
    assert (dropout.text, dropout.vit, dropout.vae) == (0.3, 0.05, 0.05)
    assert recipe.data.groups[0].vae.max_side == 48


def test_values_can_be_overridden_from_the_command_line(tmp_path):
    path = write(tmp_path, BASE)
    recipe = load_recipe(
        path, ["optimizer.learning_rate=1e-5", "data.groups.0.weight=2", "freeze=[vit, vae]", "bf16=false"]
    )
    assert recipe.optimizer.learning_rate == 1e-5 and recipe.data.groups[0].weight == 2.0
    assert recipe.freeze == ["vit", "vae"] and recipe.bf16 is False
    path = write(tmp_path, {**BASE, "optimizer": {"learning_rates": {"llm": 1e-5}}})
    assert load_recipe(path, ["optimizer.learning_rates={vit: 2e-5}"]).optimizer.learning_rates == {"vit": 2e-5}


def test_an_override_means_one_place_of_what_aliases_share(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: somewhere\noutput_dir: out\nsteps: 5\ndata:\n  path: records\n  groups:\n"
        "    - {name: first, vae: &side {min_side: 16, max_side: 48}, vit: *side}\n    - {name: second, vae: *side}\n"
    )
    recipe = load_recipe(path, ["data.groups.0.vit.max_side=64"])
    sizes = [group.vae.max_side for group in recipe.data.groups]
    assert sizes == [48, 48] and recipe.data.groups[0].vit.max_side == 64


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stepz": 3}, "stepz: Key 'stepz' not in 'TrainingRecipe'. Did you mean: 'steps'"),
        ({"optimizer": {"learning_rat": 1.0}}, "optimizer.learning_rat: .* Did you mean one of: 'learning_rate'"),
        ({"data": {"groups": [{"name": "a", "path": "b", "wieght": 1}]}}, "Did you mean: 'weight'"),
        ({"freeze": ["vitt"]}, "freeze must be of llm, vit, vae, und, not 'vitt'; did you mean 'vit'"),
        ({"steps": "many"}, "steps: Value 'many' of type 'str' could not be converted to Integer"),
        ({"steps": True}, "steps: Value 'True' of type 'bool'"),
        ({"bf16": "yes please"}, "bf16: Value 'yes please' is not a valid bool"),
        ({"data": []}, "data: Invalid type assigned: list"),
        ({"data": {"groups": []}}, "groups is empty"),
        ({"data": {"groups": [{"name": "a", "path": "b", "weight": 0}]}}, "weight of group 'a'"),
        ({"data": {"groups": [{"name": "a", "path": "b", "timestep_shift": 0}]}}, "timestep_shift of group 'a'"),
        ({"data": {"groups": [{"name": "a", "path": "b", "timestep_shift": float("inf")}]}}, "above 0 and finite"),
        ({"timestep_shift": float("nan")}, "timestep_shift must be above 0"),
        ({"optimizer": {"learning_rates": {"lmm": 1e-5}}}, "did you mean 'llm'"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"optimizer": {"betas": [0.9]}}, "betas must be two numbers, not 1"),
        ({"report_to": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"adapter": {}, "parallelism": "fsdp2"}, "An adapter trains under parallelism: ddp"),
        ({"data": {"groups": [{"name": "a", "path": "b"}], "condition_dropout": {"text": 2}}}, "text must lie in"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_recipe(write(tmp_path, {**BASE, **change}))
    assert "\n" not in str(raised.value)


def test_missing_keys_and_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="missing mandatory value: steps"):
        load_recipe(write(tmp_path, {key: value for key, value in BASE.items() if key != "steps"}))
    with pytest.raises(ValueError, match="must hold keys and values"):
        load_recipe(write(tmp_path, ["a"]))
    (tmp_path / "recipe.yaml").write_text("data: &data {path: records, again: *data}")
    with pytest.raises(ValueError, match="recursive aliases"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("override", ["steps", "=3", "data.groups.7.weight=2", "steps.deep=1", "freeze=[vit"])
def test_wrong_overrides(tmp_path, override):
    with pytest.raises(ValueError, match=override.split("=")[0].split(".")[0] or "override"):
        load_recipe(write(tmp_path, BASE), [override])


def test_a_file_with_stages_is_a_curriculum(tmp_path):
    values = {"model": "m", "output_dir": "o", "stages": [{"name": "one", "recipe": "one.yaml"}]}
    recipe = load_recipe(write(tmp_path, values))
    assert isinstance(recipe, CurriculumRecipe) and recipe.stages[0].weights == "ema"
