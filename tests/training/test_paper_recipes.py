"""The recipes of the 14B model say what the paper says."""

import pytest

from unimedvl.commands.main import main
from unimedvl.training.data_recipe import ImageRange
from unimedvl.training.recipe import PACKAGED, CurriculumRecipe, TrainingRecipe, load_recipe

# Table 12 of the paper: steps, learning rate, packed tokens, frozen parts, shares.
STAGES = {
    "stage-1": (85_000, 5e-5, 18_500, ["vae"], {"text": 5, "text-to-image": 25, "understanding": 75}),
    "stage-2": (
        120_000,
        2.5e-5,
        20_000,
        ["vae", "vit"],
        {"text": 5, "text-to-image": 45, "understanding": 40, "interleaved": 10},
    ),
    "stage-3": (
        70_000,
        1e-5,
        27_000,
        ["vae", "vit"],
        {"text": 3, "text-to-image": 35, "understanding": 37, "interleaved": 25},
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_papers_numbers(stage):
    recipe = load_recipe(f"unimedvl-14b/{stage}.yaml")
    steps, rate, tokens, frozen, shares = STAGES[stage]
    assert isinstance(recipe, TrainingRecipe)
    assert (recipe.steps, recipe.optimizer.learning_rate) == (steps, rate)
    assert recipe.data.pack_tokens == recipe.data.sample_tokens == tokens
    assert sorted(recipe.freeze) == frozen
    assert {group.name: group.weight for group in recipe.data.groups} == shares
    assert (recipe.ce_weight, recipe.mse_weight, recipe.ema_decay) == (0.25, 1.0, 0.995)
    dropout = recipe.data.condition_dropout
    assert (dropout.text, dropout.vit, dropout.vae, dropout.scope) == (0.3, 0.05, 0.05, "all")
    # What the paper leaves open: upstream's.
    optimizer = recipe.optimizer
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.max_grad_norm) == ("constant", 2000, 1.0)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.95], 1e-15, 0.0)
    assert (recipe.timestep_shift, recipe.bf16, recipe.parallelism) == (1.0, True, "fsdp2")


@pytest.mark.parametrize(
    "stage, vae, vit", [("stage-1", 512, None), ("stage-2", 512, (224, 518)), ("stage-3", 32, (378, 980))]
)
def test_images_have_the_papers_sizes_for_each_task_group(stage, vae, vit):
    groups = {group.name: group for group in load_recipe(f"unimedvl-14b/{stage}.yaml").data.groups}
    assert groups["understanding"].understanding == ImageRange(378, 980)
    assert groups["text-to-image"].vae == ImageRange(vae, 1024)
    if vit is not None:
        assert groups["interleaved"].vae == ImageRange(vae, 1024)
        assert groups["interleaved"].vit == ImageRange(*vit)


def test_the_curriculum_runs_the_stages_in_order():
    curriculum = load_recipe("unimedvl-14b/curriculum.yaml")
    assert isinstance(curriculum, CurriculumRecipe)
    assert [stage.name for stage in curriculum.stages] == list(STAGES)
    assert all((PACKAGED / "unimedvl-14b" / stage.recipe).is_file() for stage in curriculum.stages)
    assert {(stage.weights, stage.optimizer) for stage in curriculum.stages} == {("ema", "fresh")}


@pytest.mark.parametrize("name", ["unimedvl-14b/curriculum.yaml", "unimedvl-14b/stage-2.yaml"])
def test_records_that_are_not_there_are_one_line(name, tmp_path, capsys):
    overrides = [f"data.path={tmp_path / 'nothing'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["train", name, *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unimedvl: ") and str(tmp_path / "nothing") in line and "build the records" in line
