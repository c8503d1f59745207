"""Picture metrics equal independent implementations, on random and edge inputs."""

import numpy
import pytest
import scipy.linalg
import torch
import torchmetrics
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import binom, mannwhitneyu
from torchmetrics.image.fid import FrechetInceptionDistance

from unimedvl.evaluation.metrics.counterfactual import counterfactual
from unimedvl.evaluation.metrics.diversity import diversity
from unimedvl.evaluation.metrics.image_distribution import image_distribution as distribution
from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.metrics.image_quality import image_quality as quality
from unimedvl.evaluation.metrics.memorization import memorization
from unimedvl.evaluation.metrics.reader_study import reader_study
from unimedvl.evaluation.metrics.segmentation import segmentation


def pictures(seed: int, shape=(40, 52, 3)) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(seed)
    first = draw.integers(0, 256, shape, dtype=numpy.uint8)
    noisy = first + draw.normal(0, 20, shape)
    return first, noisy.clip(0, 255).astype(numpy.uint8)


def as_tensor(pixels: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("seed", range(4))
def test_psnr_and_ssim_equal_torchmetrics(seed):
    first, second = pictures(seed)
    found = quality.picture_scores(second, first)
    psnr = torchmetrics.functional.image.peak_signal_noise_ratio(as_tensor(second), as_tensor(first), data_range=255.0)
    assert found["psnr"] == pytest.approx(float(psnr), abs=1e-4)
    assert found["ssim"] == pytest.approx(ssim_by_definition(second, first), abs=1e-6)


def ssim_by_definition(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Wang et al. 2004, equation 13, without the border that the window does not cover."""
    values = []
    for channel in range(3):
        x, y = (pixels[..., channel].astype(float) for pixels in (first, second))

        def blur(image):
            return gaussian_filter(image, 1.5, truncate=3.5)

        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        both = blur(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        ratio = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        values.append(ratio[5:-5, 5:-5].mean())
    return float(numpy.mean(values))


def test_ms_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    first, second = pictures(0, (176, 176, 3))
    assert quality.picture_scores(first, first)["ms_ssim"] == pytest.approx(1.0)
    assert quality.picture_scores(second, first)["ms_ssim"] < 0.999
    assert "ms_ssim" not in quality.picture_scores(*pictures(0))


def test_edge_pictures():
    constant = numpy.full((20, 20, 3), 7, numpy.uint8)
    same = quality.picture_scores(constant, constant)
    assert same["psnr"] is None and same["ssim"] == pytest.approx(1.0) and same["identical"] == 1
    other = quality.picture_scores(constant, constant + 1)
    assert other["psnr"] == pytest.approx(20 * numpy.log10(255)) and other["mae"] == 1
    assert quality.picture_scores(constant[:8], constant[:8] + 1)["ssim"] is None
    with pytest.raises(ValueError, match="NaN"):
        quality.picture_scores(numpy.full((20, 20), numpy.nan), constant)
    with pytest.raises(ValueError, match="8-bit"):
        quality.picture_scores(constant.astype(float), constant)
    with pytest.raises(ValueError, match="nothing to score"):
        quality.ImageQuality()._compute([], [])


def test_resize_rules():
    large, small = Image.new("RGB", (40, 30), "white"), Image.new("L", (20, 15), 0)
    assert quality.same_size(small, large)[0].shape == (30, 40, 3)
    assert quality.same_size(small, large, "reference")[1].shape == (15, 20, 3)
    with pytest.raises(ValueError, match="choose a resize rule"):
        quality.same_size(small, large, "none")


def test_lpips_of_a_local_network(tmp_path):
    class Distance(torch.nn.Module):
        def forward(self, first, second):
            return (first - second).abs().mean(dim=(1, 2, 3))

    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    first, second = pictures(1)
    found = quality.picture_scores(first, second, lpips=quality.load_lpips(str(tmp_path / "lpips.pt")))
    assert found["lpips"] == pytest.approx(found["mae"] / 127.5, rel=1e-5)
    with pytest.raises(ValueError, match="TorchScript"):
        quality.load_lpips(str(tmp_path / "nothing.pt"))


@pytest.mark.parametrize("seed", range(6))
def test_masks_by_hand(seed):
    draw = numpy.random.default_rng(seed)
    first, second = (gaussian_filter(draw.random((24, 30)), 2) > 0.5 for _ in range(2))
    found = segmentation.mask_scores(first, second)
    a, b = ({tuple(place) for place in numpy.argwhere(mask)} for mask in (first, second))
    assert found["dice"] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert found["iou"] == pytest.approx(len(a & b) / len(a | b))

    def surface(points):
        steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return numpy.array([p for p in points if any((p[0] + y, p[1] + x) not in points for y, x in steps)])

    distances = cdist(surface(a), surface(b))
    wanted = max(numpy.percentile(distances.min(axis=1), 95), numpy.percentile(distances.min(axis=0), 95))
    assert found["hd95"] == pytest.approx(wanted)


def test_edge_masks():
    empty, full = numpy.zeros((6, 8), bool), numpy.ones((6, 8), bool)
    assert segmentation.mask_scores(empty, empty) == {"dice": 1, "iou": 1, "hd95": 0}
    assert segmentation.mask_scores(full, full) == {"dice": 1, "iou": 1, "hd95": 0}
    assert segmentation.mask_scores(empty, full) == {"dice": 0, "iou": 0, "hd95": 10}
    with pytest.raises(ValueError, match="NaN"):
        segmentation.read_mask(numpy.full((6, 8), numpy.nan))
    grey = Image.fromarray(numpy.array([[127, 128], [0, 255]], numpy.uint8))
    assert segmentation.read_mask(grey).tolist() == [[False, True], [False, True]]
    assert segmentation.read_mask(grey, (4, 4)).sum() == 8
    # Half-way between black and white is dark.
    assert segmentation.read_mask(numpy.array([[127.5, 127.6]])).tolist() == [[False, True]]


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_fid_of_gaussians_with_a_known_distance(dtype):
    """Exact means and covariances: |m1 - m2|^2 + sum (s1 - s2)^2 for diagonal ones."""
    draw = numpy.random.default_rng(0)
    raw = draw.normal(size=(500, 4))
    centred = raw - raw.mean(axis=0)
    white = centred @ numpy.linalg.inv(numpy.linalg.cholesky(numpy.cov(centred, rowvar=False))).T
    first = (white * [1, 2, 3, 4] + [0, 1, 0, 0]).astype(dtype)
    second = (white * [2, 2, 1, 4] + [3, 1, 0, 2]).astype(dtype)
    assert distribution.frechet_distance(first, second) == pytest.approx(9 + 4 + 1 + 4, rel=1e-4)
    assert distribution.frechet_distance(first, first) == pytest.approx(0, abs=1e-4)


class Flatten(torch.nn.Module):
    num_features = 12

    def forward(self, x):
        return x.float().flatten(1)[:, :12]


@pytest.mark.parametrize("seed", range(3))
def test_fid_equals_scipy_and_torchmetrics(seed):
    draw = numpy.random.default_rng(seed)
    first, second = (draw.normal(size=(40, 12)) @ draw.normal(size=(12, 12)) for _ in range(2))
    covariances = [numpy.cov(x, rowvar=False) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + numpy.trace(covariances[0] + covariances[1] - 2 * root)
    assert distribution.frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    bytes_ = [draw.integers(0, 60 + 60 * side, (40, 12), dtype=numpy.uint8) for side in range(2)]
    other = FrechetInceptionDistance(feature=Flatten(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    for features, real in zip(bytes_, (True, False), strict=True):
        other.update(torch.from_numpy(features).reshape(40, 3, 2, 2), real=real)
    ours = distribution.frechet_distance(*(features.astype(float) for features in bytes_))
    assert ours == pytest.approx(float(other.compute()), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_kid_by_definition(seed):
    draw = numpy.random.default_rng(seed)
    x, y = draw.normal(size=(15, 5)), draw.normal(0.3, 1, size=(15, 5))

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    m = len(x)
    within = sum((kernel(a, a).sum() - numpy.trace(kernel(a, a))) / (m * (m - 1)) for a in (x, y))
    wanted = within - 2 * kernel(x, y).mean()
    assert distribution.kernel_distance(x, y) == pytest.approx(wanted, abs=1e-9)


def test_edge_distributions():
    constant = numpy.ones((5, 3))
    assert distribution.frechet_distance(constant, constant) == 0
    with pytest.raises(ValueError, match="at least 2"):
        distribution.frechet_distance(constant[:1], constant)
    with pytest.raises(ValueError, match="NaN"):
        distribution.kernel_distance(constant, constant * numpy.nan)


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_the_share_of_right_orders(seed):
    draw = numpy.random.default_rng(seed)
    truth = draw.integers(0, 2, 40)
    scores = draw.integers(0, 6, 40) / 5
    wanted = mannwhitneyu(scores[truth == 1], scores[truth == 0]).statistic / (truth.sum() * (1 - truth).sum())
    assert counterfactual.auroc(scores, truth) == pytest.approx(wanted, abs=1e-6)
    assert reader_study.reader_scores(scores, truth)["auroc"] == pytest.approx(wanted, abs=1e-12)
    called = scores > 0.5
    hits = (called & (truth == 1)).sum()
    assert counterfactual.f1(scores, truth) == pytest.approx(2 * hits / (called.sum() + truth.sum()), abs=1e-6)


def test_edge_probabilities():
    assert counterfactual.auroc([0.1, 0.9], [1, 1]) is None
    assert counterfactual.f1([0.1, 0.2], [0, 0]) == 0
    for wrong in ([], [float("nan"), 0.2], [1.2, 0.1]):
        with pytest.raises(ValueError):
            counterfactual.auroc(wrong, [0, 1][: len(wrong)])


def test_reader_study_by_hand():
    found = reader_study.reader_scores([5, 4, 2, 1, 3, 4], [1, 1, 1, 0, 0, 0])
    assert found["true_positive_rate"] == found["true_negative_rate"] == pytest.approx(2 / 3)
    assert found["roc"][0] == [0, 0] and found["roc"][-1] == [1, 1]
    area = numpy.trapezoid([y for _, y in found["roc"]], [x for x, _ in found["roc"]])
    assert area == pytest.approx(found["auroc"])
    with pytest.raises(ValueError, match="one kind only"):
        reader_study.reader_scores([1, 2], [1, 1])


def test_memorisation_flags_returned_pictures_only():
    draw = numpy.random.default_rng(0)
    training = [Image.fromarray(draw.integers(0, 256, (8, 8), dtype=numpy.uint8)).resize((64, 64)) for _ in range(60)]
    others = [Image.fromarray(draw.integers(0, 256, (8, 8), dtype=numpy.uint8)).resize((64, 64)) for _ in range(60)]
    seen, fresh, held_out = (memorization.thumbnails(images) for images in (training, others[:30], others[30:]))
    distances, places = memorization.nearest(seen[7:9], seen)
    assert distances == pytest.approx([0, 0], abs=1e-6) and places.tolist() == [7, 8]
    mirrored = memorization.thumbnails([training[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert memorization.nearest(mirrored, seen)[0] == pytest.approx([0], abs=1e-6)
    usual = memorization.nearest(held_out, seen)[0]
    caught = memorization.memorisation_scores(memorization.nearest(seen[:30], seen)[0], usual)
    clean = memorization.memorisation_scores(memorization.nearest(fresh, seen)[0], usual)
    assert caught["memorised"] and caught["copies"] == 30 and not clean["memorised"] and clean["copies"] == 0
    with pytest.raises(ValueError, match="no training pictures"):
        memorization.nearest(seen, seen[:0])


def test_chance_copies_are_not_taken_for_none_where_few_images_were_held_out():
    """No copy among 10 held-out images means half a copy in 11: 3 copies in 100 are no more than that."""
    found = memorization.memorisation_scores(numpy.array([0.0] * 3 + [0.3] * 97), numpy.full(10, 0.3))
    assert found["copies"] == 3 and found["held_out_copy_share"] == 0
    assert found["p_value"] == pytest.approx(binom.sf(2, 100, 0.5 / 11), rel=1e-9)
    assert not found["memorised"]
    # Among 1000 they are: 1 - P(at most 2 of 100 at 0.5 / 1001) is far below 1 %.
    found = memorization.memorisation_scores(numpy.array([0.0] * 3 + [0.3] * 97), numpy.full(1000, 0.3))
    assert found["p_value"] == pytest.approx(binom.sf(2, 100, 0.5 / 1001), rel=1e-6)
    assert found["memorised"]
    # One copy among 10 counts as one and a half of 11.
    found = memorization.memorisation_scores(numpy.array([0.0] * 30 + [0.3] * 70), numpy.array([0.0] + [0.3] * 9))
    assert found["p_value"] == pytest.approx(binom.sf(29, 100, 1.5 / 11), rel=1e-6)


def test_diversity_of_known_sets():
    """Far apart rows are all different (Vendi = their number); equal rows are one."""
    far = numpy.eye(5) * 100
    assert diversity.vendi_score(far, 1.0) == pytest.approx(5)
    assert diversity.vendi_score(numpy.ones((5, 3)), 1.0) == pytest.approx(1)
    assert diversity.mean_distance(numpy.array([[0.0], [1], [3]])) == pytest.approx(2)
    found = diversity.diversity_scores(numpy.ones((5, 5)), far, numpy.array(["a"] * 5))
    assert found["mean_distance_ratio"] == 0 and found["vendi"] == pytest.approx(1) and found["vendi_ratio"] < 0.5


def test_feature_extractors_by_name(tmp_path):
    images = [Image.new("RGB", (9, 7), colour) for colour in ("black", "white")]
    assert load_feature_extractor("pixels-2")(images).tolist() == [[0] * 12, [1] * 12]

    class Mean(torch.nn.Module):
        def forward(self, pixels):
            return pixels.mean(dim=(2, 3))

    torch.jit.script(Mean()).save(str(tmp_path / "net.pt"))
    extract = load_feature_extractor(f"torchscript:{tmp_path / 'net.pt'}")
    assert extract(images) == pytest.approx(numpy.array([[0.0] * 3, [255.0] * 3]))
    assert "net.pt" in extract.name and "clean bicubic 299" in extract.name
    for wrong in ("inception", "pixels-0", str(tmp_path), f"torchscript:{tmp_path}/none.pt"):
        with pytest.raises(ValueError):
            load_feature_extractor(wrong)
