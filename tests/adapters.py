"""Small adapters with a visible effect, saved as training saves them."""

from pathlib import Path

import torch

from unimedvl.training.adapters import load_with_adapter, save_model
from unimedvl.training.tuning_recipe import AdapterRecipe


def write_adapter(base: str | Path, folder: Path, seed: int = 0, **settings) -> Path:
    """An adapter with random weights on a base, in a new folder; `settings` are of `AdapterRecipe`."""
    model = load_with_adapter(base, AdapterRecipe(**{"experts": "understanding", "rank": 4, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    folder.mkdir(parents=True)
    save_model(model, folder)
    return folder
