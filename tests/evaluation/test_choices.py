"""Which samples a limit takes, which training samples are read, and which rule judges an answer."""

import dataclasses
import hashlib
import json

import pytest

from tests.evaluation.painter import Painter, settings
from tests.training.record_folders import record, write_folder
from unimedvl.evaluation import benchmarks
from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.report import markdown
from unimedvl.unimed5m.schema import to_table
from unimedvl.unimed5m.shards import write_table


def first_by_hash(ids, count: int) -> set[str]:
    return set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count])


def test_a_limit_counts_what_belongs_to_the_benchmark(tmp_path):
    for split in ("train", "test"):
        records = [
            dataclasses.replace(
                record("vqa", number, split), extra=json.dumps({"q_lang": "en" if number % 4 == 0 else "zh"})
            )
            for number in range(24)
        ]
        write_table(tmp_path / "data" / f"{split}-vqa.parquet", to_table(records))
    data = BenchmarkData(get_benchmark("slake-en"), tmp_path, limit=5)
    asked = [sample.id for _, sample in data.samples()]
    assert set(asked) == first_by_hash([f"vqa-{number}-test" for number in range(0, 24, 4)], 5)
    assert {sample.extra["q_lang"] for sample in data.training()} == {"en"}


def test_training_images_are_a_choice_by_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "TRAINING_IMAGES", 3)
    folder = write_folder(tmp_path / "records", {"text_to_image": 12})
    write_folder(folder, {"text_to_image": 4}, "validation")
    data = BenchmarkData(get_benchmark("unimed-mini"), folder, tasks=["text_to_image"])
    wanted = first_by_hash([f"text_to_image-{number}-train" for number in range(12)], 3)
    assert {sample.id for sample in data.training()} == wanted
    assert data.training_counts == {"text_to_image": 12}
    results = evaluate(Run("m", tmp_path / "out"), Painter(), [data], settings(), print)
    memory = results["benchmarks"]["unimed-mini"]["tasks"]["text_to_image"]["memorization"]
    assert (memory["searched"], memory["training_images"]) == (3, 12)
    assert "(searched 3 of 12;" in markdown(results)


def test_of_a_publishers_folder_the_choice_is_among_what_is_read(mini_data, monkeypatch):
    data = BenchmarkData(get_benchmark("unimed-mini"), mini_data, tasks=["text_to_image"])
    everything = [sample.id for sample in data.training()]
    monkeypatch.setattr(benchmarks, "TRAINING_IMAGES", 4)
    read = [sample.id for sample in data.training()]
    assert first_by_hash(everything, 4) <= set(read) and len(read) < len(everything)
    assert data.training_counts == {"text_to_image": len(everything)}


@pytest.mark.parametrize("rule", ["", "vlmevalkit"])
def test_a_rule_that_is_asked_for_judges_every_answer(rule, records, tmp_path):
    data = BenchmarkData(get_benchmark("unimed-mini"), records, tasks=["vqa", "diagnosis"])
    wanted = dataclasses.replace(settings(), rule=rule)
    results = evaluate(Run("m", tmp_path, baselines=False), Painter(), [data], wanted, print)
    entries = results["benchmarks"]["unimed-mini"]["tasks"]
    used = {name for entry in entries.values() for name in entry["rules"]}
    name = rule or "contains (stated values)"
    assert used == {rule} if rule else name in used
    assert all(sum(entry["rules"].values()) == entry["count"] for entry in entries.values())
    count = next(entry["rules"][name] for entry in entries.values() if name in entry["rules"])
    assert f"{name} {count}" in markdown(results)
