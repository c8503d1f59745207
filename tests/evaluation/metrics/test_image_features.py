"""Feature extractors by name."""

import numpy
import pytest
import torch
from PIL import Image

from unimedvl.evaluation.metrics.image_features import load_feature_extractor


def test_feature_extractors_by_name(tmp_path):
    images = [Image.new("RGB", (9, 7), color) for color in ("black", "white")]
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
