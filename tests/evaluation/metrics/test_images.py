"""Likeness of images equals independent implementations, on random and edge inputs."""

import numpy
import pytest
import torch
import torchmetrics
from PIL import Image
from scipy.ndimage import gaussian_filter

from unimedvl.evaluation.metrics import images


def noisy_pair(seed: int, shape=(40, 52, 3)) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(seed)
    first = draw.integers(0, 256, shape, dtype=numpy.uint8)
    noisy = first + draw.normal(0, 20, shape)
    return first, noisy.clip(0, 255).astype(numpy.uint8)


def as_tensor(pixels: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("seed", range(4))
def test_psnr_and_ssim_equal_torchmetrics(seed):
    first, second = noisy_pair(seed)
    found = images.image_scores(second, first)
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


def test_ms_ssim_is_one_for_equal_images_and_falls_with_noise():
    first, second = noisy_pair(0, (176, 176, 3))
    assert images.image_scores(first, first)["ms_ssim"] == pytest.approx(1.0)
    assert images.image_scores(second, first)["ms_ssim"] < 0.999
    assert "ms_ssim" not in images.image_scores(*noisy_pair(0))


def test_edge_images():
    constant = numpy.full((20, 20, 3), 7, numpy.uint8)
    same = images.image_scores(constant, constant)
    assert same["psnr"] is None and same["ssim"] == pytest.approx(1.0) and same["identical"] == 1
    other = images.image_scores(constant, constant + 1)
    assert other["psnr"] == pytest.approx(20 * numpy.log10(255)) and other["mae"] == 1
    assert images.image_scores(constant[:8], constant[:8] + 1)["ssim"] is None
    with pytest.raises(ValueError, match="NaN"):
        images.image_scores(numpy.full((20, 20), numpy.nan), constant)
    with pytest.raises(ValueError, match="8-bit"):
        images.image_scores(constant.astype(float), constant)
    with pytest.raises(ValueError, match="nothing to score"):
        images.image_quality([], [])


def test_resize_rules():
    large, small = Image.new("RGB", (40, 30), "white"), Image.new("L", (20, 15), 0)
    assert images.same_size(small, large)[0].shape == (30, 40, 3)
    assert images.same_size(small, large, "reference")[1].shape == (15, 20, 3)
    with pytest.raises(ValueError, match="choose a resize rule"):
        images.same_size(small, large, "none")


def test_lpips_of_a_local_network(tmp_path):
    class Distance(torch.nn.Module):
        def forward(self, first, second):
            return (first - second).abs().mean(dim=(1, 2, 3))

    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    first, second = noisy_pair(1)
    found = images.image_scores(first, second, network=images.load_lpips(str(tmp_path / "lpips.pt")))
    assert found["lpips"] == pytest.approx(found["mae"] / 127.5, rel=1e-5)
    with pytest.raises(ValueError, match="TorchScript"):
        images.load_lpips(str(tmp_path / "nothing.pt"))


def test_single_numbers_are_those_of_the_row():
    first, second = noisy_pair(2, (176, 180, 3))
    row = images.image_scores(second, first)
    for name in ("psnr", "ssim", "ms_ssim", "mae", "rmse"):
        assert getattr(images, name)(second, first) == row[name]
    assert row["rmse"] == pytest.approx(((first.astype(float) - second) ** 2).mean() ** 0.5)
    assert row["psnr"] == pytest.approx(20 * numpy.log10(255 / row["rmse"]))


def test_windows_that_do_not_fit_are_refused():
    small = numpy.zeros((10, 40), numpy.uint8)
    with pytest.raises(ValueError, match="SSIM needs sides of 11"):
        images.ssim(small, small)
    with pytest.raises(ValueError, match="MS-SSIM needs sides of 161"):
        images.ms_ssim(*noisy_pair(0))
