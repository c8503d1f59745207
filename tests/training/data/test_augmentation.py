"""Random changes of images: alike for all images of a record, the same in every run, and off unless asked for."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import write_folder
from unimedvl.processing.image_processing_unimedvl import pixels_from_image
from unimedvl.training.data.augmentation import Augmentation, draw_augmentation
from unimedvl.training.data.dataset import PackedRecords, RecordGroup
from unimedvl.training.data_recipe import AugmentationRecipe, DataRecipe, GroupRecipe, ImageRange

RANGES = {"vae": ImageRange(16, 48), "vit": ImageRange(12, 36), "understanding": ImageRange(12, 48)}
STRONG = AugmentationRecipe(0.7, True, True, True, brightness=0.3, contrast=0.3, color=0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("records"), {"vqa": 6, "segmentation": 6, "text_to_image": 4})


def packed(folder, checkpoint, augmentation, tasks=("segmentation", "vqa"), seed=3):
    model, processor = checkpoint
    groups = [GroupRecipe(task, str(folder), tasks=[task], augmentation=augmentation, **RANGES) for task in tasks]
    recipe = DataRecipe(groups, pack_tokens=220, open_packs=2)

    def encode(text):
        return processor.tokenizer.encode(text, add_special_tokens=False)

    return PackedRecords([RecordGroup(group) for group in groups], recipe, encode, model.config, seed)


def batches(data, count):
    stream = iter(data)
    return [next(stream) for _ in range(count)]


def test_off_by_default(folder, checkpoint):
    assert GroupRecipe("one", str(folder)).augmentation.changes is False
    assert draw_augmentation(AugmentationRecipe(), 5, square=True) is None
    plain, named = (batches(packed(folder, checkpoint, item), 2) for item in (AugmentationRecipe(), STRONG))
    assert plain[0]["pixel_values"].shape != () and not torch.equal(
        torch.cat([batch["pixel_values"].flatten() for batch in plain])[:200],
        torch.cat([batch["pixel_values"].flatten() for batch in named])[:200],
    )


def test_same_seed_same_images_and_each_epoch_its_own(folder, checkpoint):
    first, again = (batches(packed(folder, checkpoint, STRONG), 3) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["latent_pixel_values"], other["latent_pixel_values"])
    data = packed(folder, checkpoint, STRONG)
    keys = [key for packs in (next(data.plan()) for _ in range(1)) for pack in packs for key in pack.keys]
    drawn = {data.sample(dataclasses.replace(keys[0], epoch=epoch)).augmentation for epoch in range(6)}
    assert len(drawn) == 6


def test_sizes_and_tokens_do_not_depend_on_it(folder, checkpoint):
    plain, changed = (next(packed(folder, checkpoint, item).plan()) for item in (AugmentationRecipe(), STRONG))
    assert [pack.num_tokens for pack in plain] == [pack.num_tokens for pack in changed]


def test_input_and_mask_move_together():
    """A mask drawn from the image stays the mask of the changed image."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    mask = Image.fromarray(np.where(np.asarray(image)[..., :1] > 127, 255, 0).astype(np.uint8).repeat(3, axis=2))
    for seed in range(30):
        change = draw_augmentation(STRONG, seed, square=True)
        assert change is not None
        moved, moved_mask = change.geometry(image), change.geometry(mask)
        assert moved.size == moved_mask.size
        assert ((np.asarray(moved)[..., 0] > 127) == (np.asarray(moved_mask)[..., 0] > 127)).all()


def test_outputs_keep_their_levels_where_they_are_masks():
    pixels = pixels_from_image(Image.new("RGB", (8, 8), (10, 200, 90)))
    change = Augmentation(gains=(0.8, 0.8, 0.8), contrast=1.1, outputs=False)
    assert change.intensity(pixels, output=True) is pixels
    changed = change.intensity(pixels, output=False)
    assert changed.dtype == np.float32 and not np.allclose(changed, pixels) and abs(changed).max() <= 1.0
    black = pixels_from_image(Image.new("RGB", (8, 8)))
    np.testing.assert_allclose(Augmentation(gains=(1.3, 1.2, 0.9)).intensity(black, output=False), black)


def test_gamma_keeps_black_and_white_and_order_and_goes_both_ways():
    ramp = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 6, 8).repeat(3, axis=0)
    changes = [draw_augmentation(AugmentationRecipe(gamma=0.8), seed, square=True) for seed in range(60)]
    means = []
    for change in changes:
        changed = change.intensity(ramp, output=False)
        assert changed[0, 0, 0] == -1 and changed[0, -1, -1] == 1 and (np.diff(changed[0].ravel()) > 0).all()
        assert 1 / 1.8 - 1e-9 <= change.gamma <= 1.8 + 1e-9
        means.append(changed.mean())
    assert 15 < sum(mean > ramp.mean() for mean in means) < 45


def test_inversion_exchanges_black_and_white_in_its_share_of_the_records():
    pixels = pixels_from_image(Image.new("RGB", (8, 8), (10, 200, 90)))
    changes = [draw_augmentation(AugmentationRecipe(invert=0.25), seed, square=True) for seed in range(200)]
    assert 30 < sum(change.inverted for change in changes) < 70
    for change in changes:
        wanted = -pixels if change.inverted else pixels
        np.testing.assert_allclose(change.intensity(pixels, output=False), wanted, atol=1e-6)


def test_new_changes_leave_the_draws_of_the_others_as_they_are():
    for seed in range(20):
        plain = draw_augmentation(STRONG, seed, square=True)
        more = draw_augmentation(dataclasses.replace(STRONG, gamma=0.5, invert=1.0), seed, square=True)
        assert dataclasses.replace(more, gamma=1.0, inverted=False) == plain
        assert more.inverted and plain.gamma == 1.0


def test_only_square_images_are_turned():
    turned = {draw_augmentation(STRONG, seed, square=True).turns for seed in range(40)}
    assert turned == {0, 1, 2, 3}
    assert {draw_augmentation(STRONG, seed, square=False).turns for seed in range(40)} == {0}


def test_crops_keep_the_share_that_was_asked_for():
    image = Image.new("RGB", (100, 60))
    for seed in range(30):
        width, height = draw_augmentation(AugmentationRecipe(crop=0.7), seed, square=False).geometry(image).size
        assert 69 <= width <= 100 and abs(width / 100 - height / 60) < 0.03


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 0.0}, "crop"),
        ({"crop": 1.5}, "crop"),
        ({"brightness": 1.0}, "brightness"),
        ({"color": -1}, "color"),
        ({"gamma": -0.1}, "gamma"),
        ({"invert": 1.5}, "invert"),
    ],
)
def test_impossible_strengths_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentationRecipe(**values)


def test_a_latent_cache_beside_changing_images_is_refused(folder):
    group = GroupRecipe("drawn", str(folder), augmentation=AugmentationRecipe(flip_horizontal=True))
    with pytest.raises(ValueError, match="latent_cache"):
        DataRecipe([group], latent_cache="somewhere")


def test_images_are_decoded_as_they_lie_in_the_record(folder):
    """The fixture's images are of several sizes, as the tests above need."""
    group = RecordGroup(GroupRecipe("drawn", str(folder), tasks=["segmentation"], **RANGES))
    sizes = {Image.open(io.BytesIO(group.record(index).input_img[0].data)).size for index in range(len(group))}
    assert len(sizes) > 1
