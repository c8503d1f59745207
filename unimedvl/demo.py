"""The demonstration behind `make demo`: ask the nano checkpoint about two real medical pictures, then draw three.

The pictures come with scikit-image: a colour fundus photograph and an immunohistochemistry section. They were in no
training set of the nano. Generated images go to the folder `demo/`, each with its synthetic-image record.
"""

import time
from pathlib import Path

import torch
from PIL import Image
from skimage import data

from .commands.shared import NOTICE
from .loading import load
from .provenance import save_generated_image

QUESTION = "What imaging modality is shown?"
PICTURES = {"fundus photograph": data.retina, "stained section": data.immunohistochemistry}
PROMPTS = ("a colour fundus photograph", "a chest X-ray", "a histopathology image")
SEED = 0


def main(folder: str = "demo") -> None:
    """Run the demonstration and write its images into `folder`."""
    started = time.monotonic()
    out = Path(folder)
    out.mkdir(exist_ok=True)
    print(NOTICE)
    model, processor, checkpoint = load()
    print(f"model: {checkpoint.name} ({checkpoint.revision})")

    for name, picture in PICTURES.items():
        content = [{"type": "image", "image": Image.fromarray(picture())}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        answer = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        print(f"{name}: {QUESTION} -> {answer.strip()}")

    for number, prompt in enumerate(PROMPTS, start=1):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        pixels = model.generate(
            **inputs,
            generation_mode="image",
            preset="t2i",
            generator=torch.Generator().manual_seed(SEED),
            show_progress=False,
        )
        image = processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
        path = out / f"generated-{number}.png"
        fields = {"model": checkpoint.name, "revision": checkpoint.revision, "seed": SEED, "prompt": prompt}
        save_generated_image(image, path, overwrite=True, settings={"preset": "t2i"}, keep_prompt=True, **fields)
        print(f"{prompt} -> {path} ({image.width} x {image.height})")
    print(f"done in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
