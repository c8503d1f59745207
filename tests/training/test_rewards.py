"""Rewards give the numbers that a person would."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.training.rewards import (
    AnswerReward,
    ClassifierReward,
    answer_match,
    dice,
    psnr,
    report_overlap,
    ssim,
    think_format,
)


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "given, expected, score",
    [
        ("Pneumonia.", "pneumonia", 1.0),
        ("the left lung", "Left lung", 1.0),
        ("Yes, there is an effusion.", "yes", 1.0),
        ("No.", "yes", 0.0),
        ("not visible", "no", 0.0),
        ("<think>it could be no</think> yes", "yes", 1.0),
        ("", "yes", 0.0),
        ("glioma tumor", "glioma", 0.0),
        ("A.", "A", 1.0),
        ("", "A", 0.0),
        ("the", "A", 0.0),
        ("B", "A", 0.0),
        ("", "", 0.0),
    ],
)
def test_answers_are_matched_as_a_person_would(given, expected, score):
    assert answer_match([said(given)], [expected]) == [score] == answer_match([given], [expected])


@pytest.mark.parametrize(
    "text, score",
    [
        ("<think>because</think> yes", 1.0),
        ("<think></think> yes", 0.0),
        ("<think>because</think> ", 0.0),
        ("yes <think>because</think>", 0.0),
        ("<think>a</think><think>b</think> yes", 0.0),
        ("yes", 0.0),
    ],
)
def test_thoughts_have_one_form(text, score):
    assert think_format([said(text)]) == [score]


def test_reports_are_compared_in_order():
    reference = "no pleural effusion is seen"
    same, part, none = report_overlap([said(reference), said("no effusion"), said("fracture")], [reference] * 3)
    assert same == 1.0 and none == 0.0 and part == pytest.approx(2 * 1 * 0.4 / 1.4)


def square(left):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, left : left + 16] = 255
    return Image.fromarray(pixels)


def test_dice_of_shifted_squares():
    assert dice([square(0), square(8)], [{"reference": square(0)}, {"reference": square(0)}]) == [1.0, 0.5]
    empty = Image.new("RGB", (32, 32))
    assert dice([empty, empty], [{"reference": empty}, {"reference": square(0)}]) == [1.0, 0.0]


def test_psnr_and_ssim_know_the_exact_image():
    random = np.random.default_rng(0)
    exact = random.integers(0, 246, (32, 40, 3), dtype=np.uint8)
    reference = {"reference": Image.fromarray(exact)}
    images = [Image.fromarray(exact), Image.fromarray(exact + 10)]
    assert psnr(images, [reference] * 2) == pytest.approx([60.0, 20 * np.log10(25.5)])
    first, second = ssim(images, [reference] * 2)
    assert first == pytest.approx(1.0) and second < first


def test_the_models_own_answer_is_its_probability(tmp_path):
    model, processor = tiny_checkpoint(tmp_path / "model")
    image = Image.effect_noise((24, 30), 50)
    examples = [{"question": "what is it?", "answer": "a scan"}, {"question": "is it?", "answer": "yes, of the chest"}]
    together = AnswerReward(model, processor)([image] * 2, examples)
    for example, value in zip(examples, together, strict=True):
        prompt = [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": example["question"]}],
            }
        ]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template([prompt], add_generation_prompt=True, **options)
        ids = processor.tokenizer.encode(example["answer"], add_special_tokens=False)
        total = 0.0
        # Token by token, as greedy decoding would see it; the last step is the end of the turn.
        for token in [*ids, model.config.eos_token_id]:
            with torch.no_grad():
                total += model(**inputs).logits[0, -1].log_softmax(-1)[token].item()
            for name, new in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
                inputs[name] = torch.cat([inputs[name], torch.tensor([[new]])], dim=1)
        assert value == pytest.approx(np.exp(total / (len(ids) + 1)), rel=1e-4)


def test_a_classifier_from_a_folder_judges(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        label2id={"CT": 0, "MRI": 1},
        id2label={0: "CT", 1: "MRI"},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    reward = ClassifierReward(str(tmp_path))
    image = Image.effect_noise((30, 20), 70)
    ct, mri = reward([image, image], [{"label": "CT"}, {"label": "MRI"}])
    assert ct + mri == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="not fundus"):
        reward([image], [{"label": "fundus"}])
