"""Every source reads a folder in its publisher's layout, and says what is wrong with any other."""

import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source, list_sources
from unimedvl.unimed5m.builders.base import hashed_split
from unimedvl.unimed5m.schema import MODALITIES, SPLITS, Record

from . import fixtures_generic, fixtures_scans, fixtures_texts

LAYOUTS = {**fixtures_generic.LAYOUTS, **fixtures_texts.LAYOUTS, **fixtures_scans.LAYOUTS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder and expected counts of every source, written once."""
    found = {}

    def folder(name: str) -> tuple[Path, dict[str, int]]:
        if name not in found:
            root = tmp_path_factory.mktemp(name)
            found[name] = root, LAYOUTS[name](root)
        return found[name]

    return folder


def all_records(name: str, root: Path) -> list[Record]:
    return list(get_source(name).records(root))


def test_every_source_has_a_fixture():
    assert {source.name for source in list_sources()} == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_the_publishers_layout(name, folders):
    root, counts = folders(name)
    records = all_records(name, root)
    for record in records:
        record.validate()
    assert Counter(record.sub_task_type for record in records) == counts
    assert len({record.id for record in records}) == len(records)
    places = {(record.group_id, record.split) for record in records}
    assert len(places) == len({group for group, _ in places}), "a group is in two splits"
    source = get_source(name)
    dataset = root.name if name in fixtures_generic.LAYOUTS else source.dataset
    assert {record.dataset for record in records} == {dataset}
    assert set(counts) <= {*source.tasks, "dialogue"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_shards_hold_every_record_once(name, folders):
    root, _ = folders(name)
    source = pickle.loads(pickle.dumps(get_source(name)))
    parts = [record for index in range(3) for record in source.records(root, shard=(index, 3))]
    assert sorted(parts, key=lambda record: record.id) == sorted(all_records(name, root), key=lambda record: record.id)
    assert sum(len(list(source.records(root, split))) for split in SPLITS) == len(parts)


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrong_folder_gets_one_line(name, tmp_path):
    (tmp_path / "readme.txt").write_text("nothing of interest")
    (tmp_path / "others").mkdir()
    with pytest.raises(ValueError, match="expected .* found ") as caught:
        all_records(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{name}: ")
    assert "others/" in message and "readme.txt" in message


def test_the_sources_of_the_paper_are_there():
    """Table 15, the benchmark sets and the eight segmentation sets of section 5.4."""
    names = {source.name for source in list_sources(named_only=True)}
    table = {"pmc-oa", "quilt-1m", "vl-health", "pubmedvision", "gmai-vl", "bigbio-pubmed-qa", "chexpert-plus"}
    table |= {"pmc-vqa", "internvl-medical", "medicat", "medical-diff-vqa", "pmc-inline", "ixi", "brats2023"}
    table |= {"synthrad2023-brain", "synthrad2023-pelvis", "icg-cxr", "bci"}
    benchmarks = {"vqa-rad", "slake", "path-vqa", "omnimedvqa", "gmai-mmbench", "mimic-cxr", "rocov2"}
    masks = {"kits", "qata-cov19", "busi", "cvc-clinicdb", "glas", "isic2018", "kvasir-seg", "refuge"}
    assert names == table | benchmarks | masks


@pytest.mark.parametrize("name", LAYOUTS)
def test_modalities_are_known(name, folders):
    assert {record.modality for record in all_records(name, folders(name)[0])} <= set(MODALITIES)


def test_missing_folder_gets_one_line(tmp_path):
    with pytest.raises(ValueError, match="busi: expected a folder with .*, found no folder at"):
        all_records("busi", tmp_path / "nowhere")


def test_unknown_source_gets_the_names():
    with pytest.raises(ValueError, match="expected one of .*busi.*, found 'nonesuch'"):
        get_source("nonesuch")


@pytest.mark.parametrize("source", list_sources(named_only=True), ids=lambda source: source.name)
def test_cards_say_what_a_person_must_know(source):
    card = source.card
    assert card.title and card.license and card.layout and card.url.startswith("https://")
    assert card.license_tier in "ABC"
    assert card.redistributable in ("yes", "non-commercial", "no", "unclear")
    assert card.layout_source.startswith(("https://", "layout unverified"))
    assert "\n" not in card.layout + card.notes


def test_groups_without_a_split_are_dealt_out_by_their_hash():
    """80 % train, 10 % validation, 10 % test; the same on every machine, by the first 64 bits of SHA-256."""
    names = [f"set/patient-{number}" for number in range(5000)]
    places = {name: int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 for name in names}
    wanted = {
        name: "test" if place < 0.1 else "validation" if place < 0.2 else "train" for name, place in places.items()
    }
    assert {name: hashed_split(name) for name in names} == wanted
    shares = Counter(wanted.values())
    assert [shares[split] / 5000 for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    others = Counter(hashed_split(name, validation=0.0, test=0.5) for name in names)
    assert set(others) == {"train", "test"} and others["test"] / 5000 == pytest.approx(0.5, abs=0.03)
    # A source asks for it where its publisher names no split, by the group that other sets of the family share.
    source = get_source("busi")
    for number in range(60):
        origin = source.origin(f"image-{number}", f"patient-{number}", "", "US")
        assert origin.split == hashed_split(f"{source.family}/patient-{number}")
    assert source.origin("image-0", "patient-0", "validation", "US").split == "validation"


def test_damaged_files_are_reported_and_the_rest_is_read(tmp_path):
    fixtures_scans.kvasir_seg(tmp_path)
    next((tmp_path / "Kvasir-SEG" / "images").iterdir()).write_bytes(b"no image")
    reasons: dict[str, str] = {}
    records = list(get_source("kvasir-seg").records(tmp_path, problem=reasons.__setitem__))
    assert len(records) == 1 and len(reasons) == 1 and "\n" not in next(iter(reasons.values()))
    with pytest.raises(ValueError, match="expected an image"):
        list(get_source("kvasir-seg").records(tmp_path))


def test_what_is_left_out_on_purpose_has_a_reason(folders):
    for name, words in (("vqa-rad", "shows what test shows"), ("medicat", "no caption"), ("mimic-cxr", "neither")):
        root, _ = folders(name)
        reasons: dict[str, str] = {}
        list(get_source(name).records(root, problem=reasons.__setitem__))
        assert len(reasons) == 1 and words in next(iter(reasons.values()))


def test_sources_of_one_hospital_share_groups(folders):
    groups = {
        name: {record.group_id for record in all_records(name, folders(name)[0])}
        for name in ("mimic-cxr", "medical-diff-vqa", "icg-cxr")
    }
    assert "mimic-cxr/p10000032" in groups["mimic-cxr"] & groups["medical-diff-vqa"] & groups["icg-cxr"]
    assert "chexpert-plus/patient00023" in groups["icg-cxr"]


def test_pickles_that_could_run_code_are_refused(tmp_path):
    fixtures_texts.path_vqa(tmp_path)
    (tmp_path / "split" / "qas" / "train_vqa.pkl").write_bytes(pickle.dumps([Path("x")]))
    with pytest.raises(ValueError, match="only plain lists are read"):
        all_records("path-vqa", tmp_path)


def test_wrong_columns_get_one_line(tmp_path):
    fixtures_texts.slake(tmp_path)
    fixtures_texts.write_json(tmp_path / "train.json", [{"image": "a.png"}])
    with pytest.raises(ValueError, match="expected the columns img_name, .*, found image"):
        all_records("slake", tmp_path)


@pytest.mark.parametrize("row", [{"image": "x.jpg"}, {"image": "PMC212319_Fig3_4.jpg", "caption": None}])
def test_a_row_unlike_the_others_gets_one_line(tmp_path, row):
    fixtures_texts.pmc_oa(tmp_path)
    with open(tmp_path / "pmc_oa.jsonl", "a") as stream:
        stream.write(json.dumps(row) + "\n")
    reasons: dict[str, str] = {}
    assert len(list(get_source("pmc-oa").records(tmp_path, problem=reasons.__setitem__))) == 3
    assert list(reasons) == ["pmc_oa#3"]
    assert reasons["pmc_oa#3"].startswith(f"{tmp_path}/pmc_oa.jsonl: expected row 4 to be like the first")


def test_settings_of_a_generic_folder_are_checked(tmp_path):
    fixtures_generic.segmentation_pairs(tmp_path)
    fixtures_generic.write_json(tmp_path / "source.json", {"modallity": "US"})
    with pytest.raises(ValueError, match="expected only .*, found modallity"):
        all_records("segmentation-pairs", tmp_path)


@pytest.mark.parametrize("name", ["vqa-rad", "brats2023", "busi", "medicat", "captions"])
def test_builds_to_parquet_and_the_counts_agree(name, folders, tmp_path):
    root, counts = folders(name)
    summary = build(get_source(name), root, tmp_path / "out", shards=2)
    assert summary["kept"] == sum(counts.values())
    assert summary["read"] == summary["kept"] + summary["rejected"]
