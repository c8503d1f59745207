"""Trainers of other libraries: what a plain `Trainer` evaluates, and TRL's packing of texts."""

import numpy
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests.tiny_checkpoint import tiny_checkpoint
from tests.tiny_inputs import conversation
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples

pytestmark = pytest.mark.medium


def quiet(folder, **settings) -> dict:
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_eval_batch_size": 1,
    } | settings


def rows(model) -> list[dict]:
    """Questions with and without an image, the answer as labels; batches of one, since their lengths differ."""
    parts = [[("vit", 2, 3), [3, 4, 5], [6, 7]], [[8, 9, 10], [11]]]
    made = []
    for number, part in enumerate(parts):
        row = conversation(model.config, part, seed=number)
        labels = torch.where(row["mm_token_type_ids"] > 0, -100, row["input_ids"])
        made.append({"labels": labels, **row})
    return made


def single(features: list[dict]) -> dict:
    assert len(features) == 1
    return features[0]


def test_d1_evaluate_reports_the_loss_and_calls_compute_metrics(tmp_path):
    model, seen = tiny_model(), []

    def metrics(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"tokens": float((prediction.label_ids != -100).sum())}

    data = rows(model)
    arguments = TrainingArguments(**quiet(tmp_path))
    trainer = Trainer(model, arguments, data_collator=single, eval_dataset=data, compute_metrics=metrics)
    result = trainer.evaluate()
    with torch.no_grad():
        expected = [model(**row).loss.item() for row in data]
    assert trainer.label_names == ["labels"]
    assert abs(result["eval_loss"] - sum(expected) / 2) < 1e-5
    # The logits alone, as of any other model: no losses of parts and no caches among them.
    (predictions, labels), count = seen[0], sum(int((row["labels"] != -100).sum()) for row in data)
    assert isinstance(predictions, numpy.ndarray) and predictions.shape == (*labels.shape, 128)
    assert result["eval_tokens"] == count


def test_d1_the_best_model_is_loaded_at_the_end(tmp_path):
    model = tiny_model()
    settings = quiet(
        tmp_path,
        per_device_train_batch_size=1,
        max_steps=3,
        learning_rate=0.05,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    data = rows(model)
    trainer = Trainer(
        model, TrainingArguments(**settings), data_collator=single, train_dataset=data, eval_dataset=data
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3 and trainer.state.best_metric == pytest.approx(min(losses))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_d1_the_former_name_of_loss_weights_warns_and_works(recwarn):
    model = tiny_model()
    ids = {f"{name}_token_id": number for name, number in (("bos", 121), ("eos", 122), ("vision_start", 123))}
    ids |= {"vision_end_token_id": 124, "image_token_id": 126, "latent_token_id": 125}
    blocks = [Block(BlockKind.TEXT, token_ids=[5, 6]), Block(BlockKind.TEXT, token_ids=[7, 8, 9], loss=True)]
    pack = dict(pack_samples([blocks, blocks[1:]], **ids))
    weights = pack.pop("token_weights") * torch.linspace(0.5, 2, pack["input_ids"].shape[1])
    with torch.no_grad():
        current = model(**pack, token_weights=weights).loss
        assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]
        with pytest.warns(FutureWarning, match="token_weights"):
            former = model(**pack, label_weights=weights).loss
        plain = model(**pack).loss
    assert torch.equal(current, former) and abs(current - plain) > 1e-4
    with pytest.warns(FutureWarning, match="token_weights"):
        assert "token_weights" in pack_samples([blocks], **ids) and "label_weights" not in pack
        pack_samples([blocks], **ids)["label_weights"]


TEXTS = (
    "What is abnormal in this chest radiograph?",
    "There is an opacity in the left lower lobe.",
    "The heart is enlarged.",
    "A T1-weighted axial slice of the brain without contrast; the ventricles are symmetric.",
)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_d2_sft_of_packed_texts_equals_unpacked(tmp_path, attention):
    losses = {}
    for packing in (False, True):
        model, processor = tiny_checkpoint(tmp_path / "checkpoint")
        model.set_attn_implementation(attention)
        settings = quiet(
            tmp_path / "runs",
            packing=packing,
            max_length=256,
            per_device_train_batch_size=1 if packing else len(TEXTS),
            max_steps=1,
            logging_steps=1,
            learning_rate=0.0,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
        )
        data = Dataset.from_dict({"text": list(TEXTS)})
        trainer = SFTTrainer(model, SFTConfig(**settings), train_dataset=data, processing_class=processor.tokenizer)
        widths = [len(row["input_ids"]) for row in trainer.train_dataset]
        assert (len(widths) == 1) == packing
        trainer.train()
        losses[packing] = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        if packing:
            batch = trainer.data_collator([trainer.train_dataset[0]])
    assert "position_ids" in batch and int((batch["position_ids"] == 0).sum()) == len(TEXTS)
    assert abs(losses[True] - losses[False]) < 1e-5


@pytest.mark.parametrize("as_mask", [False, True])
def test_labels_of_the_kept_logits_have_the_loss_of_all_labels(as_mask):
    """ms-swift cuts the labels to the positions in `logits_to_keep`: the last ones, or those of a mask."""
    model = tiny_model().eval()
    row = conversation(model.config, [("vit", 2, 3), [3, 4, 5], [6, 7]])
    labels = torch.full_like(row["input_ids"], -100)
    labels[:, -3:] = row["input_ids"][:, -3:]
    whole = model(**row, labels=labels)
    kept = torch.zeros(labels.shape[1], dtype=torch.bool)
    kept[-4:] = True
    part = model(**row, labels=labels[:, -4:], logits_to_keep=kept if as_mask else 4)
    torch.testing.assert_close(part.loss, whole.loss)
    torch.testing.assert_close(part.logits, whole.logits[:, -4:])
    # All labels may come with it as well, and then all logits do.
    torch.testing.assert_close(model(**row, labels=labels, logits_to_keep=4).loss, whole.loss)


def test_labels_that_fit_neither_all_tokens_nor_the_kept_ones_are_refused():
    model = tiny_model().eval()
    row = conversation(model.config, [[3, 4, 5], [6, 7]])
    for kept in (0, 3):
        with pytest.raises(ValueError, match="labels need an entry for every token"):
            model(**row, labels=row["input_ids"][:, -4:], logits_to_keep=kept)
