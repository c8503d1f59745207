"""TRL tunes the understanding half: losses fall, only the adapter moves, saved adapters come back exactly."""

import io

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.checkpoint.loading import load
from unimedvl.checkpoint.merging import merge_adapter
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.training.adapters import load_with_adapter
from unimedvl.training.language.trainers import language_arguments, language_trainer
from unimedvl.training.language.trl_datasets import conversation_data, read_records
from unimedvl.training.tuning_recipe import AdapterRecipe
from unimedvl.unimed5m.schema import Record, RecordImage, Turn, to_table
from unimedvl.unimed5m.shards import write_table

pytestmark = pytest.mark.medium

SETTINGS = {"bf16": False, "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no"}


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def color_record(number: int, split: str = "train") -> Record:
    """An image that is dark or bright, and the question which."""
    level = 40 if number % 2 else 210
    random = np.random.default_rng(number)
    pixels = np.clip(level + random.normal(0, 15, (24, 30, 3)), 0, 255).astype(np.uint8)
    return Record(
        id=f"color-{number}-{split}",
        main_task_type="image_understanding",
        sub_task_type="vqa",
        modality="CXR",
        dataset="colors",
        input_img=[RecordImage(png_bytes(Image.fromarray(pixels)), f"{number}.png", 24, 30)],
        output_img=[],
        message=[Turn("human", "<image> dark or bright?"), Turn("gpt", "dark" if number % 2 else "bright")],
        license="CC0-1.0",
        license_tier="A",
        redistributable="yes",
        provenance="drawn for this test",
        split=split,
        group_id=f"{split}-{number}",
    )


@pytest.fixture
def records_folder(tmp_path):
    folder = tmp_path / "records"
    (folder / "data").mkdir(parents=True)
    records = [color_record(number) for number in range(12)] + [color_record(n, "validation") for n in range(4)]
    write_table(folder / "data" / "colors.parquet", to_table(records))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    tiny_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def test_records_are_chosen_by_what_they_are(records_folder):
    assert len(read_records(records_folder)) == 12
    assert len(read_records(records_folder, split="validation", tasks=["vqa"], sources=["colors"])) == 4
    few = read_records(records_folder, limit=5)
    assert len(few) == 5 and few == read_records(records_folder, limit=5)
    with pytest.raises(ValueError, match="it holds 12 train/vqa, 4 validation/vqa"):
        read_records(records_folder, tasks=["report"])


def test_columns_of_every_method(records_folder):
    records = read_records(records_folder)
    sft = conversation_data(records, "sft")[0]
    said = [(message["role"], message["content"]) for message in sft["messages"]]
    assert said == [
        ("user", [{"type": "image", "text": None}, {"type": "text", "text": "dark or bright?"}]),
        ("assistant", [{"type": "text", "text": "bright"}]),
    ]
    assert sft["images"][0].size == (30, 24)
    for row in conversation_data(records, "dpo"):
        answers = {row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")}
        assert answers == {"dark", "bright"}
    assert conversation_data(records, "grpo")["answer"][:2] == ["bright", "dark"]
    with pytest.raises(ValueError, match="single answer"):
        conversation_data(records[::2], "dpo")


def trained(checkpoint, records_folder, method, steps, rewards=(), **settings):
    model = load_with_adapter(checkpoint, AdapterRecipe(experts="understanding", rank=8))
    processor = load(checkpoint).processor
    arguments = language_arguments(method, checkpoint.parent / method, {**SETTINGS, "max_steps": steps, **settings})
    data = conversation_data(read_records(records_folder), method)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    trainer = language_trainer(method, model, processor, arguments, data, rewards=rewards or ["answer_match"])
    trainer.train()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def test_supervised_tuning_learns_answers_and_its_adapter_reloads_exactly(checkpoint, records_folder, tmp_path):
    settings = {"learning_rate": 2e-2, "per_device_train_batch_size": 6}
    trainer, log = trained(checkpoint, records_folder, "sft", 12, **settings)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    trainer.model.save_pretrained(tmp_path / "adapter")
    processor = load(checkpoint).processor
    prompt = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.new("RGB", (30, 24))},
                {"type": "text", "text": "dark or bright?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template([prompt], tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        again = PeftModel.from_pretrained(load(checkpoint).model, tmp_path / "adapter").eval()
        assert torch.equal(again(**inputs).logits, expected)
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
        torch.testing.assert_close(
            UniMedVLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()(**inputs).logits,
            expected,
            atol=1e-4,
            rtol=1e-4,
        )


def test_preferences_widen_the_margin(checkpoint, records_folder):
    settings = {"learning_rate": 5e-3, "per_device_train_batch_size": 4}
    _, log = trained(checkpoint, records_folder, "dpo", 8, **settings)
    assert log[0]["rewards/margins"] == 0.0 and log[-1]["rewards/margins"] > 0.05


def test_rewards_are_earned(checkpoint, records_folder):
    settings = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
    }
    trainer, log = trained(checkpoint, records_folder, "grpo", 2, rewards=["answer_match", "think_format"], **settings)
    assert {"rewards/answer_match/mean", "rewards/think_format/mean"} <= log[0].keys()


def test_wrong_settings_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="method must be one of sft"):
        language_arguments("ppo", tmp_path, {})
    with pytest.raises(ValueError, match="SFTConfig has no setting learning_rat"):
        language_arguments("sft", tmp_path, {"learning_rat": 1.0})
