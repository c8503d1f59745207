"""PEFT's methods without targets adapt both experts, and nothing else, wherever the model's code comes from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from torch import nn

from tests.tiny_inputs import collate, conversation, noises
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.adapters_unimedvl import register_default_targets
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = {
    "lora": lambda: LoraConfig(r=2),
    "adalora": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=10),
    "ia3": lambda: IA3Config(),
    "layer norms": lambda: LNTuningConfig(),
}
# Adapted modules in each layer of one expert, and outside the layers.
MODULES = {"lora": (7, 0), "adalora": (7, 0), "ia3": (2, 0), "layer norms": (2, 1)}
MARKERS = (".lora_", ".ia3_", ".ln_tuning_")

pytestmark = [pytest.mark.medium, pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    return folder


def adapted_modules(model) -> set[str]:
    names = (name for name, _ in model.named_parameters())
    return {name.split(marker)[0] for name in names for marker in MARKERS if marker in name}


def outputs(model, row) -> list[torch.Tensor]:
    """Logits and, for the image of the row made noisy, the velocity."""
    kinds = torch.where(row["mm_token_type_ids"] == 2, 3, row["mm_token_type_ids"])
    torch.manual_seed(0)
    with torch.no_grad():
        made = model(**{**row, "mm_token_type_ids": kinds})
    return [made.logits, made.velocity]


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_default_targets(checkpoint, tmp_path, method):
    base = UniMedVLForConditionalGeneration.from_pretrained(checkpoint)
    row = conversation(base.config, [("latent", 2, 3), ("vit", 2, 2), [3, 4]], seed=1)
    row["vae_noise"] = noises(base.config, row)
    before = {name: value.clone() for name, value in base.named_parameters()}
    adapted = get_peft_model(base, CONFIGURATIONS[method]())

    modules = adapted_modules(adapted)
    in_layers, outside = MODULES[method]
    expected = in_layers * base.config.text_config.num_hidden_layers + outside
    assert all("language_model." in name for name in modules)
    assert sum("moe_gen" in name for name in modules) == expected
    assert sum("moe_gen" not in name for name in modules) == expected

    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    assert trained and all(any(marker in name for marker in MARKERS) for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    kinds = torch.where(row["mm_token_type_ids"] == 2, 3, row["mm_token_type_ids"])
    losses = []
    adapted.train()
    for _ in range(4):
        torch.manual_seed(0)
        loss = adapted(**{**row, "mm_token_type_ids": kinds, "labels": row["input_ids"]}).loss
        loss.backward()
        assert all(value.grad is not None for value in trained.values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.eval()
    for name, value in before.items():
        parent, _, leaf = name.rpartition(".")
        module = adapted.base_model.model.get_submodule(parent)
        assert torch.equal(getattr(getattr(module, "base_layer", module), leaf), value), name

    adapted.save_pretrained(tmp_path)
    fresh = UniMedVLForConditionalGeneration.from_pretrained(checkpoint)
    assert not torch.equal(outputs(fresh, row)[0], outputs(adapted, row)[0])
    reloaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    for got, wanted in zip(outputs(reloaded, row), outputs(adapted, row), strict=True):
        assert (got - wanted).abs().max().item() == 0.0


def test_registering_again_keeps_what_is_there(monkeypatch):
    monkeypatch.setitem(LORA_TARGETS, "unimedvl-of-a-user", ["q_proj"])
    register_default_targets("unimedvl-of-a-user")
    assert LORA_TARGETS["unimedvl-of-a-user"] == ["q_proj"]
    before = dict(LORA_TARGETS)
    register_default_targets("unimedvl")
    assert before == LORA_TARGETS


def test_defaults_hold_where_peft_comes_after_the_model(checkpoint):
    program = """
import sys
from unimedvl import UniMedVLForConditionalGeneration
model = UniMedVLForConditionalGeneration.from_pretrained(sys.argv[1], visual_gen=False)
assert "peft" not in sys.modules
from peft import LoraConfig, get_peft_model
trained = [name for name, value in get_peft_model(model, LoraConfig(r=2)).named_parameters() if value.requires_grad]
print(len(trained), all("language_model.layers" in name for name in trained))
"""
    command = [sys.executable, "-c", program, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    layers = UniMedVLForConditionalGeneration.from_pretrained(checkpoint).config.text_config.num_hidden_layers
    # Two matrices for each of seven linear layers.
    assert done.stdout.split() == [str(layers * 7 * 2), "True"]


REMOTE = """
import json, sys
class RefusePackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unimedvl":
            raise ImportError("unimedvl is not importable in this process")
sys.meta_path.insert(0, RefusePackage())
from peft import AdaLoraConfig, IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from transformers import AutoModelForMultimodalLM
counts = []
for config in (LoraConfig(r=2), AdaLoraConfig(total_step=10), IA3Config(), LNTuningConfig()):
    model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    trained = [name for name, value in get_peft_model(model, config).named_parameters() if value.requires_grad]
    counts.append([sum("moe_gen" in name for name in trained), sum("language_model" in name for name in trained)])
print(json.dumps(counts))
"""


def test_code_from_the_hub_registers_too(checkpoint, tmp_path):
    variables = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", REMOTE, str(checkpoint)]
    result = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout.splitlines()[-1])
    assert len(counts) == 4
    assert all(0 < generation == both - generation for generation, both in counts)


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
from tests.tiny_inputs import conversation
from tests.tiny_model import tiny_model
model = tiny_model()
row = conversation(model.config, [("vit", 2, 3), [3, 4]], seed=1, answer=True)
print(model.generate(**row, max_new_tokens=2, do_sample=False).shape[1] - row["input_ids"].shape[1])
"""


def test_the_model_works_without_peft():
    result = subprocess.run([sys.executable, "-c", WITHOUT_PEFT], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.splitlines()[-1]) > 0


def test_d11_all_linear_leaves_the_autoencoder_alone(checkpoint):
    base = UniMedVLForConditionalGeneration.from_pretrained(checkpoint)
    row = conversation(base.config, [("latent", 2, 3), ("vit", 2, 2), [3, 4]], seed=1)
    row["vae_noise"] = noises(base.config, row)
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    modules = adapted_modules(adapted)
    assert {name.removeprefix("base_model.model.") for name in modules} == linear
    assert not any(".vae." in name for name in modules)
    assert any(".vit_model." in name for name in modules) and any("_moe_gen" in name for name in modules)
    kinds = torch.where(row["mm_token_type_ids"] == 2, 3, row["mm_token_type_ids"])
    adapted.train()
    adapted(**{**row, "mm_token_type_ids": kinds, "labels": row["input_ids"]}).loss.backward()
    without = [name for name, value in adapted.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


PROMPT_METHODS = {
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "activated lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=2, alora_invocation_tokens=[4, 5]),
}


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_d11_tuned_prompts_and_activated_lora_read_images(method, tmp_path):
    base = tiny_model()
    rows = [
        conversation(base.config, [("vit", 2, 2), [3, 4, 5]], seed=1, answer=True),
        conversation(base.config, [("vit", 2, 3), [6, 3], [7, 4, 5]], seed=2, answer=True),
    ]
    batch = collate(rows, base.config.pad_token_id)
    adapted = get_peft_model(base, PROMPT_METHODS[method]())
    trained = [value for value in adapted.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = []
    adapted.train()
    for _ in range(6):
        loss = adapted(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    adapted.eval()
    for row in rows:
        found = adapted.generate(**row, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        # The same, token by token and without a cache.
        ids, kinds = row["input_ids"], row["mm_token_type_ids"]
        for _ in range(5):
            mask = torch.ones_like(ids)
            with torch.no_grad():
                made = adapted(
                    input_ids=ids,
                    attention_mask=mask,
                    mm_token_type_ids=kinds,
                    **{name: row[name] for name in ("pixel_values", "image_grid_thw")},
                    **({} if method == "prefix" else {"use_cache": False}),
                )
            made.logits[:, -1, base.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, made.logits[:, -1:].argmax(dim=-1)], dim=1)
            kinds = torch.nn.functional.pad(kinds, (0, 1))
        assert found.tolist() == ids.tolist()
    with torch.no_grad():
        together = adapted(**batch).logits[:, -1]
        alone = torch.cat([adapted(**row).logits[:, -1] for row in rows])
    assert torch.allclose(together, alone, atol=1e-4)

    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**rows[0]).logits, adapted(**rows[0]).logits)


def test_d11_activated_lora_refuses_latents_in_one_line():
    base = tiny_model()
    row = conversation(base.config, [("latent", 2, 3), ("vit", 2, 2), [3, 4, 5]], seed=1)
    adapted = get_peft_model(base, PROMPT_METHODS["activated lora"]())
    with pytest.raises(ValueError, match="activated LoRA"):
        adapted(**row)
    with adapted.disable_adapter():
        adapted(**row)
