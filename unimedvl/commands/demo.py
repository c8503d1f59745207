"""The demonstration behind `make demo`: ask the nano checkpoint about two real medical images, then draw three.

The images come with scikit-image: a color fundus photograph and an immunohistochemistry section. They were in no
training set of the nano, and it has seen no fundus photograph at all. Generated images go to the folder `demo/`, each
with its synthetic-image record.
"""

import time
from pathlib import Path
from typing import Any

from .shared import NOTICE, silence_libraries

QUESTION = "What imaging modality is this?"
IMAGES = {"fundus photograph": "retina", "stained section": "immunohistochemistry"}
# In the words that the nano was trained on.
PROMPTS = ("a chest X-ray", "a colonoscopy image, labelled polyp", "a blood smear light microscopy image")
SEED = 0


def main(folder: str = "demo") -> None:
    """Run the demonstration and write its images into `folder`."""
    started = time.monotonic()
    silence_libraries()
    import torch
    from PIL import Image
    from skimage import data

    from ..checkpoint.loading import load
    from ..checkpoint.provenance import save_generated_image

    print(NOTICE)
    model, processor, checkpoint = load()
    print(f"model: {checkpoint.name} ({checkpoint.revision})")

    images = [Image.fromarray(getattr(data, name)()) for name in IMAGES.values()]
    questions = [[{"type": "image", "image": image}, {"type": "text", "text": QUESTION}] for image in images]
    inputs = _inputs(processor, questions, "text").to(model.device)
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for name, answer in zip(IMAGES, answers, strict=True):
        print(f"{name}: {QUESTION} -> {answer.strip()}")

    inputs = _inputs(processor, [[{"type": "text", "text": prompt}] for prompt in PROMPTS], "image").to(model.device)
    pixels = model.generate(
        **inputs,
        generation_mode="image",
        preset="t2i",
        generator=[torch.Generator().manual_seed(SEED) for _ in PROMPTS],
        show_progress=False,
    )
    out = Path(folder)
    out.mkdir(exist_ok=True)
    made = processor.post_process_multimodal_output(pixels, generation_mode="image")
    fields: dict[str, Any] = {"model": checkpoint.name, "revision": checkpoint.revision, "seed": SEED}
    for number, (prompt, image) in enumerate(zip(PROMPTS, made, strict=True), start=1):
        path = out / f"generated-{number}.png"
        fields |= {"prompt": prompt, "settings": {"preset": "t2i"}}
        save_generated_image(image, path, overwrite=True, keep_prompt=True, **fields)
        print(f"{prompt} -> {path} ({image.width} x {image.height})")
    print(f"done in {time.monotonic() - started:.1f} s; the nano is a model for teaching and tests: expect errors")


def _inputs(processor, contents: list, generation_mode: str):
    """Model inputs of one user turn per row; a row is the content of its turn."""
    return processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in contents],
        generation_mode=generation_mode,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


if __name__ == "__main__":
    main()
