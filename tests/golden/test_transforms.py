"""Conversion of image files to pixels: color conversion, resize arithmetic, patches, position ids."""

import hashlib

import numpy as np
import torch
from PIL import Image

from unimedvl.processing.chat_template_unimedvl import THINK_SYSTEM_PROMPT_IMAGE, THINK_SYSTEM_PROMPT_TEXT
from unimedvl.processing.image_processing_unimedvl import (
    convert_to_rgb,
    pixels_from_image,
    reference_size,
    resize_image,
)

from .reference import JSON, RecordImages, position_ids_of

FILE = "transforms.safetensors"


def test_images(golden, model, images: RecordImages):
    config, processor = model.config, images.processor
    for index, path in enumerate(images.files):
        image = Image.open(path)
        rgb = convert_to_rgb(image)
        vae = resize_image(rgb, processor.vae_transform)
        vit = resize_image(rgb, processor.understanding_transform)
        vit_after_vae = resize_image(vae, processor.vit_transform)
        pixels = images.vae_pixels(index)
        patches, grid = images.vit_patches(index)
        chained, chained_grid = images.vit_patches(index, after_vae=True)
        cell = config.pixels_per_latent_token
        latent_grid = (pixels.shape[1] // cell, pixels.shape[2] // cell)
        stages = {
            "rgb": np.asarray(rgb),
            "vae_resized": np.asarray(vae),
            "vit_resized": np.asarray(vit),
            "vit_after_vae_resized": np.asarray(vit_after_vae),
        }
        levels = {name: torch.tensor(value) for name, value in stages.items()}
        golden.compare_all(FILE, f"img{index}.", levels, relative=0.0, absolute=0.0)
        ours = {"vit_pixels": torch.tensor(pixels_from_image(vit)), "vae_pixels": pixels, "vit_patches": patches}
        for kind, one_grid, side in (
            ("vae", latent_grid, config.max_latent_size),
            ("vit", grid, config.vit_max_num_patch_per_side),
        ):
            name = f"img{index}.{kind}_position_ids"
            ours[f"{kind}_position_ids"] = position_ids_of(
                golden, FILE, name, [one_grid], side, config.interpolate_pos
            )
        golden.compare_all(FILE, f"img{index}.", ours)
        sizes = images.tensors(index, generation_mode="image")["latent_image_sizes"][0].tolist()
        patch = processor.patch_size
        facts = {
            "mode": image.mode,
            "size_wh": list(image.size),
            "target_hw_from_inferencer": sizes,
            "vae_chw": list(pixels.shape),
            "vae_resize_idempotent": resize_image(vae, processor.vae_transform).tobytes() == vae.tobytes(),
            "vit_chw": [3, *(side * patch for side in grid)],
            "vit_after_vae_chw": [3, *(side * patch for side in chained_grid)],
        }
        golden.equal_all(JSON, f"/images/{index}", facts)
        in_image_mode = images.tensors(index, generation_mode="image")["pixel_values"]
        assert torch.equal(chained, in_image_mode)


def test_resize_arithmetic(golden):
    for name, record in golden.value("sizes.json", "/resize", {}).items():
        place = f"/resize/{name}"
        limits = [
            golden.argument("sizes.json", f"{place}/{key}") for key in ("max_size", "min_size", "stride", "max_pixels")
        ]
        columns = golden.argument("sizes.json", "/columns")
        for row in range(len(record["rows"])):
            cells = {column: f"{place}/rows/{row}/{number}" for number, column in enumerate(columns)}
            width, height, count = (golden.argument("sizes.json", cells[name]) for name in ("in_w", "in_h", "img_num"))
            size = reference_size(width, height, *limits, num_images=count)
            for name, ours in zip(("out_w", "out_h"), size, strict=True):
                golden.equal("sizes.json", cells[name], ours)


def test_think_prompts(golden):
    """The package asks for a thought in UniMedVL's own words."""
    for name in golden.value(JSON, "/system_prompts", {}):
        text = {"gen_think": THINK_SYSTEM_PROMPT_IMAGE, "vlm_think": THINK_SYSTEM_PROMPT_TEXT}[name]
        golden.argument(JSON, f"/system_prompts/{name}/ids_key")
        facts = {
            "n_chars": len(text),
            "ends_with_newline": text.endswith("\n"),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        golden.equal_all(JSON, f"/system_prompts/{name}", facts)
