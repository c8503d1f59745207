"""Likeness of a generated picture to the true one: PSNR, SSIM, MS-SSIM, and LPIPS through a local network."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy
import torch
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

# The window of SSIM is 11 pixels wide; the coarsest of MS-SSIM's five scales has to hold it.
LEAST_SIDE = 11
LEAST_MS_SSIM_SIDE = 161
RESIZE_RULES = ("prediction", "reference", "none")

DESCRIPTION = """Likeness of generated pictures to the true ones, 8-bit RGB (grey pictures are repeated), range 255.
psnr: dB; pairs without any difference have none and are counted in `identical`; the mean is over the others.
ssim: Gaussian window 11x11, sigma 1.5, covariance by N, mean over channels and pixels (skimage).
ms_ssim: five scales (torchmetrics), only where both sides are at least 161 pixels.
mae: mean absolute difference in levels.
lpips: where a TorchScript network of two (1, 3, H, W) inputs in [-1, 1] is given.
Pictures of different sizes: rule "prediction" resizes the prediction to the reference (bicubic), "reference" does the
opposite, which flatters models of low resolution, "none" refuses."""
INPUTS = """
Args:
    predictions (list of images), references (list of images).
    resize: "prediction" (default), "reference" or "none".
    lpips: path of a TorchScript network.
Returns:
    means over pictures, `identical` and `count`.
"""
CITATION = """@article{wang2004ssim, title={Image quality assessment: from error visibility to structural similarity},
author={Wang, Zhou and others}, journal={IEEE Transactions on Image Processing}, year={2004}}"""


def rgb(image: Image.Image | numpy.ndarray) -> numpy.ndarray:
    """Pixels (height, width, 3) uint8.

    Raises:
        ValueError: for arrays that are not 8-bit, or not grey or RGB.
    """
    if isinstance(image, Image.Image):
        return numpy.asarray(image.convert("RGB"))
    pixels = numpy.asarray(image)
    if pixels.dtype.kind == "f" and not numpy.isfinite(pixels).all():
        raise ValueError("the picture holds NaN or infinite values: repair it before scoring.")
    if pixels.dtype != numpy.uint8:
        raise ValueError(f"expected 8-bit pictures, found {pixels.dtype}: convert them first.")
    if pixels.ndim == 2:
        pixels = numpy.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected a grey or RGB picture, found shape {pixels.shape}.")
    return pixels


def same_size(
    prediction: Image.Image | numpy.ndarray, reference: Image.Image | numpy.ndarray, rule: str = "prediction"
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Both pictures as pixels of one size, by a rule of `RESIZE_RULES`."""
    if rule not in RESIZE_RULES:
        raise ValueError(f"resize: choose one of {', '.join(RESIZE_RULES)}, not {rule!r}.")
    given, wanted = rgb(prediction), rgb(reference)
    if given.shape == wanted.shape:
        return given, wanted
    if rule == "none":
        raise ValueError(f"the pictures have sizes {given.shape[:2]} and {wanted.shape[:2]}: choose a resize rule.")
    if rule == "prediction":
        return _resized(given, wanted), wanted
    return given, _resized(wanted, given)


def _resized(pixels: numpy.ndarray, like: numpy.ndarray) -> numpy.ndarray:
    size = (like.shape[1], like.shape[0])
    return numpy.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def picture_scores(
    prediction: Image.Image | numpy.ndarray,
    reference: Image.Image | numpy.ndarray,
    resize: str = "prediction",
    lpips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float | None]:
    """Scores of one pair; None where a score is not defined (PSNR of equal pictures, windows that do not fit)."""
    given, wanted = same_size(prediction, reference, resize)
    equal = bool((given == wanted).all())
    side = min(given.shape[:2])
    scores: dict[str, float | None] = {
        "psnr": None if equal else float(peak_signal_noise_ratio(wanted, given, data_range=255)),
        "ssim": None,
        "mae": float(numpy.abs(given.astype(numpy.float64) - wanted).mean()),
        "rmse": float(numpy.sqrt(mean_squared_error(wanted, given))),
        "identical": float(equal),
    }
    if side >= LEAST_SIDE:
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
        scores["ssim"] = float(structural_similarity(wanted, given, data_range=255, **options))
    if side >= LEAST_MS_SSIM_SIDE:
        scores["ms_ssim"] = ms_ssim(given, wanted)
    if lpips is not None:
        pair = [
            torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for pixels in (given, wanted)
        ]
        with torch.inference_mode():
            scores["lpips"] = float(lpips(*pair).mean())
    return scores


def ms_ssim(given: numpy.ndarray, wanted: numpy.ndarray) -> float:
    """Multi-scale SSIM of pixels (height, width, 3), sides of at least 161."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    pair = [torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() for pixels in (given, wanted)]
    return float(multiscale_structural_similarity_index_measure(*pair, data_range=255.0))


def load_lpips(path: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
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


class ImageQuality(evaluate.Metric):
    """See the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        picture = datasets.Image()
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": picture, "references": picture}),
            reference_urls=["https://scikit-image.org/docs/stable/api/skimage.metrics.html"],
        )

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        resize: str = "prediction",
        lpips: str | None = None,
    ) -> dict[str, Any]:
        if not predictions:
            raise ValueError("there is nothing to score: pass at least one picture.")
        network = load_lpips(lpips) if lpips else None
        rows = [picture_scores(*pair, resize, network) for pair in zip(predictions, references, strict=True)]
        result: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [value for row in rows if (value := row.get(name)) is not None]
            result[name] = sum(values) / len(values) if values else None
        return result | {"identical": sum(int(row["identical"] or 0) for row in rows), "count": len(rows)}
