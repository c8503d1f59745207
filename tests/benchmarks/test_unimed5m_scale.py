"""The scale benchmark runs, its counts reconcile, and its stored result is one that it writes."""

import json
import subprocess
import sys

import pytest

from benchmarks.unimed5m_scale import MEMORY_LIMIT, RESULTS

pytestmark = [
    pytest.mark.medium,
    pytest.mark.skipif(sys.platform != "linux", reason="proportional set sizes are known on Linux only"),
]


def test_small_sizes_are_measured_and_drawn(tmp_path):
    command = [sys.executable, "-m", "benchmarks.unimed5m_scale", str(tmp_path / "work"), "--to", str(tmp_path / "to")]
    command += ["--sizes", "60,120", "--processes", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parents[1], timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "to" / "unimed5m_scale.json").read_text())
    assert [(entry["records"], entry["kept"]) for entry in report["sizes"]] == [(60, 57), (120, 116)]
    assert all(entry["kept"] + sum(entry["dropped"].values()) == entry["records"] for entry in report["sizes"])
    assert all(0 < entry["peak_bytes"] < MEMORY_LIMIT for entry in report["sizes"])
    assert (tmp_path / "to" / "unimed5m_scale.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "work").iterdir())


def test_the_stored_result_stays_within_memory_and_on_a_line():
    report = json.loads((RESULTS / "unimed5m_scale.json").read_text())
    assert [entry["records"] for entry in report["sizes"]] == [20_000, 60_000, 200_000]
    assert all(entry["peak_bytes"] < MEMORY_LIMIT for entry in report["sizes"])
    assert report["line"]["largest_relative_deviation"] < 0.05
    assert (RESULTS / "unimed5m_scale.png").stat().st_size < 60_000
