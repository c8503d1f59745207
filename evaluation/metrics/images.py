"""Likeness of a generated image to the true one, over 8-bit RGB pixels of range 255 (gray images are repeated).

Images are PIL images, or uint8 arrays (height, width) or (height, width, 3). Where two have different sizes a resize
rule decides: "prediction" (the default) resizes the prediction to the reference (bicubic), "reference" does the
opposite, which flatters models of low resolution, and "none" refuses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

ImageLike = Image.Image | numpy.ndarray
PerceptualDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# The window of SSIM is 11 pixels wide; the coarsest of MS-SSIM's five scales has to hold it.
LEAST_SIDE = 11
LEAST_MS_SSIM_SIDE = 161
RESIZE_RULES = ("prediction", "reference", "none")
# Root mean square difference of gray levels below which a result is its input.
COPY_LEVELS = 2.0


def rgb_pixels(image: ImageLike) -> numpy.ndarray:
    """Pixels of an image, uint8 (height, width, 3).

    Raises:
        ValueError: for arrays that are not 8-bit, or neither gray nor RGB.
    """
    if isinstance(image, Image.Image):
        return numpy.asarray(image.convert("RGB"))
    pixels = numpy.asarray(image)
    if pixels.dtype.kind == "f" and not numpy.isfinite(pixels).all():
        raise ValueError("the image holds NaN or infinite values: repair it before scoring.")
    if pixels.dtype != numpy.uint8:
        raise ValueError(f"expected 8-bit images, found {pixels.dtype}: convert them first.")
    if pixels.ndim == 2:
        pixels = numpy.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected a gray or RGB image, found shape {pixels.shape}.")
    return pixels


def same_size(
    prediction: ImageLike, reference: ImageLike, resize: str = "prediction"
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Both images as pixels of one size, uint8 (height, width, 3), by a rule of `RESIZE_RULES`.

    Raises:
        ValueError: for an unknown rule, and for different sizes under the rule "none".
    """
    if resize not in RESIZE_RULES:
        raise ValueError(f"resize: choose one of {', '.join(RESIZE_RULES)}, not {resize!r}.")
    given, wanted = rgb_pixels(prediction), rgb_pixels(reference)
    if given.shape == wanted.shape:
        return given, wanted
    if resize == "none":
        raise ValueError(f"the images have sizes {given.shape[:2]} and {wanted.shape[:2]}: choose a resize rule.")
    if resize == "prediction":
        return _resized(given, wanted), wanted
    return given, _resized(wanted, given)


def _resized(pixels: numpy.ndarray, like: numpy.ndarray) -> numpy.ndarray:
    size = (like.shape[1], like.shape[0])
    return numpy.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def psnr(prediction: ImageLike, reference: ImageLike, resize: str = "prediction") -> float | None:
    """Peak signal-to-noise ratio, 10 log10(255^2 / MSE), with the mean squared error over all channels (skimage).

    Args:
        prediction: the generated image, 8-bit.
        reference: the true image, 8-bit.
        resize: a rule of `RESIZE_RULES`.

    Returns:
        The ratio in dB; None for equal images, whose ratio is infinite, so that means are taken over the others.

    Raises:
        ValueError: for arrays that are no 8-bit images, and for what `same_size` refuses.
    """
    given, wanted = same_size(prediction, reference, resize)
    return None if (given == wanted).all() else float(peak_signal_noise_ratio(wanted, given, data_range=255))


def ssim(prediction: ImageLike, reference: ImageLike, resize: str = "prediction") -> float:
    """Structural similarity in [-1, 1], as Wang et al. 2004 (IEEE TIP 13(4), section III.C) set it.

    Gaussian window of 11 x 11 pixels with sigma 1.5, covariance by N, mean over channels and over the pixels that the
    window covers (skimage). It is 1 for equal images.

    Args:
        prediction: the generated image, 8-bit.
        reference: the true image, 8-bit.
        resize: a rule of `RESIZE_RULES`.

    Raises:
        ValueError: if a side is shorter than the window.
    """
    given, wanted = same_size(prediction, reference, resize)
    if min(given.shape[:2]) < LEAST_SIDE:
        raise ValueError(f"SSIM needs sides of {LEAST_SIDE} pixels or more, found {given.shape[:2]}.")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    return float(structural_similarity(wanted, given, data_range=255, **options))


def ms_ssim(prediction: ImageLike, reference: ImageLike, resize: str = "prediction") -> float:
    """Multi-scale SSIM over five scales (Wang, Simoncelli and Bovik 2003; torchmetrics); 1 for equal images.

    Args:
        prediction: the generated image, 8-bit.
        reference: the true image, 8-bit.
        resize: a rule of `RESIZE_RULES`.

    Raises:
        ValueError: if a side is shorter than the window at the coarsest scale.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    pair = same_size(prediction, reference, resize)
    if min(pair[0].shape[:2]) < LEAST_MS_SSIM_SIDE:
        raise ValueError(f"MS-SSIM needs sides of {LEAST_MS_SSIM_SIDE} pixels or more, found {pair[0].shape[:2]}.")
    given, wanted = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() for pixels in pair)
    return float(multiscale_structural_similarity_index_measure(given, wanted, data_range=255.0))


def mae(prediction: ImageLike, reference: ImageLike, resize: str = "prediction") -> float:
    """Mean absolute difference in levels, in [0, 255]."""
    given, wanted = same_size(prediction, reference, resize)
    return float(numpy.abs(given.astype(numpy.float64) - wanted).mean())


def rmse(prediction: ImageLike, reference: ImageLike, resize: str = "prediction") -> float:
    """Root mean squared difference in levels, in [0, 255]."""
    return float(numpy.sqrt(mean_squared_error(*same_size(prediction, reference, resize))))


def lpips(
    prediction: ImageLike, reference: ImageLike, network: PerceptualDistance, resize: str = "prediction"
) -> float:
    """Perceptual distance of two images (Zhang et al. 2018, LPIPS); 0 for equal images.

    Args:
        prediction: the generated image, 8-bit.
        reference: the true image, 8-bit.
        network: distance of two inputs, float32 (1, 3, H, W) in [-1, 1].
        resize: a rule of `RESIZE_RULES`.
    """
    pair = same_size(prediction, reference, resize)
    tensors = [torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for pixels in pair]
    with torch.inference_mode():
        return float(network(*tensors).mean())


def load_lpips(path: str) -> PerceptualDistance:
    """A TorchScript network that gives perceptual distances.

    Raises:
        ValueError: if the file is not there or is none.
    """
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is no TorchScript network: trace lpips.LPIPS on a machine that has it and save the result."
        ) from error


def image_scores(
    prediction: ImageLike,
    reference: ImageLike,
    resize: str = "prediction",
    network: PerceptualDistance | None = None,
) -> dict[str, float | None]:
    """All scores of one pair.

    Args:
        prediction: the generated image.
        reference: the true image.
        resize: a rule of `RESIZE_RULES`.
        network: for LPIPS, None to leave it out.

    Returns:
        `psnr` (None for equal images), `ssim` (None for sides below 11 pixels), `mae`, `rmse`, `identical` (1.0 for
        equal images, else 0.0), `ms_ssim` for sides of 161 pixels and more, and `lpips` with a network.
    """
    pair = same_size(prediction, reference, resize)
    side = min(pair[0].shape[:2])
    ratio = psnr(*pair)
    scores: dict[str, float | None] = {
        "psnr": ratio,
        "ssim": ssim(*pair) if side >= LEAST_SIDE else None,
        "mae": mae(*pair),
        "rmse": rmse(*pair),
        "identical": float(ratio is None),
    }
    if side >= LEAST_MS_SSIM_SIDE:
        scores["ms_ssim"] = ms_ssim(*pair)
    if network is not None:
        scores["lpips"] = lpips(*pair, network)
    return scores


def image_quality(
    predictions: Sequence[ImageLike],
    references: Sequence[ImageLike],
    resize: str = "prediction",
    lpips: str | None = None,
) -> dict[str, Any]:
    """Likeness of generated images to the true ones: PSNR, SSIM, MS-SSIM, and LPIPS through a local network.

    Scores are of 8-bit RGB pixels (gray images are repeated) of range 255.

    * psnr: dB; pairs of equal images have none and are counted in `identical`, the mean is over the others.
    * ssim: Gaussian window of 11 x 11 pixels, sigma 1.5, covariance by N, mean over channels and pixels (skimage).
    * ms_ssim: five scales (torchmetrics), only where both sides are at least 161 pixels.
    * mae, rmse: mean absolute and root mean squared difference in levels.
    * lpips: where a TorchScript network of two (1, 3, H, W) inputs in [-1, 1] is given.

    Args:
        predictions: generated images.
        references: true images.
        resize: for images of different sizes: "prediction" resizes the prediction to the reference (bicubic),
            "reference" does the opposite, which flatters models of low resolution, "none" refuses.
        lpips: path of a TorchScript network.

    Returns:
        means over images, `identical` and `count`.

    Raises:
        ValueError: without an image, and for what `image_scores` refuses.

    Source:
        Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to structural
        similarity", IEEE Transactions on Image Processing 13(4); scikit-image's `skimage.metrics`.
    """
    if not predictions:
        raise ValueError("there is nothing to score: pass at least one image.")
    network = load_lpips(lpips) if lpips else None
    rows = [image_scores(*pair, resize, network) for pair in zip(predictions, references, strict=True)]
    result: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [value for row in rows if (value := row.get(name)) is not None]
        result[name] = sum(values) / len(values) if values else None
    return result | {"identical": sum(int(row["identical"] or 0) for row in rows), "count": len(rows)}


def is_copy(made: Image.Image, given: Image.Image) -> bool:
    """Whether an image is the input image, but for its size and small changes of level (`COPY_LEVELS`)."""
    size = min(made.size, given.size)
    levels = [
        numpy.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=numpy.float64)
        for image in (made, given)
    ]
    return bool(numpy.sqrt(((levels[0] - levels[1]) ** 2).mean()) < COPY_LEVELS)


def change_score(made: Image.Image, before: Image.Image, after: Image.Image) -> float | None:
    """How much of the requested change was made: the cosine of made minus before with after minus before, in levels.

    It lies in [-1, 1]: 1 is the change itself, 0 no relation, -1 its opposite; None where nothing had to change. A
    copy of the input scores 0.
    """
    levels = [
        numpy.asarray(image.convert("L").resize(after.size, Image.Resampling.BICUBIC), dtype=numpy.float64)
        for image in (made, before, after)
    ]
    given, wanted = levels[0] - levels[1], levels[2] - levels[1]
    norms = numpy.linalg.norm(given), numpy.linalg.norm(wanted)
    if not norms[1]:
        return None
    return float((given * wanted).sum() / (norms[0] * norms[1])) if norms[0] else 0.0
