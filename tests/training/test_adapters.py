"""Presets sit where they say, are trained, resume where they stopped, and load exactly."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import write_folder
from tests.unimedvl.commands.bad_files import Trap
from unimedvl.checkpoint.merging import merge_adapter
from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.training import adapters
from unimedvl.training.adapters import bare_model, load_with_adapter
from unimedvl.training.checkpoints import checkpoints, stored_tensors
from unimedvl.training.recipe import TrainingRecipe, load_recipe
from unimedvl.training.run import main, run
from unimedvl.training.tuning_recipe import AdapterRecipe

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "tuning"
NANO = ROOT / "hub_cards" / "unimedvl-nano"
PRESETS = sorted(path.stem for path in RECIPES.glob("*.yaml") if isinstance(load_recipe(path), TrainingRecipe))
# bitsandbytes packs 4-bit weights in blocks of 64 values.
BLOCK_OF_64 = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "records", {"vqa": 6, "dialogue": 3, "text_to_image": 4, "segmentation": 4})
    tiny_checkpoint(folder / "model", **BLOCK_OF_64)
    return folder


def overrides(place, output, preset, *more):
    sizes = "{min_side: 16, max_side: 48}"
    groups = len(load_recipe(RECIPES / f"{preset}.yaml").data.groups)
    own = [f"model={place / 'model'}", f"output_dir={output}", "steps=1", "save_steps=1", "log_steps=1"]
    own += ["data.pack_tokens=200", "bf16=false", "optimizer.warmup_steps=0", "optimizer.learning_rate=1e-2"]
    for number in range(groups):
        own += [f"data.groups.{number}.path={place / 'records'}"]
        own += [f"data.groups.{number}.{name}={sizes}" for name in ("vae", "vit", "understanding")]
    return [*own, *more]


def logits(model, mode="text"):
    """Of one question, or the velocity at random latents for one prompt."""
    config = model.config
    ids = torch.arange(5, 25)[None]
    extra = {}
    if mode == "image":
        latents = torch.randn(4, config.latent_dim, generator=torch.Generator().manual_seed(0))
        block = [config.vision_start_token_id, *[config.latent_token_id] * 4, config.vision_end_token_id]
        kinds = torch.zeros(1, 26, dtype=torch.long)
        kinds[:] = int(BlockKind.TEXT)
        kinds[:, 21:25] = int(BlockKind.NOISED)
        ids = torch.cat([ids, torch.tensor([block])], dim=1)
        extra = {
            "mm_token_type_ids": kinds,
            "latent_values": [bare_model(model).model.latent_grid(latents, 2, 2)],
            "flow_noise": latents,
            "flow_timesteps": torch.tensor([0.5]),
        }
    with torch.no_grad():
        output = model.eval()(input_ids=ids, **extra)
    return output.velocity if mode == "image" else output.logits


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_and_come_back_exactly(place, tmp_path, preset):
    recipe = load_recipe(RECIPES / f"{preset}.yaml")
    final = run(RECIPES / f"{preset}.yaml", overrides(place, tmp_path / "run", preset))
    names = {path.name for path in final.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= names
    assert "model.safetensors" not in names
    learned = load_file(final / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in learned.items() if "lora_B" in name)
    experts = {"_moe_gen" in name for name in learned if "language_model" in name}
    assert experts == {"understanding": {False}, "generation": {True}, "both": {False, True}}[recipe.adapter.experts]
    assert any("vit_model" in name for name in learned) == recipe.adapter.vit
    # Twice from the disk, onto bases that were loaded apart.
    again, fresh = (
        PeftModel.from_pretrained(load_with_adapter(place / "model", recipe.adapter, torch.float32).unload(), final)
        for _ in range(2)
    )
    for mode in ("text", "image"):
        assert torch.equal(logits(fresh, mode), logits(again, mode))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_the_nano(place, tmp_path, preset):
    recipe = load_recipe(RECIPES / f"{preset}.yaml")
    changes = [f"data.groups.{number}.path={place / 'records'}" for number in range(len(recipe.data.groups))]
    changes += [f"model={NANO}", f"output_dir={tmp_path / 'run'}", "steps=2", "optimizer.warmup_steps=0"]
    final = run(RECIPES / f"{preset}.yaml", changes)
    bases = (load_with_adapter(NANO, recipe.adapter, torch.float32).unload() for _ in range(2))
    one, other = (PeftModel.from_pretrained(base, final) for base in bases)
    for mode in ("text", "image"):
        assert torch.equal(logits(one, mode), logits(other, mode))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_saved_adapters_give_the_same_bits(place, tmp_path, method, quantize):
    torch.manual_seed(0)
    recipe = AdapterRecipe(method=method, vit=True, rank=4, quantize=quantize)
    model = load_with_adapter(place / "model", recipe, torch.float32)
    before = {mode: logits(model, mode) for mode in ("text", "image")}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = {mode: logits(model, mode) for mode in ("text", "image")}
    assert all(not torch.equal(expected[mode], before[mode]) for mode in expected)
    model.save_pretrained(tmp_path / "adapter")
    base = load_with_adapter(place / "model", recipe, torch.float32).unload()
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert all(torch.equal(logits(again, mode), expected[mode]) for mode in expected)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    merged = UniMedVLForConditionalGeneration.from_pretrained(tmp_path / "merged")
    # Merged weights are the full ones: what 4 bits rounded away is back.
    tolerance = 0.5 if quantize else 1e-4
    for mode, value in expected.items():
        assert (logits(merged, mode) - value).abs().max() <= tolerance * value.abs().max()


def test_an_adapter_on_one_expert_leaves_the_other_alone(place):
    base = UniMedVLForConditionalGeneration.from_pretrained(place / "model").eval()
    model = load_with_adapter(place / "model", AdapterRecipe(experts="generation", rank=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert torch.equal(logits(model), logits(base))
    assert not torch.equal(logits(model, "image"), logits(base, "image"))


def test_resuming_gives_the_same_adapter(place, tmp_path):
    recipe = RECIPES / "lora-both-vit.yaml"

    def steps(name, number):
        changes = (f"steps={number}", "adapter.dropout=0.3", "optimizer.schedule=constant")
        return run(recipe, overrides(place, tmp_path / name, recipe.stem, *changes))

    whole = steps("whole", 4)
    held = stored_tensors(checkpoints(tmp_path / "whole")[-1])
    assert held and all("lora_" in name for name in held), "the base does not change and is not written"
    shutil.rmtree(steps("parts", 2))
    # Whatever lies beside the state that is resumed: no pickle is opened.
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
        trap = pickle.dumps(Trap(tmp_path / "sprung"))
        (checkpoints(tmp_path / "parts")[-1] / name).write_bytes(trap)
    parts = steps("parts", 4)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ("adapter.method=lore", "adapter.method must be one of 'lora', 'dora'"),
        ("adapter.experts=all", "adapter.experts must be one of"),
        ("adapter.quantize=int4", "adapter.quantize must be one of"),
        ("adapter.rank=0", "adapter.rank must be 1 or more"),
        ("adapter.ranks=4", "Did you mean: 'rank'"),
    ],
)
def test_wrong_settings_are_one_sentence(capsys, change, message):
    assert main([str(RECIPES / "lora-both.yaml"), change]) == 2
    assert message in capsys.readouterr().err


def test_the_former_place_of_merging_warns_and_works(place, tmp_path):
    model = load_with_adapter(place / "model", AdapterRecipe(), torch.float32)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(FutureWarning, match="unimedvl.checkpoint.merging.merge_adapter"):
        adapters.merge_adapter(place / "model", tmp_path / "adapter", tmp_path / "merged", dtype=torch.float32)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_merging_names_what_is_wrong(place, tmp_path):
    with pytest.raises(ValueError, match="holds no adapter_config.json"):
        merge_adapter(place / "model", tmp_path / "merged")
    with pytest.raises(ValueError, match="is not empty"):
        merge_adapter(place / "model", place / "model")
