"""`unimedvl train` runs a recipe, or says in one line what is wrong with it."""

import pytest
import yaml

from tests.training.record_folders import write_folder
from unimedvl.commands.main import main
from unimedvl.training.checkpoints import checkpoints


@pytest.fixture
def recipe(checkpoint, tmp_path):
    records = write_folder(tmp_path / "records", {"vqa": 4, "text_to_image": 4})
    sizes = {"min_side": 16, "max_side": 48}
    vit = {"min_side": 12, "max_side": 48}
    values = {
        "model": str(checkpoint),
        "output_dir": str(tmp_path / "out"),
        "steps": 4,
        "bf16": False,
        "optimizer": {"warmup_steps": 0},
        "data": {
            "path": str(records),
            "pack_tokens": 120,
            "groups": [{"name": "all", "vae": sizes, "vit": vit, "understanding": vit}],
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_with_changes_on_the_command_line(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "steps=1", "save_steps=1", "log_steps=1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "final-ema")
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-1"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.yaml"], "unimedvl-14b/curriculum.yaml"),
        (["RECIPE", "stepz=1"], "Key 'stepz' not in 'TrainingRecipe'. Did you mean: 'steps'"),
        (["RECIPE", "steps"], "is no override"),
        (["RECIPE", "model=nothing/here/at/all"], "nothing/here/at/all"),
        ([], "Missing argument 'RECIPE'"),
    ],
)
def test_a_user_error_is_one_line(recipe, arguments, message, capsys):
    assert main(["train", *[str(recipe) if name == "RECIPE" else name for name in arguments]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unimedvl: ") and message in line
