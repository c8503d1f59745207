"""What the processor says its placeholders became."""

from tests.processing.test_processor import IMAGE, VAE, VIT


def test_replacements_make_the_ids(processor):
    tokenizer = processor.tokenizer
    texts = [f"{VIT}<|im_start|>Und é?<|im_end|>{VIT}{VIT}<|im_start|>", "<|im_start|>Hi<|im_end|>"]
    images = [IMAGE, IMAGE.resize((90, 40)), IMAGE]
    inputs = processor(images=[images, []], text=texts, return_text_replacement_offsets=True)
    assert [len(found) for found in inputs["text_replacement_offsets"]] == [3, 0]
    for text, found, ids in zip(texts, inputs["text_replacement_offsets"], inputs["input_ids"], strict=True):
        replaced = text
        for entry in reversed(found):
            start, end = entry["span"]
            assert text[start:end] == entry["text"] == processor.image_token and entry["type"] == "image"
            replaced = replaced[:start] + entry["replacement"] + replaced[end:]
        assert tokenizer(replaced, add_special_tokens=False)["input_ids"] == ids
        for entry in found:
            assert replaced[slice(*entry["new_span"])] == entry["replacement"]
    counts = [entry["replacement"].count(processor.image_token) for entry in inputs["text_replacement_offsets"][0]]
    sizes = [(image.height, image.width) for image in images]
    assert counts == processor._get_num_multimodal_tokens(sizes)["num_image_tokens"]


def test_latents_are_replaced_too(processor):
    inputs = processor(images=IMAGE, text=VAE + VIT, return_text_replacement_offsets=True, return_tensors="pt")
    assert [entry["type"] for entry in inputs["text_replacement_offsets"][0]] == ["latent", "image"]
    assert "text_replacement_offsets" not in processor(images=IMAGE, text=VIT)
