"""The published folder: what is embedded, what is not, the card, loading it with `datasets` alone, relinking."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from tests.hub_server import HubServer
from unimedvl.unimed5m.publish import may_embed, publish, push_to_hub
from unimedvl.unimed5m.relink import relink
from unimedvl.unimed5m.schema import RecordImage

from .clean_site import link_packages
from .toy_records import all_bytes, caption, drawn, record, write_shards

pytestmark = pytest.mark.medium

LOADER = Path(__file__).with_name("clean_loader.py")


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


def test_images_and_texts_stay_out_where_the_license_keeps_them(published):
    folder, _ = published
    paths = list((folder / "published" / "metadata").glob("*/*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in paths) == 6
    for path in paths:
        assert b"A smooth field" not in path.read_bytes()
        for row in pq.read_table(path).to_pylist():
            assert row["redistributable"] == "no"
            assert [image["image"] for image in row["input_img"]] == [None]
            assert row["input_img"][0]["sha256"] and row["input_img"][0]["path"] and row["content_hash"]
            assert row["message"] == [] and row["extra"] == "{}"


def test_tasks_that_alternate_share_no_row_group_and_fill_their_own(tmp_path):
    tasks = ("caption", "vqa", "segmentation", "report")
    image = drawn(0)
    records = [record(number, image, sub_task_type=tasks[number % 4]) for number in range(1000)]
    write_shards(tmp_path / "records", records, shards=1)
    publish(tmp_path / "records", tmp_path / "out")
    for task in tasks:
        with pq.ParquetFile(tmp_path / "out" / "data" / task / "train-shard-00000.parquet") as file:
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            assert groups == [100, 100, 50]
            wanted = [entry.id for entry in records if entry.sub_task_type == task]
            assert file.read(columns=["id"])["id"].to_pylist() == wanted


def test_large_images_make_smaller_row_groups(tmp_path, monkeypatch):
    image = drawn(0)
    monkeypatch.setattr("unimedvl.unimed5m.publish.GROUP_BYTES", 40 * len(image.data))
    tasks = ("caption", "vqa")
    records = [record(number, image, sub_task_type=tasks[number % 2]) for number in range(400)]
    write_shards(tmp_path / "records", records, shards=1)
    publish(tmp_path / "records", tmp_path / "out")
    with pq.ParquetFile(tmp_path / "out" / "data" / "vqa" / "train-shard-00000.parquet") as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert groups == [50] * 4


@pytest.mark.parametrize(
    ("said", "tier", "embedded"),
    [("yes", "A", True), ("yes", "C", True), ("yes (share-alike)", "A", True), ("yes (author statement)", "B", False),
     ("no", "A", False), ("non-commercial", "B", False), ("unclear", "A", False), ("", "A", False), (None, "", False)],
)  # fmt: skip
def test_only_a_clear_yes_embeds(said, tier, embedded):
    assert may_embed(said, tier) is embedded


def test_conditions_are_accepted_by_name():
    assert may_embed("non-commercial", "B", ("yes", "non-commercial"))
    assert may_embed("yes (author statement)", "B", ("yes", "yes (author"))
    assert not may_embed("yes", "A", ("non-commercial",))


def test_card_has_configs_gate_licenses_and_plots(published):
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


def test_a_clean_process_with_datasets_alone_loads_and_resumes(published, tmp_path):
    packages = link_packages(tmp_path / "packages", "datasets", "pillow")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    report = {}
    for action in ("save", "resume"):
        # Isolated and without site packages: neither the working folder nor the installed package can be imported.
        result = subprocess.run(
            [sys.executable, "-I", "-S", LOADER, packages, published[0] / "published", tmp_path / "states", action],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        report |= json.loads(result.stdout.splitlines()[-1])
    assert report["map"] == report["different"] == 36 and report["interleaved"] > 50 and report["resumed"] == 6


def test_relinking_restores_the_records_byte_for_byte(published, tmp_path):
    folder, _ = published
    counts = relink(folder / "published", folder / "records", tmp_path / "relinked")
    assert counts == {"relinked": 6, "missing": 0}
    originals = {
        row["id"]: row for path in (folder / "records").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    restored = [row for path in (tmp_path / "relinked" / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert all(row == originals[row["id"]] for row in restored) and len(restored) == 6


def test_another_image_or_text_is_missing_and_never_linked(published, tmp_path):
    closed = {"license": 'on request, "closed"', "redistributable": "no", "dataset": "closed/set: one"}
    others = [
        record(42, drawn(999), **closed),
        record(43, message=caption("Another text than the one that was checked."), **closed),
        record(44, **closed),
    ]
    write_shards(tmp_path / "others", others, shards=1)
    assert relink(published[0] / "published", tmp_path / "others", tmp_path / "out") == {"relinked": 1, "missing": 5}


def test_relinking_never_mixes_with_other_records(published, tmp_path):
    folder, _ = published
    write_shards(tmp_path / "out" / "data", [record(1)], shards=1)
    with pytest.raises(ValueError, match="holds other files"):
        relink(folder / "published", folder / "records", tmp_path / "out")


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


def test_sources_with_names_alike_keep_their_own_license(tmp_path):
    names = ("set/one", "set one", "Set_one", "other")
    records = [record(number, dataset=name, license=f"terms {number}") for number, name in enumerate(names)]
    write_shards(tmp_path / "records", records, shards=2)
    publish(tmp_path / "records", tmp_path / "out")
    texts = [path.read_text() for path in (tmp_path / "out" / "LICENSES").iterdir()]
    assert len(texts) == 4 and (tmp_path / "out" / "LICENSES" / "other.txt").is_file()
    assert all(sum(f"terms {number}" in text for text in texts) == 1 for number in range(4))


def test_tasks_named_like_the_card_s_own_configs_load(tmp_path):
    tasks = ("all", "caption", "metadata_caption", "no")
    records = [record(number, sub_task_type=task) for number, task in enumerate(tasks)]
    records.append(record(4, redistributable="no"))
    write_shards(tmp_path / "records", records, shards=1)
    publish(tmp_path / "records", tmp_path / "out")
    folder = str(tmp_path / "out")
    names = datasets.get_dataset_config_names(folder)
    assert sorted(names) == ["all", "caption", "metadata_caption", "no", "task_all", "task_metadata_caption"]
    parts = {name: datasets.load_dataset(folder, name, split="train", streaming=True) for name in names}
    rows = {name: len(list(part)) for name, part in parts.items()}
    assert rows == {name: 4 if name == "all" else 1 for name in names}


def test_the_card_of_a_folder_without_images_names_a_config_that_exists(tmp_path):
    write_shards(tmp_path / "records", [record(1, redistributable="no")], shards=1)
    publish(tmp_path / "records", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    call = re.search(r'load_dataset\("REPO_OR_FOLDER", "(\w+)", split="(\w+)"', card)
    assert call is not None
    loaded = datasets.load_dataset(str(tmp_path / "out"), call[1], split=call[2], streaming=True)
    assert [row["id"] for row in loaded] == ["toy-00001"]


def test_no_record_is_nothing_to_publish(tmp_path):
    write_shards(tmp_path / "records", [], shards=1)
    with pytest.raises(ValueError, match="nothing to publish"):
        publish(tmp_path / "records", tmp_path / "out")


def test_an_unpublished_or_unfinished_folder_is_not_pushed(published, tmp_path):
    with pytest.raises(ValueError, match="publish the records first"):
        push_to_hub(tmp_path, "someone/records")
    shutil.copytree(published[0] / "published", tmp_path / "half")
    (tmp_path / "half" / "receipts" / "publish.unfinished").touch()
    with pytest.raises(ValueError, match="unfinished"):
        push_to_hub(tmp_path / "half", "someone/records")


# Runs in a process of its own, since huggingface_hub reads the address of the Hub when it is imported.
PUSH = """
import json, sys
import datasets
from unimedvl.unimed5m.publish import push_to_hub

push_to_hub(sys.argv[1], "tester/records")
rows = list(datasets.load_dataset("tester/records", "caption", split="train", streaming=True))
print(json.dumps([row["id"] for row in rows]))
"""


def push(folder: Path, hub: HubServer, home: Path) -> list[str]:
    """Push a published folder, load it again, and return the ids of its captions."""
    result = subprocess.run(
        [sys.executable, "-c", PUSH, str(folder)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **hub.environment(home)}, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def hub_files(hub: HubServer) -> set[str]:
    repository = hub.repositories["datasets", "tester/records"]
    return set(repository.commits[repository.resolve("main")])


def test_the_hub_holds_what_is_published_and_nothing_else(tmp_path):
    write_shards(tmp_path / "records", [record(number) for number in range(4)], shards=2)
    publish(tmp_path / "records", tmp_path / "out")
    (tmp_path / "out" / "notes.csv").write_text("not for others")
    with HubServer() as hub:
        assert push(tmp_path / "out", hub, tmp_path / "home") == [f"toy-{number:05d}" for number in range(4)]
        first = hub_files(hub)
        # One source is withdrawn: its shard goes, and so must its images on the Hub.
        (tmp_path / "records" / "shard-00001.parquet").unlink()
        publish(tmp_path / "records", tmp_path / "out")
        assert push(tmp_path / "out", hub, tmp_path / "home2") == ["toy-00000", "toy-00001"]
        second = hub_files(hub)
    assert {name.split("/")[0] for name in first} == {
        "README.md", "LICENSE.md", "ACKNOWLEDGMENTS.md", "RELINKING.md", "statistics.json", "LICENSES", "plots",
        "data",
    }  # fmt: skip
    assert first - second == {"data/caption/train-shard-00001.parquet"}


def test_features_survive(published):
    loaded = datasets.load_dataset(str(published[0] / "published"), "vqa", split="validation", streaming=True)
    image = loaded.features["input_img"].feature
    assert isinstance(image["image"], datasets.Image)
    assert "group_id" in loaded.features and "quality" in loaded.features


def test_names_that_nobody_published_stay_at_home(tmp_path):
    """Folders and tables of a user's own data may name patients; named sources and public copies do not."""
    own = {
        "dataset": "ward",
        "group_id": "ward/DOE_JANE_19500101",
        "provenance": "/home/alice/scans DOE_JANE_19500101/CT1.dcm",
        "extra": json.dumps({"patient_name": "Doe", "target": "liver"}),
    }
    secret = [
        record(number, RecordImage(drawn(number).data, f"DOE_JANE/{number}.DCM", 136, 136), **own) for number in (1, 2)
    ]
    closed = record(3, RecordImage(drawn(3).data, "DOE_JANE/3.DCM", 136, 136), redistributable="no", **own)
    public = record(4, provenance="github:owner/repository@0123abc:images/4.png", extra='{"original_id": "4.png"}')
    known = record(5, dataset="busi", provenance="https://example.org benign (5).png", group_id="busi/benign (5)")
    write_shards(tmp_path / "records", [*secret, closed, public, known], shards=1)
    publish(tmp_path / "records", tmp_path / "published")
    for path in (tmp_path / "published").rglob("*"):
        if path.is_file() and "receipts" not in path.parts:
            content = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else str(path.read_bytes())
            assert not any(name in content for name in ("DOE", "alice", "Doe")), path
    rows = {
        row["id"]: row
        for path in (tmp_path / "published").glob("*/*/*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    first, second, third = (rows[f"toy-{number:05d}"] for number in (1, 2, 3))
    assert first["group_id"] == second["group_id"] == third["group_id"] != "ward/DOE_JANE_19500101"
    assert first["provenance"] == "ward" and json.loads(first["extra"]) == {"target": "liver"}
    assert first["input_img"][0]["path"].endswith(".dcm")
    assert rows["toy-00004"] == public.to_row()
    assert rows["toy-00005"] == known.to_row()
    cited = (tmp_path / "published" / "ACKNOWLEDGMENTS.md").read_text()
    assert "github:owner/repository@0123abc" in cited and "images/4.png" not in cited
    publish(tmp_path / "records", tmp_path / "named", public=["ward"])
    shown = b"".join(path.read_bytes() for path in (tmp_path / "named").glob("*/*/*.parquet"))
    assert b"DOE_JANE" in shown


def test_a_folder_with_other_files_is_not_published_into(tmp_path):
    write_shards(tmp_path / "records", [record(1)], shards=1)
    (tmp_path / "mine" / "LICENSES").mkdir(parents=True)
    (tmp_path / "mine" / "LICENSES" / "MIT.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; choose a new folder"):
        publish(tmp_path / "records", tmp_path / "mine")
    assert (tmp_path / "mine" / "LICENSES" / "MIT.txt").read_text() == "mine"


def test_several_built_folders_are_published_as_one(tmp_path):
    for name, number in (("first", 1), ("second", 2)):
        write_shards(tmp_path / name / "data", [record(number)], shards=1)
    statistics = publish([tmp_path / "first", tmp_path / "second"], tmp_path / "published")
    assert statistics["records"] == 2
    assert len(datasets.load_dataset(str(tmp_path / "published"), split="train", cache_dir=str(tmp_path / "c"))) == 2
