"""The benchmark of start and load: it sees what it should, and its stored result holds what issue G asks for."""

import json

import pytest

from benchmarks.start import (
    RESULTS,
    measure_load,
    measure_program,
    unused_packages,
    write_wide_checkpoint,
)

SMALL = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 4}


def test_whole_processes_are_timed_and_their_modules_are_seen():
    idle, few = measure_program("pass")
    busy, more = measure_program("import time, wave\nwhile time.process_time() < 2: pass")
    assert idle < 1.5 and 2 <= busy < idle + 3
    assert set(more) - set(few) >= {"wave"}
    assert unused_packages(["peft", "peft.utils", "json"]) == ["peft"]


@pytest.mark.medium
def test_a_small_checkpoint_loads_without_a_second_copy(tmp_path):
    write_wide_checkpoint(tmp_path, "10GB", **SMALL)
    whole, half = measure_load(tmp_path, True), measure_load(tmp_path, False)
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert 0.98 * stored <= whole["weights"] <= stored
    assert half["weights"] < 0.7 * whole["weights"]
    for measured in (whole, half):
        assert measured["samples"] > 10
        # Read weights are resident, once; the rest of the megabytes is the loader's own.
        assert measured["weights"] <= measured["resident peak"] <= 1.02 * measured["weights"] + (8 << 20)


def test_the_stored_result_holds_what_was_asked_for():
    report = json.loads((RESULTS / "start.json").read_text())
    load, start = report["load"], report["start"]
    for measured in (value for value in load.values() if isinstance(value, dict)):
        assert measured["resident peak to weights"] <= 1.02
    assert load["whole model, one file"]["weights"] >= 1e9
    for files in ("one file", "shards"):
        assert load[f"understanding only, {files}"]["resident peak to whole model's"] <= 0.56
    for kind in ("understanding only", "ask"):
        assert start[kind]["unused packages"] == []
    assert start["ask"]["processor time to torch"]["median"] <= 4.0
    # transformers' own imports are above 2.5 times those of torch; what is ours adds nothing that shows.
    assert start["understanding only"]["processor time to transformers"]["median"] <= 1.1
    assert start["understanding only"]["modules"] <= 1.03 * start["transformers"]["modules"]
