"""Specialists as a predictor: `--model specialist:FOLDER`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.json_files import read_json

from ..predictions import Prediction
from ..samples import TASKS, Sample
from .networks import AnswerNetwork, UNet

ANSWERS, SEGMENTATION = "answers", "segmentation"


def pixels(image: Image.Image, side: int) -> torch.Tensor:
    """An image as a square input of the networks, float32 (3, side, side) in [-1, 1]."""
    small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(numpy.array(small)).permute(2, 0, 1).float() / 127.5 - 1


class Specialist:
    """Networks of single tasks.

    Args:
        design: side of the images in pixels; answers (texts, most frequent first); targets of masks; tasks of
            image to image; training_samples of each network.
        networks: by "answers", "segmentation" or the task's name.

    Attributes:
        settings: the design for a manifest, which may be published: the number of answers in place of training texts.
    """

    name = "specialist"

    def __init__(self, design: dict[str, Any], networks: dict[str, nn.Module]):
        self.design, self.networks = design, networks
        self.settings: dict[str, Any] = design | {"answers": len(design["answers"])}

    @classmethod
    def build(cls, design: dict[str, Any]) -> "Specialist":
        """Untrained networks for what the design names."""
        networks: dict[str, nn.Module] = {}
        if design["answers"]:
            networks[ANSWERS] = AnswerNetwork(len(design["answers"]))
        if design["targets"]:
            networks[SEGMENTATION] = UNet(len(design["targets"]), residual=False)
        for task in design["tasks"]:
            networks[task] = UNet(3, residual=True)
        return cls(design, networks)

    @classmethod
    def load(cls, folder: str | Path) -> "Specialist":
        """The specialist that `save` wrote into a folder.

        Raises:
            ValueError: if the folder holds no specialist.
        """
        path = Path(folder) / "specialist.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no specialist: train one with python -m unimedvl.evaluation.specialists.train."
            )
        found = cls.build(read_json(path))
        for name, network in found.networks.items():
            network.load_state_dict(load_file(Path(folder) / f"{name}.safetensors"))
            network.eval()
        return found

    def save(self, folder: str | Path) -> None:
        """Write `specialist.json` (the design) and one safetensors file of weights for each network."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, network in self.networks.items():
            save_file(network.state_dict(), folder / f"{name}.safetensors")
        (folder / "specialist.json").write_text(json.dumps(self.design, indent=1, ensure_ascii=False) + "\n")

    def supports(self, task: str, sample: Sample | None = None) -> bool:
        """Whether a network was trained for a task, and for a mask of this sample's target."""
        if TASKS[task].family == "answer":
            return ANSWERS in self.networks and (sample is None or bool(sample.inputs))
        if TASKS[task].family == "segmentation":
            known = self.design["targets"]
            return SEGMENTATION in self.networks and (sample is None or sample.extra.get("target") in known)
        return task in self.networks

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """An answer with its probability, or an image of the input's size, for each sample of one task."""
        task, side = samples[0].task, self.design["side"]
        batch = torch.stack([pixels(shown_image(sample.inputs[-1]), side) for sample in samples])
        if TASKS[task].family == "answer":
            probabilities = self.networks[ANSWERS](batch, [sample.text for sample in samples]).softmax(dim=1)
            best = probabilities.max(dim=1)
            texts = [self.design["answers"][place] for place in best.indices.tolist()]
            return [
                Prediction(text, None, round(sure, 6)) for text, sure in zip(texts, best.values.tolist(), strict=True)
            ]
        sizes = [(sample.inputs[-1].width, sample.inputs[-1].height) for sample in samples]
        if TASKS[task].family == "segmentation":
            masks = self.networks[SEGMENTATION](batch)
            places = [self.design["targets"].index(sample.extra["target"]) for sample in samples]
            made = [
                mask[place].sigmoid()[None].expand(3, -1, -1) * 2 - 1
                for mask, place in zip(masks, places, strict=True)
            ]
        else:
            made = list(self.networks[task](batch))
        return [Prediction(image=_image(image, size)) for image, size in zip(made, sizes, strict=True)]


def _image(image: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    levels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)
