"""Every named benchmark runs end to end on a folder in its publisher's layout, with the shipped checkpoint."""

import json
from pathlib import Path

import pytest

from tests.unimed5m import fixtures_scans, fixtures_texts
from unimedvl.evaluation.benchmarks import BENCHMARKS, BenchmarkData
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.predictions import ModelPredictor
from unimedvl.evaluation.report import markdown
from unimedvl.evaluation.scoring import Settings
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source

pytestmark = pytest.mark.medium

LAYOUTS = {**fixtures_texts.LAYOUTS, **fixtures_scans.LAYOUTS}
NAMED = [benchmark for benchmark in BENCHMARKS if benchmark.name != "unimed-mini"]


def folder_of(benchmark, root: Path) -> Path:
    if benchmark.source:
        LAYOUTS[benchmark.source](root)
        return root
    LAYOUTS["medicat"](root / "medicat")
    build(get_source("medicat"), root / "medicat", root / "records", shards=1)
    return root / "records"


@pytest.mark.parametrize("benchmark", NAMED, ids=lambda benchmark: benchmark.name)
def test_runs_end_to_end(benchmark, nano, tmp_path):
    # A fixture of two patients need not have one in the split that the groups' hash decides.
    splits = ("train", "validation", "test")
    data = BenchmarkData(benchmark, folder_of(benchmark, tmp_path / "data"), limit=2, splits=splits)
    settings = Settings(extractor=load_feature_extractor("pixels-1"), meteor=False)
    run = Run("nano", tmp_path / "out", batch_size=2, baselines=False)
    results = evaluate(run, ModelPredictor(nano, max_new_tokens=8), [data], settings, print)
    found = results["benchmarks"][benchmark.name]["tasks"]
    assert set(found) <= set(benchmark.tasks) and 1 <= sum(entry["count"] for entry in found.values()) <= 4
    text = markdown(results)
    assert f"## {benchmark.name}" in text
    if benchmark.paper:
        assert "The paper's Table" in text and "| UniMedVL" in text
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_a_wrong_folder_gets_one_line(benchmark, tmp_path):
    (tmp_path / "readme.txt").write_text("nothing of interest")
    with pytest.raises(ValueError, match="expected") as caught:
        list(BenchmarkData(benchmark, tmp_path).samples())
    assert "\n" not in str(caught.value)
