"""Opens a checkpoint by the auto classes, without this package, and prints what it answers and draws as JSON.

python transformers_process.py CHECKPOINT
"""

import hashlib
import json
import sys

import torch
import transformers
from PIL import Image

AUTO_CLASSES = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForCausalLM")
QUESTION = "What is shown?"


def used(model, processor) -> dict:
    """Ids of an answer about an image, and a digest of an image drawn in four updates."""
    image = Image.linear_gradient("L").resize((40, 28)).convert("RGB")
    turn = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turn, add_generation_prompt=True, **options)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    asked = [{"role": "user", "content": [{"type": "text", "text": "a chest X-ray"}]}]
    inputs = processor.apply_chat_template(asked, generation_mode="image", **options)
    pixels = model.generate(
        **inputs,
        generation_mode="image",
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        show_progress=False,
    )
    levels = (pixels[0].clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return {"answer": ids.tolist(), "image": hashlib.sha256(levels.numpy().tobytes()).hexdigest()}


def main(checkpoint: str) -> None:
    torch.set_num_threads(1)
    options = {"trust_remote_code": True, "dtype": torch.float32}
    processor = transformers.AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    base = transformers.AutoModel.from_pretrained(checkpoint, **options)
    found: dict = {"transformers": transformers.__version__, "AutoModel": type(base).__name__}
    for name in AUTO_CLASSES:
        model = getattr(transformers, name).from_pretrained(checkpoint, **options)
        found[name] = used(model, processor)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
