"""The Hub's rules for the front matter of cards, as far as its documentation states them."""

import re
from typing import Any

import yaml

LICENSES = {
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "c-uda", "cc",
    "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "creativeml-openrail-m", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-3.0",
    "agpl-3.0", "mit", "mpl-2.0", "odbl", "odc-by", "openrail", "openrail++", "other", "pddl", "unknown", "unlicense",
    "wtfpl", "zlib",
}  # fmt: skip
TASKS = {
    "any-to-any", "feature-extraction", "image-segmentation", "image-text-to-text", "image-to-image", "image-to-text",
    "question-answering", "summarization", "text-generation", "text-to-image", "visual-question-answering",
    "image-classification", "mask-generation",
}  # fmt: skip
SIZES = re.compile(r"n<1K|1K<n<10K|10K<n<100K|100K<n<1M|1M<n<10M|10M<n<100M|100M<n<1B")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
SDKS = {"gradio", "docker", "static"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def front_matter(card: str) -> dict:
    """What a card says between its first two lines of dashes."""
    return yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}


def problems(kind: str, data: dict[str, Any]) -> list[str]:
    """What the Hub would refuse or warn of.

    Args:
        kind: "model", "dataset" or "space".
        data: the front matter.
    """
    found = []
    stated = data.get("license")
    if stated is not None and stated not in LICENSES:
        found.append(f"license: {stated!r}")
    if stated == "other" and not (data.get("license_name") and data.get("license_link")):
        found.append("license: other without license_name and license_link")
    for name in ("tags", "datasets", "language", "task_categories", "size_categories"):
        value = data.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            found.append(f"{name}: {value!r}")
    found += [f"language: {code!r}" for code in data.get("language", []) if not re.fullmatch("[a-z]{2,3}", code)]
    base = data.get("base_model", [])
    bases = [base] if isinstance(base, str) else base
    for name in [*bases, *data.get("datasets", [])]:
        if not REPOSITORY.fullmatch(name):
            found.append(f"no name of a repository: {name!r}")
    if kind == "model":
        if data.get("pipeline_tag", "any-to-any") not in TASKS:
            found.append(f"pipeline_tag: {data.get('pipeline_tag')!r}")
        found += _index_problems(data.get("model-index", []))
    if kind == "dataset":
        found += [f"task_categories: {task!r}" for task in data.get("task_categories", []) if task not in TASKS]
        found += [f"size: {size!r}" for size in data.get("size_categories", []) if not SIZES.fullmatch(size)]
    if kind == "space":
        if data.get("sdk") not in SDKS or not data.get("title"):
            found.append("a Space needs a title and an sdk")
        found += [f"{name}: {data[name]}" for name in ("colorFrom", "colorTo") if data.get(name, "red") not in COLORS]
        if len(data.get("short_description", "")) > 60:
            found.append("short_description: more than 60 letters")
    return found


def _index_problems(index: Any) -> list[str]:
    found = []
    for entry in index:
        if not isinstance(entry.get("name"), str) or not isinstance(entry.get("results"), list):
            found.append("model-index: a model without name or results")
            continue
        for result in entry["results"]:
            if "type" not in result.get("task", {}) or not {"name", "type"} <= set(result.get("dataset", {})):
                found.append(f"model-index: {result}")
            for metric in result.get("metrics", [{}]):
                if not isinstance(metric.get("value"), int | float | str) or "type" not in metric:
                    found.append(f"model-index: {metric}")
    return found
