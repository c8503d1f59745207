"""Make an image from a text, and from input images where the task has them.

  unimedvl generate "axial T1 MRI of the brain" --out brain.png
  unimedvl generate "Stain this section with H&E" --image section.png --preset virtual_staining --out stained.png

The PNG files say that they are synthetic, and hold model, seed and settings; of the prompt only a hash.
"""

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint.provenance import check_output_path, save_generated_image
from .shared import (
    NOTICE,
    add_image_arguments,
    add_model_arguments,
    add_output_arguments,
    choose_seed,
    image_hashes,
    load_images,
    load_model,
    print_result,
    say,
)

# Argument of the command, argument of `generate`, type, meaning.
SETTINGS = (
    ("--steps", "num_inference_steps", int, "denoising steps"),
    ("--guidance", "guidance_scale", float, "weight of the text; 1 turns all guidance off"),
    ("--image-guidance", "image_guidance_scale", float, "weight of the input images; 1 turns it off"),
    ("--renorm", "cfg_renorm_type", str, "global, channel or text_channel"),
    ("--shift", "timestep_shift", float, "above 1: more steps at high noise"),
    ("--height", "height", int, "pixels (default: the input image's)"),
    ("--width", "width", int, "pixels (default: the input image's)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("--out", required=True, metavar="FILE.png", help="several images get -1, -2, ... appended")
    parser.add_argument("--force", action="store_true", help="overwrite files that are already there")
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="images of the prompt (default: 1)")
    parser.add_argument("--preset", metavar="NAME", help="settings of a task (default: edit with --image, else t2i)")
    for flag, name, kind, meaning in SETTINGS:
        parser.add_argument(flag, dest=name, type=kind, metavar=flag.strip("-")[0].upper(), help=meaning)
    parser.add_argument("--think", action="store_true", help="let the model plan the image in words first")
    parser.add_argument("--max-think-tokens", type=int, default=512, metavar="N", help="length limit of that plan")
    parser.add_argument("--keep-prompt", action="store_true", help="write the prompt itself into the PNG files")
    add_image_arguments(parser)
    add_output_arguments(parser)
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    import torch

    if not arguments.prompt.strip():
        raise ValueError("the prompt is empty: describe the image.")
    if arguments.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, not {arguments.num_images}.")
    paths = output_paths(arguments.out, arguments.num_images)
    for path in paths:
        check_output_path(path, overwrite=arguments.force)
    seed = choose_seed(arguments)
    images = load_images(arguments)
    model, processor, checkpoint = load_model(arguments)
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": arguments.prompt})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        generation_mode="image",
        think=arguments.think,
        # What a person types is text: control tokens in it stay plain characters.
        split_special_tokens=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    settings = {name: getattr(arguments, name) for _, name, _, _ in SETTINGS if getattr(arguments, name) is not None}
    settings["preset"] = arguments.preset or ("edit" if images else "t2i")
    torch.manual_seed(seed)
    output = model.generate(
        **inputs,
        **settings,
        generation_mode="image",
        think=arguments.think,
        max_think_tokens=arguments.max_think_tokens,
        num_images_per_prompt=arguments.num_images,
        generator=torch.Generator().manual_seed(seed),
        return_dict_in_generate=True,
    )
    pictures = processor.post_process_multimodal_output(output.images, generation_mode="image")
    fields = {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        "prompt": arguments.prompt,
        "keep_prompt": arguments.keep_prompt,
        "input_hashes": image_hashes(arguments),
    }
    for number, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        made_with = {**settings, "think": arguments.think, "index": number}
        save_generated_image(picture, path, overwrite=arguments.force, settings=made_with, **fields)
    thought = processor.batch_decode(output.text)[0].strip() if output.text else None
    say(NOTICE)
    files = [str(path) for path in paths]
    record = {
        "files": files,
        "thought": thought,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        "settings": settings,
        "synthetic": True,
        "notice": NOTICE,
    }
    print_result(arguments, record, "\n".join(files))


def output_paths(out: str, count: int) -> list[Path]:
    """`out` itself for one image, else `name-1.png`, `name-2.png`, ..."""
    path = Path(out)
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]
