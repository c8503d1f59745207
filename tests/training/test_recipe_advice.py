"""A recipe whose groups find no records names the one that fits; an empty split is called by its name."""

import pytest

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import record, write_folder
from unimedvl.training.recipe import TrainingRecipe, load_recipe
from unimedvl.training.run import main, run
from unimedvl.unimed5m.schema import to_table
from unimedvl.unimed5m.shards import write_table

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of one task each, and a tiny model."""
    place = tmp_path_factory.mktemp("place")
    for task in ("vqa", "dialogue", "text_to_image", "segmentation", "counterfactual"):
        write_folder(place / task, {task: 3})
    (place / "caption" / "data").mkdir(parents=True)
    (place / "report" / "data").mkdir(parents=True)
    for task in ("caption", "report"):
        rows = [record("vqa", number) for number in range(3)]
        for row in rows:
            object.__setattr__(row, "sub_task_type", task)
        write_table(place / task / "data" / f"train-{task}.parquet", to_table(rows))
    tiny_checkpoint(place / "model")
    return place


def refused(folders, capsys, name, records, *changes):
    """The line about a recipe that does not fit."""
    own = [f"model={folders / 'model'}", f"output_dir={folders / 'out'}", "bf16=false"]
    joint = isinstance(load_recipe(f"tuning/{name}.yaml"), TrainingRecipe)
    paths = ["data.path"] if joint else ["train.path", "evaluation.path"]
    words = [f"tuning/{name}.yaml", *own, *[f"{path}={folders / records}" for path in paths], *changes]
    assert main(words) == 2
    return capsys.readouterr().err.rstrip().splitlines()[-1]


@pytest.mark.parametrize(
    "name, records, fits",
    [
        ("lora-both", "caption", "tuning/lora-understanding.yaml."),
        ("lora-both", "vqa", "tuning/lora-understanding.yaml."),
        ("lora-both", "text_to_image", "tuning/lora-generation.yaml."),
        ("lora-understanding", "segmentation", "tuning/lora-generation.yaml."),
        ("lora-generation", "dialogue", "tuning/lora-understanding.yaml."),
        ("lora-both-vit", "caption", "tuning/lora-understanding.yaml adapter.vit=true."),
        ("dora-both", "text_to_image", "tuning/lora-generation.yaml adapter.method=dora."),
        ("qlora-both", "caption", "tuning/lora-understanding.yaml adapter.quantize=nf4."),
        ("lora-both", "report", "tuning/grpo.yaml or tuning/sft.yaml."),
        ("sft", "caption", "tuning/lora-understanding.yaml."),
        ("dpo", "report", "tuning/grpo.yaml or tuning/sft.yaml."),
        ("sft", "text_to_image", "tuning/lora-generation.yaml."),
        ("flow-grpo", "vqa", "tuning/lora-understanding.yaml."),
        ("lora-both", "counterfactual", "No recipe of the package fits these records"),
    ],
)
def test_f14_the_recipe_that_fits_is_named(folders, capsys, name, records, fits):
    line = refused(folders, capsys, name, records)
    assert f"it holds 3 train/{records}" in line and fits in line


@pytest.mark.parametrize("name, records", [("lora-both", "caption"), ("lora-understanding", "text_to_image")])
def test_f14_the_recipe_that_is_named_runs(folders, capsys, tmp_path, name, records):
    fitting = refused(folders, capsys, name, records).rpartition(": ")[2].rstrip(".")
    sizes = "{min_side: 16, max_side: 48}"
    changes = [f"model={folders / 'model'}", f"data.path={folders / records}", f"output_dir={tmp_path}", "steps=1"]
    changes += ["bf16=false", "data.pack_tokens=200"]
    changes += [f"data.groups.0.{side}={sizes}" for side in ("vae", "vit", "understanding")]
    assert (run(fitting, changes) / "adapter_model.safetensors").is_file()


def test_f14_an_empty_validation_split_is_called_by_its_name(folders, capsys):
    line = refused(folders, capsys, "lora-understanding", "vqa", "validation.every=1")
    assert "validation: " in line and "holds no validation record; it holds 3 train/vqa" in line
    group = "{name: held, path: %s, split: test}" % (folders / "vqa")
    line = refused(folders, capsys, "lora-understanding", "vqa", "validation.every=1", f"validation.groups=[{group}]")
    assert "Group 'held'" in line and "holds no test record" in line
    line = refused(folders, capsys, "sft", "vqa")
    assert "evaluation: " in line and "holds no validation record; it holds 3 train/vqa" in line


def test_f14_a_published_folder_without_the_split_is_called_by_its_name(folders, capsys, tmp_path):
    (tmp_path / "data" / "vqa").mkdir(parents=True)
    shard = (folders / "vqa" / "data" / "train-vqa.parquet").read_bytes()
    (tmp_path / "data" / "vqa" / "train-00000.parquet").write_bytes(shard)
    line = refused(folders, capsys, "lora-understanding", str(tmp_path), "validation.every=1")
    assert "holds no validation record; it holds 3 train/vqa" in line


def test_a_recipe_of_ones_own_without_an_adapter_gets_no_advice(folders, capsys, tmp_path):
    line = refused(folders, capsys, "lora-both", "vqa", "adapter=null")
    assert "fits" not in line and "it holds 3 train/vqa" in line
