"""The documents hold the figures of the stored results, and the figure of growth is drawn from them."""

import json

import pytest

from benchmarks import growth, performance
from benchmarks.cases import BESIDE_QWEN2, COMPARED

RESULTS = performance.ROOT / "benchmarks" / "results"
STORED = performance.stored(RESULTS)
COUNTS, RATIOS = STORED["counts"], STORED["ratios"]


@pytest.mark.parametrize("name", performance.DOCUMENTS)
def test_the_document_is_made_from_the_results(name):
    text = (performance.ROOT / "docs" / name).read_text()
    assert performance.filled(text, performance.DOCUMENTS[name], STORED) == text


def test_changed_results_change_the_document():
    text = (performance.ROOT / "docs" / "performance.md").read_text()
    makers = performance.DOCUMENTS["performance.md"]
    for change in (
        lambda results: results["ratios"]["cases"]["decode, context 64"].update(median=99.0),
        lambda results: results["start"]["start"]["ask"].update(modules=99),
        lambda results: results["start"]["load"]["whole model, shards"].update(weights=99),
    ):
        changed = json.loads(json.dumps(STORED))
        change(changed)
        assert performance.filled(text, makers, changed) != text
    with pytest.raises(ValueError, match="a place for a table"):
        performance.filled("no tables", makers, STORED)


def test_stored_ratios_have_their_pairs():
    assert all(RATIOS["cases"][name]["pairs"] >= 15 for name in COMPARED | BESIDE_QWEN2)
    assert all(found["low"] <= found["median"] <= found["high"] for found in RATIOS["cases"].values())


def test_growth_is_drawn(tmp_path):
    growth.draw(COUNTS["cases"], RATIOS["cases"], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert (RESULTS / "growth.png").stat().st_size < 150_000
    with pytest.raises(ValueError, match="write it with python -m benchmarks.counts"):
        growth.main(tmp_path)
