"""What the task files of this folder call. `set`, a column that `process_docs` adds, says whose row it is."""

from typing import Any

import datasets
from PIL import Image

from unimedvl.evaluation.harnesses.hub_sets import HUB_SETS, HubSet


def vqa_rad_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    return _marked(dataset, "vqa_rad")


def path_vqa_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    return _marked(dataset, "path_vqa")


def omnimedvqa_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    return _marked(dataset, "omnimedvqa")


def _marked(dataset: datasets.Dataset, name: str) -> datasets.Dataset:
    return dataset.add_column("set", [name] * len(dataset))


def _set(doc: dict[str, Any]) -> HubSet:
    return HUB_SETS[doc["set"]]


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [doc["image"]]


def text(doc: dict[str, Any]) -> str:
    return _set(doc).sample(doc).text


def target(doc: dict[str, Any]) -> str:
    return _set(doc).sample(doc).reference


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation, with images under the name that lmms-eval gives them."""
    found = _set(doc).conversation(doc, doc["image"])
    for message in found:
        for item in message["content"]:
            if item["type"] == "image":
                item["url"] = item.pop("image")
    return found


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return _set(doc).scores(doc, results[0])
