"""F13: conversations of a user's own table, odd ones among them, pass every stage from the build to both trainers."""

import json
import math
import re

import pytest
from trl.data_utils import prepare_multimodal_messages

from tests.tiny_checkpoint import tiny_checkpoint
from tests.unimed5m.fixtures_files import write_image, write_json
from unimedvl.checkpoint.loading import load
from unimedvl.evaluation.samples import sample_of
from unimedvl.training.adapters import load_with_adapter
from unimedvl.training.data.sequences import Layout
from unimedvl.training.data_recipe import ConditionDropout, GroupRecipe, ImageRange
from unimedvl.training.language.trainers import language_arguments, language_trainer
from unimedvl.training.language.trl_datasets import conversation_data, read_records
from unimedvl.training.tuning_recipe import AdapterRecipe
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.quality.control import quality_control
from unimedvl.unimed5m.schema import Turn

pytestmark = pytest.mark.medium

KEPT = [
    [("system", "Answer in French."), ("human", "<image>\nIs there a lesion?"), ("gpt", "oui")],
    [("system", "Be brief."), ("system", "Be kind."), ("human", "Is there a lesion?"), ("gpt", "no")],
    [("gpt", "Hello."), ("human", "Which organ?"), ("gpt", "The liver.")],
    [("human", "Which organ?"), ("human", "And which side?"), ("gpt", "The kidney."), ("gpt", "The left one.")],
    [("human", "Look at <image> first."), ("gpt", "Yes."), ("human", "And then <image> here?"), ("gpt", "A mass.")],
    [("human", "What changed?"), ("gpt", "Nothing."), ("human", "Sure?"), ("gpt", "Yes.")],
    [("human", "是什么？"), ("gpt", "肺炎"), ("human", "哪一侧？"), ("gpt", "左侧")],
    [("USER", "Where?"), ("Assistant", "In the left lobe.")],
]
ODD = [
    [("human", "Is there a lesion?"), ("gpt", "")],
    [("human", "<image>"), ("gpt", "A film.")],
    [("system", "Be brief."), ("gpt", "Hello.")],
    [("human", "Which organ?"), ("tool", "lookup"), ("gpt", "The liver.")],
    [("human", "Which organ?"), ("gpt", "The liver."), ("human", "Thanks.")],
    [("system", " "), ("human", "Which organ?"), ("gpt", "The liver.")],
]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Records of a table with such conversations, built and checked."""
    folder = tmp_path_factory.mktemp("conversations")
    rows = []
    for number, turns in enumerate([*KEPT, *ODD]):
        write_image(folder / "in" / f"{number}.png", number, (136, 130))
        said = [{"from": role, "value": value} for role, value in turns]
        several = {4: ["4.png", "0.png"], 5: ["5.png", "0.png"], len(KEPT) - 1: ""}.get(number, f"{number}.png")
        rows.append({"id": f"row-{number}", "image": several, "split": "train", "conversations": said})
    write_json(folder / "in" / "conversations.json", rows)
    build(get_source("conversations"), folder / "in", folder / "records", shards=2)
    quality_control(folder / "records", folder / "checked")
    return folder


def test_f13_what_cannot_be_learned_is_set_aside_by_its_id(checked):
    paths = sorted((checked / "records" / "rejected").glob("*.jsonl"))
    entries = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    assert {entry["id"] for entry in entries} == {f"row-{number}" for number in range(len(KEPT), len(KEPT + ODD))}
    assert len(read_records(checked / "checked")) == len(KEPT)


def test_f13_both_trainers_and_the_evaluation_read_one_conversation(checked, tmp_path):
    tiny_checkpoint(tmp_path / "model")
    processor = load(tmp_path / "model").processor
    records = read_records(checked / "checked")
    data = conversation_data(records, "sft")
    sizes = {name: ImageRange(12, 48) for name in ("vae", "vit", "understanding")}
    for record, row in zip(records, data, strict=True):
        messages = prepare_multimodal_messages(row["messages"], row["images"])
        rendered = processor.apply_chat_template(messages, tokenize=False)
        # A turn of the template is a text between its marks, or an image.
        shown = re.findall(r"<\|im_start\|>(.*?)<\|im_end\|>|<\|vision_start\|>(.*?)<\|vision_end\|>", rendered, re.S)
        texts: list[str] = []
        dropout = ConditionDropout(0.0, 0.0, 0.0)
        layout = Layout(GroupRecipe("own", "own", **sizes), dropout, "original", _listing(texts), 6, 8, 0)
        blocks = layout(record, 0).blocks
        assert [bool(text) for text, _ in shown] == [block.token_ids is not None for block in blocks]
        assert [text for text, _ in shown if text] == texts
        answers = [message["content"][0]["text"] for message in messages if message["role"] == "assistant"]
        assert answers == [text for text, learned in zip(texts, _learned(blocks), strict=True) if learned]
        asked = processor.apply_chat_template(sample_of(record).conversation(), tokenize=False)
        assert rendered.startswith(asked)


def _listing(texts):
    """An encoder that keeps what it is asked to encode."""

    def encode(text):
        texts.append(text)
        return [1] * len(text)

    return encode


def _learned(blocks):
    return [block.loss for block in blocks if block.token_ids is not None]


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_f13_trl_trains_on_all_of_them(checked, tmp_path, method):
    tiny_checkpoint(tmp_path / "model")
    model = load_with_adapter(tmp_path / "model", AdapterRecipe(experts="understanding", rank=4))
    settings = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    if method == "grpo":
        settings |= {"num_generations": 2, "max_completion_length": 2}
    arguments = language_arguments(
        method, tmp_path / "out", {**settings, "max_steps": 1, "per_device_train_batch_size": len(KEPT)}
    )
    data = conversation_data(read_records(checked / "checked"), method)
    trainer = language_trainer(method, model, load(tmp_path / "model").processor, arguments, data)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_f13_a_record_without_a_text_is_named(checked):
    record = read_records(checked / "checked")[0]
    silent = record.replace(message=(*record.message[:-1], Turn("gpt", " ")))
    with pytest.raises(ValueError, match=rf"record '{record.id}': message\[\d\].value: expected a text of gpt"):
        conversation_data([silent], "sft")
