"""The published folder: what is embedded, what is not, the card, loading it with `datasets` alone, relinking."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from unimedvl.processing.unimed5m.publish import may_embed, publish, push_to_hub, relink

from .toy_records import all_bytes, drawn, record, write_shards

# Run by a process that has `datasets` and not this package.
CLEAN_PROCESS = """
import copy, itertools, json, sys
import datasets

folder = sys.argv[1]
whole = datasets.load_dataset(folder, "all", split="train")
stream = datasets.load_dataset(folder, "all", split="train", streaming=True)
assert [row["id"] for row in stream] == whole["id"], "streaming and map forms differ"
assert whole[0]["input_img"][0]["image"].size == (136, 136)
assert datasets.load_dataset(folder, "metadata_caption", split="train")[0]["input_img"][0]["image"] is None

parts = [
    datasets.load_dataset(folder, name, split="train", streaming=True).select_columns(["id"])
    for name in ("caption", "vqa", "segmentation")
]

def interleaved():
    return datasets.interleave_datasets(
        copy.deepcopy(parts), probabilities=[0.5, 0.3, 0.2], seed=7, stopping_strategy="all_exhausted"
    )

straight = [row["id"] for row in interleaved()]
checked = 0
for stop in (1, 2, 7, 13, 29, len(straight) - 1):
    first = interleaved()
    head = [row["id"] for row in itertools.islice(iter(first), stop)]
    state = json.loads(json.dumps(first.state_dict()))
    second = interleaved()
    second.load_state_dict(state)
    assert head + [row["id"] for row in second] == straight, stop
    checked += 1
assert not [name for name in sys.modules if name.startswith("unimedvl")]
print(json.dumps({"map": len(whole), "interleaved": len(straight), "resumed": checked}))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("publish")
    tasks = ("caption", "vqa", "segmentation")
    records = [record(number, sub_task_type=tasks[number % 3]) for number in range(36)]
    records += [record(number, sub_task_type="vqa", split="validation") for number in range(36, 42)]
    closed = {"license": 'on request, "closed"', "redistributable": "no", "dataset": "closed/set: one"}
    records += [record(number, **closed) for number in range(42, 48)]
    write_shards(folder / "records", records, shards=4)
    return folder, publish(folder / "records", folder / "published")


def test_every_record_is_published_once(published):
    folder, statistics = published
    assert (statistics["records"], statistics["with_images"], statistics["metadata_only"]) == (48, 42, 6)
    found = [
        name
        for path in (folder / "published").glob("*/*/*.parquet")
        for name in pq.read_table(path, columns=["id"])["id"].to_pylist()
    ]
    assert sorted(found) == [f"toy-{number:05d}" for number in range(48)]
    assert statistics["configs"]["data"]["vqa"] == {"train": 12, "validation": 6}


def test_images_stay_out_where_the_licence_keeps_them(published):
    folder, _ = published
    for path in (folder / "published" / "metadata").glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            assert row["redistributable"] == "no"
            assert [picture["image"] for picture in row["input_img"]] == [None]
            assert row["input_img"][0]["sha256"] and row["input_img"][0]["path"]


@pytest.mark.parametrize(
    ("said", "embedded"),
    [("yes", True), ("yes (share-alike)", True), ("no", False), ("non-commercial", False), ("unclear", False),
     ("", False), (None, False)],
)  # fmt: skip
def test_only_a_clear_yes_embeds(said, embedded):
    assert may_embed(said) is embedded


def test_card_has_configs_gate_licences_and_plots(published):
    folder = published[0] / "published"
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    names = [config["config_name"] for config in head["configs"]]
    assert names == ["all", "caption", "segmentation", "vqa", "metadata_caption"]
    assert head["extra_gated_prompt"] and head["license"] == "other"
    assert {path.name for path in (folder / "LICENSES").iterdir()} == {"toy.txt", "closed_set_one.txt"}
    assert 'on request, "closed"' in (folder / "LICENSES" / "closed_set_one.txt").read_text()
    assert "closed/set: one" in (folder / "ACKNOWLEDGMENTS.md").read_text()
    assert {path.name for path in (folder / "plots").iterdir()} == {"modality.png", "sub_task_type.png"}
    assert json.loads((folder / "statistics.json").read_text())["counts"]["split"] == {"train": 42, "validation": 6}


@pytest.mark.slow
def test_a_clean_process_with_datasets_alone_loads_and_resumes(published, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    # Isolated mode: neither the working folder nor PYTHONPATH offers this package's sources.
    result = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN_PROCESS, str(published[0] / "published")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["map"] == 36 and counts["resumed"] == 6 and counts["interleaved"] >= 36


def test_relinking_restores_the_records_byte_for_byte(published, tmp_path):
    folder, _ = published
    counts = relink(folder / "published", folder / "records", tmp_path / "relinked")
    assert counts == {"relinked": 6, "missing": 0}
    originals = {
        row["id"]: row for path in (folder / "records").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    restored = [row for path in (tmp_path / "relinked" / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert all(row == originals[row["id"]] for row in restored) and len(restored) == 6


def test_another_image_is_missing_and_never_linked(published, tmp_path):
    write_shards(tmp_path / "others", [record(42, drawn(999))], shards=1)
    assert relink(published[0] / "published", tmp_path / "others", tmp_path / "out") == {"relinked": 0, "missing": 6}


def test_publishing_again_changes_nothing(published):
    folder, statistics = published
    before = all_bytes(folder / "published")
    assert publish(folder / "records", folder / "published") == statistics
    assert all_bytes(folder / "published") == before


def test_allowing_more_moves_records_and_leaves_no_copy(tmp_path):
    records = [record(1, redistributable="non-commercial"), record(2)]
    write_shards(tmp_path / "records", records, shards=1)
    publish(tmp_path / "records", tmp_path / "out")
    assert list((tmp_path / "out" / "metadata").rglob("*.parquet"))
    statistics = publish(tmp_path / "records", tmp_path / "out", embed=("yes", "non-commercial"))
    assert statistics["metadata_only"] == 0
    assert not list((tmp_path / "out" / "metadata").rglob("*.parquet"))


def test_an_unpublished_folder_is_not_pushed(tmp_path):
    with pytest.raises(ValueError, match="publish the records first"):
        push_to_hub(tmp_path, "someone/records")


def test_features_survive(published):
    loaded = datasets.load_dataset(str(published[0] / "published"), "vqa", split="validation", streaming=True)
    picture = loaded.features["input_img"].feature
    assert isinstance(picture["image"], datasets.Image)
    assert "group_id" in loaded.features and "quality" in loaded.features
