"""The image processor against the reference's records and its own contract."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from tests.processing.conftest import SMALL_TRANSFORMS, random_image
from unimedvl.processing.image_processing_unimedvl import (
    UniMedVLImageProcessor,
    convert_to_rgb,
    patchify_pixels,
    pixels_from_image,
    reference_size,
)


@pytest.fixture
def records(pytestconfig):
    return pytestconfig.getoption("--golden")


def test_every_recorded_size(records):
    compared = 0
    for name, record in json.loads((records / "sizes.json").read_text())["resize"].items():
        limits = [record[key] for key in ("max_size", "min_size", "stride", "max_pixels")]
        for width, height, num_images, *size in record["rows"]:
            assert list(reference_size(width, height, *limits, num_images)) == size, (name, width, height, num_images)
            compared += 1
    assert compared >= 1000


def test_recorded_tensors_are_equal_to_the_bit(records):
    facts = json.loads((records / "infer.json").read_text())
    tensors = load_file(records / "transforms.safetensors")
    vit = facts["vit_transform"]
    processor = UniMedVLImageProcessor(
        understanding_transform=vit, vit_transform=vit, vae_transform=facts["vae_transform"]
    )
    patch = processor.patch_size
    for index, entry in enumerate(facts["images"]):
        image = Image.open(records / entry["file"])
        assert torch.equal(torch.from_numpy(np.array(convert_to_rgb(image))), tensors[f"img{index}.rgb"])

        direct = processor(image, return_tensors="pt")
        assert torch.equal(direct["pixel_values"], tensors[f"img{index}.vit_patches"])
        assert set(direct) == {"pixel_values", "image_grid_thw"}

        both = processor(image, generation_mode="image", return_tensors="pt")
        resized = Image.fromarray(tensors[f"img{index}.vae_resized"].numpy())
        assert torch.equal(both["latent_pixel_values"][0], torch.from_numpy(pixels_from_image(resized).copy()))
        assert both["latent_image_sizes"].tolist() == [entry["vae_chw"][1:]]
        twice = Image.fromarray(tensors[f"img{index}.vit_after_vae_resized"].numpy())
        expected = patchify_pixels(pixels_from_image(twice), patch)
        assert torch.equal(both["pixel_values"], torch.from_numpy(expected))

        chained = processor(image, pipeline="chain", return_tensors="pt")
        assert torch.equal(chained["pixel_values"], both["pixel_values"])
        assert "latent_pixel_values" not in chained
    recorded = tensors["img0.vae_pixels"]
    first = Image.open(records / facts["images"][0]["file"])
    assert torch.equal(
        processor(first, generation_mode="image", return_tensors="pt")["latent_pixel_values"][0], recorded
    )


@pytest.mark.parametrize(
    "size, expected",
    # Upstream sizes of the reference's understanding transform.
    [((512, 512), (518, 518)), ((256, 256), (378, 378)), ((2048, 1536), (980, 728)), ((33, 57), (378, 658))],
)
def test_published_sizes(size, expected):
    assert reference_size(*size, **UniMedVLImageProcessor.understanding_transform) == expected


def test_pixel_budget_shrinks_by_the_ratio_of_areas():
    transform = UniMedVLImageProcessor.understanding_transform
    sides = [reference_size(2000, 2000, **transform, num_images=count)[0] for count in (1, 2, 4, 8, 12)]
    assert sides == [980, 980, 518, 252, 168]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_multiples_of_the_stride_within_the_limit(width, height):
    for transform in (UniMedVLImageProcessor.vae_transform, UniMedVLImageProcessor.vit_transform):
        size = reference_size(width, height, **transform)
        assert all(side % transform["image_stride"] == 0 and side >= transform["image_stride"] for side in size)
        assert max(size) <= transform["max_image_size"]


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 3000), st.integers(20, 3000))
def test_the_vae_resize_is_idempotent(width, height):
    """Feeding the VAE's image to its transform again changes nothing, which the chain relies on."""
    size = reference_size(width, height, **UniMedVLImageProcessor.vae_transform)
    if max(width, height) / min(width, height) < 30:
        assert reference_size(*size, **UniMedVLImageProcessor.vae_transform) == size


def test_shapes_and_padding(image_processor):
    images = [random_image(40, 50), random_image(90, 40, seed=1)]
    output = image_processor(images, generation_mode="image", return_tensors="pt")
    sizes, latents = output["latent_image_sizes"], output["latent_pixel_values"]
    assert latents.shape[2:] == tuple(sizes.max(dim=0).values) and latents.dtype == torch.float32
    for (height, width), image in zip(sizes.tolist(), latents, strict=True):
        assert not image[:, height:].any() and not image[:, :, width:].any()
    assert output["image_grid_thw"].prod(dim=1).sum() == len(output["pixel_values"])
    assert output["pixel_values"].shape[1] == 14 * 14 * 3
    assert output["image_grid_thw"].dtype == sizes.dtype == torch.int64
    assert output["pixel_values"].min() >= -1 and output["pixel_values"].max() <= 1


@pytest.mark.parametrize("generation_mode", ["text", "image", "interleaved"])
def test_a_batch_equals_singles(image_processor, generation_mode):
    images = [random_image(30 + 17 * seed, 90 - 11 * seed, seed) for seed in range(4)]
    batch = image_processor(images, generation_mode=generation_mode)
    singles = [image_processor(image, generation_mode=generation_mode) for image in images]
    assert np.array_equal(batch["pixel_values"], np.concatenate([single["pixel_values"] for single in singles]))
    for index, single in enumerate(singles):
        assert np.array_equal(batch["image_grid_thw"][index : index + 1], single["image_grid_thw"])
        if generation_mode != "text":
            height, width = single["latent_image_sizes"][0]
            padded = batch["latent_pixel_values"][index, :, :height, :width]
            assert np.array_equal(padded, single["latent_pixel_values"][0])


def test_the_same_image_in_every_form(image_processor, tmp_path):
    image = random_image(45, 60)
    image.save(tmp_path / "image.png")
    array = np.asarray(image)
    forms = [
        image,
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        (tmp_path / "image.png").read_bytes(),
        open(tmp_path / "image.png", "rb"),
        array,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        [[image]],
        torch.from_numpy(array.copy())[None],
    ]
    outputs = [image_processor(form)["pixel_values"] for form in forms]
    assert all(np.array_equal(output, outputs[0]) for output in outputs)


def test_settings_for_one_call_do_not_stay(image_processor):
    image = random_image(100, 100)
    before = image_processor(image)["image_grid_thw"].tolist()
    transform = {"max_image_size": 28, "min_image_size": 14, "image_stride": 14}
    assert image_processor(image, understanding_transform=transform)["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert image_processor(image)["image_grid_thw"].tolist() == before
    in_image_mode = image_processor(image, generation_mode="image", vit_transform=transform)
    assert in_image_mode["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert in_image_mode["latent_image_sizes"].tolist() == [[64, 64]]


def test_direct_and_chain_differ_in_image_mode(image_processor):
    image = random_image(200, 150)
    chain = image_processor(image, generation_mode="image")
    direct = image_processor(image, generation_mode="image", pipeline="direct")
    assert np.array_equal(chain["latent_pixel_values"], direct["latent_pixel_values"])
    assert not np.array_equal(chain["pixel_values"], direct["pixel_values"])


def test_transparency_is_pasted_on_white():
    image = Image.new("RGBA", (30, 30), (10, 20, 30, 0))
    assert convert_to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (30, 30), 0)
    palette.info["transparency"] = 0
    assert convert_to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    # As in the reference, the alpha of a gray image is dropped.
    assert convert_to_rgb(Image.new("LA", (30, 30), (7, 0))).getpixel((0, 0)) == (7, 7, 7)


def test_no_images_give_no_tensors(image_processor):
    assert dict(image_processor([])) == {} and dict(image_processor([[], [None]])) == {}


def test_settings_survive_saving(tmp_path):
    saved = UniMedVLImageProcessor(**SMALL_TRANSFORMS, pipeline="direct", max_image_pixels=123456)
    saved.save_pretrained(tmp_path)
    loaded = UniMedVLImageProcessor.from_pretrained(tmp_path)
    for name in (*SMALL_TRANSFORMS, "pipeline", "max_image_pixels", "patch_size", "merge_size"):
        assert getattr(loaded, name) == getattr(saved, name)
