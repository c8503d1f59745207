"""Model outputs to text, images and masks."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unimedvl.processing.chat_template_unimedvl import THINK_SYSTEM_PROMPT_IMAGE, THINK_SYSTEM_PROMPT_TEXT
from unimedvl.processing.outputs_unimedvl import images_from_pixels


def test_pixels_are_truncated_as_in_the_reference(processor, pytestconfig):
    tensors = load_file(pytestconfig.getoption("--golden") / "vae.safetensors")
    images = processor.post_process_multimodal_output(tensors["rand.decoded"], generation_mode="image")
    assert np.array_equal(np.asarray(images[0]), tensors["rand.decoded_uint8"].numpy())


def test_levels():
    # -1, just below 1, 1, beyond the range on both sides
    values = torch.tensor([-1.0, 0.999, 1.0, 7.0, -7.0]).expand(3, 1, 5)
    assert np.asarray(images_from_pixels(values)[0])[0, :, 0].tolist() == [0, 254, 255, 255, 0]


def test_image_forms(processor):
    batch = torch.rand(2, 3, 4, 6) * 2 - 1
    from_batch = processor.post_process_multimodal_output(batch, generation_mode="image")
    for form in (list(batch), SimpleNamespace(images=batch), {"images": list(batch)}):
        others = processor.post_process_multimodal_output(form, generation_mode="image")
        assert [image.tobytes() for image in others] == [image.tobytes() for image in from_batch]
    assert from_batch[0].size == (6, 4) and from_batch[0].mode == "RGB"
    assert len(processor.post_process_multimodal_output(batch[0], generation_mode="image")) == 1


def test_text(processor, tokenizer):
    row = tokenizer("<|im_start|>An opacity.<|im_end|>")["input_ids"]
    expected = ["An opacity.", "An opacity."]
    for form in (torch.tensor([row, row]), [row, row], np.array([row, row])):
        assert processor.post_process_multimodal_output(form) == expected
    assert processor.post_process_multimodal_output(torch.tensor(row), generation_mode=None) == expected[:1]
    assert processor.batch_decode([row], skip_special_tokens=True) == expected[:1]
    whole = processor.post_process_multimodal_output([row], skip_special_tokens=False)
    assert whole == ["<|im_start|>An opacity.<|im_end|>"]


def test_interleaved(processor, tokenizer):
    ids = torch.tensor(tokenizer("An opacity.<|im_end|>")["input_ids"])
    output = SimpleNamespace(segments=["before", ids, torch.zeros(3, 4, 6)])
    text, decoded, image = processor.post_process_multimodal_output(output, generation_mode="interleaved")
    assert (text, decoded) == ("before", "An opacity.") and image.size == (6, 4)
    batch = processor.post_process_multimodal_output([output.segments, ["alone"]], generation_mode="interleaved")
    assert batch[1] == ["alone"] and batch[0][:2] == [text, decoded]


def test_masks_by_level(processor):
    for classes in (1, 2, 3, 7, 255):
        levels = [round(255 * index / classes) for index in range(classes + 1)]
        image = Image.fromarray(np.array([levels], dtype=np.uint8))
        (mask,) = processor.post_process_masks(image, num_classes=classes)
        assert mask.dtype == torch.int64 and mask.tolist() == [list(range(classes + 1))]
    gray = Image.fromarray(np.array([[127, 128]], dtype=np.uint8))
    assert processor.post_process_masks(gray)[0].tolist() == [[0, 1]]
    # The mean of the channels decides: red alone is a third of white.
    assert processor.post_process_masks(Image.new("RGB", (1, 1), (255, 0, 0)))[0].item() == 0


def test_the_earlier_class_wins_a_tie(processor):
    # Two classes own the levels 0, 128 and 255: 64 is 64 from both 0 and 128.
    gray = Image.fromarray(np.array([[63, 64, 65]], dtype=np.uint8))
    assert processor.post_process_masks(gray, num_classes=2)[0].tolist() == [[0, 0, 1]]
    # (5, 5, 0) is as far from black as from either color, and (10, 10, 0) from both colors alone.
    colors = [(0, 0, 0), (10, 0, 0), (0, 10, 0)]
    image = Image.fromarray(np.array([[(5, 5, 0), (10, 10, 0), (9, 10, 0)]], dtype=np.uint8))
    assert processor.post_process_masks(image, palette=colors)[0].tolist() == [[0, 1, 2]]
    swapped = [colors[0], colors[2], colors[1]]
    assert processor.post_process_masks(image, palette=swapped)[0].tolist() == [[0, 1, 1]]


def test_masks_by_palette_and_size(processor):
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    levels = np.array([[(10, 10, 10), (200, 30, 0), (90, 250, 90)]], dtype=np.uint8)
    pixels = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 127.5 - 1
    (mask,) = processor.post_process_masks(pixels, palette=palette, size=(2, 6))
    assert mask.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    small, large = processor.post_process_masks([Image.new("L", (4, 4))] * 2, size=[(2, 2), (8, 8)])
    assert small.shape == (2, 2) and large.shape == (8, 8)
    both = processor.post_process_masks([Image.new("L", (4, 4))] * 2, size=[3, 5])
    assert [mask.shape for mask in both] == [(3, 5)] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"generated_outputs": torch.zeros(1, 4, 5, 5), "generation_mode": "image"},
        {"generated_outputs": torch.zeros(3, 5, 5, dtype=torch.long), "generation_mode": "image"},
        {"generated_outputs": torch.full((3, 5, 5), float("nan")), "generation_mode": "image"},
        {"generated_outputs": "pixels", "generation_mode": "image"},
        {"generated_outputs": torch.zeros(3, 5, 5), "generation_mode": "video"},
        {"generated_outputs": torch.zeros(1, 5), "generation_mode": "text"},
    ],
)
def test_wrong_outputs(processor, arguments):
    with pytest.raises(ValueError):
        processor.post_process_multimodal_output(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"num_classes": 2.0},
        {"palette": [(0, 0, 0)]},
        {"palette": [1, 2]},
        {"size": [(2, 2)] * 3},
        {"size": (0, 2)},
    ],
)
def test_wrong_mask_arguments(processor, arguments):
    with pytest.raises(ValueError):
        processor.post_process_masks(Image.new("L", (4, 4)), **arguments)


def test_think_prompts_are_the_reference_strings(pytestconfig):
    records = json.loads((pytestconfig.getoption("--golden") / "infer.json").read_text())["system_prompts"]
    for name, prompt in (("gen_think", THINK_SYSTEM_PROMPT_IMAGE), ("vlm_think", THINK_SYSTEM_PROMPT_TEXT)):
        assert hashlib.sha256(prompt.encode()).hexdigest() == records[name]["sha256"]
