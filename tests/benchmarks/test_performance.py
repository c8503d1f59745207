"""docs/performance.md holds the figures of the stored results, and the figure of growth is drawn from them."""

import json

import pytest

from benchmarks import growth, performance
from benchmarks.cases import BESIDE_QWEN2, COMPARED

RESULTS = performance.ROOT / "benchmarks" / "results"
COUNTS, RATIOS = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("counts", "ratios"))


def test_the_document_is_made_from_the_results():
    text = (performance.ROOT / "docs" / "performance.md").read_text()
    assert performance.filled(text, COUNTS, RATIOS) == text


def test_changed_results_change_the_document():
    text = (performance.ROOT / "docs" / "performance.md").read_text()
    changed = json.loads(json.dumps(RATIOS))
    changed["cases"]["decode, context 64"]["median"] += 1
    assert performance.filled(text, COUNTS, changed) != text
    with pytest.raises(ValueError, match="a place for a table"):
        performance.filled("no tables", COUNTS, RATIOS)


def test_stored_ratios_have_their_pairs():
    assert all(RATIOS["cases"][name]["pairs"] >= 15 for name in COMPARED | BESIDE_QWEN2)
    assert all(found["low"] <= found["median"] <= found["high"] for found in RATIOS["cases"].values())


def test_growth_is_drawn(tmp_path):
    growth.draw(COUNTS["cases"], RATIOS["cases"], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert (RESULTS / "growth.png").stat().st_size < 150_000
    with pytest.raises(ValueError, match="write it with python -m benchmarks.counts"):
        growth.main(tmp_path)
