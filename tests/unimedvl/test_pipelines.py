"""transformers' pipelines on the shipped checkpoint as remote code give what `generate` gives."""

import base64
import io

import pytest
from PIL import Image
from transformers import pipeline

from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

pytestmark = pytest.mark.medium

NANO = str(NANO_DIRECTORY)
QUESTION = "What kind of image is this?"
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def chat(*images: dict) -> list[dict]:
    return [{"role": "user", "content": [*images, {"type": "text", "text": QUESTION}]}]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.radial_gradient("L").resize((72, 60)).convert("RGB")


@pytest.fixture(scope="module")
def answers(image):
    """The greedy answers of the installed classes, with the image and without."""
    processor = UniMedVLProcessor.from_pretrained(NANO)
    model = UniMedVLForConditionalGeneration.from_pretrained(NANO)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    found = []
    for conversation in (chat({"type": "image", "image": image}), chat()):
        inputs = processor.apply_chat_template(conversation, **options)
        output = model.generate(**inputs, **GREEDY)
        found.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert found[0] != found[1]
    return found


def forms(image: Image.Image, folder) -> list[dict]:
    """The ways in which a chat may hold an image."""
    path = folder / "image.png"
    image.save(path)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return [
        {"type": "image", "image": image},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": address},
        {"type": "image_url", "image_url": {"url": address}},
    ]


def test_image_text_to_text(image, answers, tmp_path):
    ask = pipeline("image-text-to-text", model=NANO, trust_remote_code=True)
    for form in forms(image, tmp_path):
        (found,) = ask(text=chat(form), generate_kwargs=GREEDY, return_full_text=False)
        assert found["generated_text"] == answers[0], form["type"]
    (found,) = ask(text=chat(), generate_kwargs=GREEDY, return_full_text=False)
    assert found["generated_text"] == answers[1]
    several = ask(
        text=[chat({"type": "image", "image": image}), chat()], generate_kwargs=GREEDY, return_full_text=False
    )
    assert [found["generated_text"] for (found,) in several] == answers


def test_text_generation(answers):
    ask = pipeline("text-generation", model=NANO, trust_remote_code=True)
    conversation = [{"role": "user", "content": QUESTION}]
    (found,) = ask(conversation, **GREEDY, return_full_text=False)
    assert found["generated_text"] == answers[1]
