"""What `source.json` decides about the generic sources, and when a finished build is out of date."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.schema import Record

from .fixtures_files import write_image, write_json, write_lines, write_mask, write_table, write_volume
from .fixtures_generic import LAYOUTS, dicom_series
from .fixtures_texts import llava_row

NAMES = [f"patient{patient:02d}_slice{number}" for patient in range(8) for number in range(2)]


def image_folder(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        write_image(root / "polyp" / f"{name}.png", seed, (8, 8))


def segmentation_pairs(root: Path) -> None:
    for name in NAMES:
        write_image(root / "images" / f"{name}.png")
        write_mask(root / "masks" / f"{name}.png")


def paired_images(root: Path) -> None:
    for side in ("input", "target"):
        for name in NAMES:
            write_image(root / side / f"{name}.png", 0, (8, 8))


def captions(root: Path) -> None:
    image_folder(root)
    write_table(root / "captions.csv", [{"image": f"polyp/{name}.png", "caption": "A polyp."} for name in NAMES])


def conversations(root: Path) -> None:
    image_folder(root)
    write_json(root / "conversations.json", [llava_row(f"polyp/{name}.png") for name in NAMES])


def nifti_volumes(root: Path) -> None:
    for name in NAMES:
        write_volume(root / f"{name}.nii.gz", shape=(6, 6, 2))


def series(root: Path) -> None:
    for patient in range(4):
        for number in range(2):
            folder = root / f"patient{patient:02d}" / f"CT{number}"
            dicom_series(folder)
            (folder / "source.json").unlink()


FOLDERS = {
    "image-folder": image_folder,
    "segmentation-pairs": segmentation_pairs,
    "paired-images": paired_images,
    "captions": captions,
    "conversations": conversations,
    "nifti-volumes": nifti_volumes,
    "dicom-series": series,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_patient_is_on_one_side_of_a_split(name, tmp_path):
    FOLDERS[name](tmp_path)
    write_json(tmp_path / "source.json", {"group": "(patient[0-9]+)"})
    sides: dict[str, set[str]] = {}
    for record in get_source(name).records(tmp_path):
        patient = re.search(r"patient\d+", " ".join([record.provenance, *(p.path for p in record.input_img)]))
        assert record.group_id == f"{tmp_path.name}/{patient[0]}"
        sides.setdefault(patient[0], set()).add(record.split)
    assert len(sides) >= 4 and all(len(splits) == 1 for splits in sides.values())


def test_an_image_without_its_patient_is_set_aside(tmp_path):
    for name in ("patient1_a", "scan"):
        write_image(tmp_path / "polyp" / f"{name}.png")
    write_json(tmp_path / "source.json", {"group": "(patient[0-9]+)"})
    reasons: dict[str, str] = {}
    assert len(list(get_source("image-folder").records(tmp_path, problem=reasons.__setitem__))) == 1
    wanted = "polyp/scan.png: expected a match of the group '(patient[0-9]+)' in source.json, found none."
    assert reasons == {"polyp/scan.png": wanted}


@pytest.mark.parametrize("pattern", ["patient", "(", 5, ""])
def test_a_group_without_parentheses_gets_one_line(tmp_path, pattern):
    image_folder(tmp_path)
    write_json(tmp_path / "source.json", {"group": pattern})
    with pytest.raises(ValueError, match="group: expected a regular expression with parentheses around"):
        list(get_source("image-folder").records(tmp_path))


def test_the_column_of_a_table_counts_before_the_path_and_may_be_0(tmp_path):
    captions(tmp_path)
    (tmp_path / "captions.csv").unlink()
    rows = [{"image": f"polyp/{name}.png", "caption": "A polyp.", "group": 0} for name in NAMES[:8]]
    write_lines(tmp_path / "captions.jsonl", [*rows, {**rows[0], "group": None}])
    write_json(tmp_path / "source.json", {"dataset": "d", "group": "(patient[0-9]+)"})
    groups = Counter(record.group_id for record in get_source("captions").records(tmp_path))
    assert groups == {"d/0": 8, "d/patient00": 1}


def test_conversations_may_have_splits_and_groups(tmp_path):
    write_image(tmp_path / "1.png")
    write_json(tmp_path / "conversations.json", [llava_row("1.png") | {"split": "test", "group": 7}])
    record = next(get_source("conversations").records(tmp_path))
    assert record.split == "test" and record.group_id == f"{tmp_path.name}/7"


def directions(records: list[Record]) -> list[tuple[str, str]]:
    found = [json.loads(record.extra) for record in records]
    return [(extra["origin"], extra["target"]) for extra in found]


def test_pairs_are_translated_both_ways_unless_told_otherwise(tmp_path):
    LAYOUTS["paired-images"](tmp_path)
    names = ("T1-weighted MRI", "T2-weighted MRI")
    records = list(get_source("paired-images").records(tmp_path))
    assert directions(records) == [names, names[::-1]] * 2
    assert records[0].input_img == records[1].output_img and records[0].output_img == records[1].input_img
    assert len({record.id for record in records}) == 4 and len({record.group_id for record in records}) == 2
    settings = json.loads((tmp_path / "source.json").read_text())
    write_json(tmp_path / "source.json", settings | {"both_directions": False})
    assert directions(list(get_source("paired-images").records(tmp_path))) == [names] * 2
    write_json(tmp_path / "source.json", settings | {"target": names[0]})
    with pytest.raises(ValueError, match="expected two names in origin and target"):
        list(get_source("paired-images").records(tmp_path))


@pytest.mark.parametrize("name", ["dicom-series", "nifti-volumes"])
def test_scans_are_enhanced_by_two_and_by_four(name, tmp_path):
    FOLDERS[name](tmp_path)
    write_json(tmp_path / "source.json", {"dataset": "d"})
    records = list(get_source(name).records(tmp_path))
    made = Counter((extra["scale"], extra["method"]) for extra in (json.loads(record.extra) for record in records))
    assert set(made) == {(2, "bicubic"), (4, "bicubic"), (2, "k-space"), (4, "k-space")}
    assert made[2, "bicubic"] == made[4, "k-space"] and made[4, "bicubic"] == made[2, "k-space"]
    assert [record.id for record in records] == [record.id for record in get_source(name).records(tmp_path)]


def test_two_tables_of_one_kind_are_named(tmp_path):
    captions(tmp_path)
    write_lines(tmp_path / "captions.jsonl", [{"image": f"polyp/{NAMES[0]}.png", "caption": "A polyp."}])
    with pytest.raises(ValueError, match="expected one table in .*, found captions.csv and captions.jsonl: keep one"):
        list(get_source("captions").records(tmp_path))


def test_a_row_with_too_many_cells_is_set_aside(tmp_path):
    image_folder(tmp_path)
    text = f"image,caption\npolyp/{NAMES[0]}.png,A polyp, 5 mm\npolyp/{NAMES[1]}.png,A polyp.\n"
    (tmp_path / "captions.csv").write_text(text)
    reasons: dict[str, str] = {}
    assert len(list(get_source("captions").records(tmp_path, problem=reasons.__setitem__))) == 1
    wanted = "row 1: expected a cell for each column, found 1 more: texts with commas need quotation marks."
    assert reasons == {"captions#0": f"captions.csv: {wanted}"}


def test_text_that_is_no_utf8_is_rejected_alone(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    rows = [{"image": "1.png", "caption": text} for text in ("A cyst.", "bad \ud800 half")]
    rows += [{"image": "\ud800.png", "caption": "A cyst."}, {"image": "1.png", "caption": "A cyst.", "x": "\udfff"}]
    write_lines(tmp_path / "in" / "captions.jsonl", rows)
    summary = build(get_source("captions"), tmp_path / "in", tmp_path / "out", shards=1)
    assert (summary["kept"], summary["rejected"]) == (1, 3)
    lines = (tmp_path / "out" / "rejected" / "00000-of-00001.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert r"message[1].value: expected text that UTF-8 can hold, found 'bad \ud800 half'." in reasons[0]
    assert "captions.jsonl: row 3: expected text that UTF-8 can hold" in reasons[1]
    assert "extra: expected text that UTF-8 can hold" in reasons[2]


CHANGES = {
    "a setting of the same length": lambda root: write_json(root / "source.json", {"modality": "MRI", "license": "b"}),
    "a cell of a table": lambda root: write_lines(root / "a" / "rows.jsonl", [{"a": 2}]),
    "a file three levels below": lambda root: (root / "a" / "b" / "c" / "2.png").write_bytes(b"2"),
    "an empty folder": lambda root: (root / "a" / "b" / "d").mkdir(),
    "a size": lambda root: (root / "a" / "b" / "c" / "1.png").write_bytes(b"12"),
    "a file behind a link": lambda root: (root.parent / "elsewhere" / "3.png").write_bytes(b"3"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_folder_is_noticed(tmp_path, name):
    root = tmp_path / "in"
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "b" / "c" / "1.png").write_bytes(b"1")
    write_json(root / "source.json", {"modality": "MRI", "license": "a"})
    write_lines(root / "a" / "rows.jsonl", [{"a": 1}])
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "round").symlink_to(root)
    source = get_source("segmentation-pairs")
    before = source.fingerprint(root)
    os.utime(root / "a" / "b" / "c" / "1.png", (0, 0))
    assert source.fingerprint(root) == before
    CHANGES[name](root)
    assert source.fingerprint(root) != before


def test_a_build_with_other_settings_is_refused(tmp_path):
    root = tmp_path / "in"
    write_image(root / "polyp" / "1.png")
    write_json(root / "source.json", {"modality": "CT"})
    build(get_source("image-folder"), root, tmp_path / "out", shards=1)
    write_json(root / "source.json", {"modality": "US"})
    with pytest.raises(ValueError, match="holds another build .different: the source's folder or options."):
        build(get_source("image-folder"), root, tmp_path / "out", shards=1)


def test_two_files_that_differ_in_their_ending_only_are_named(tmp_path):
    paired_images(tmp_path / "set")
    for side in ("input", "target"):
        write_image(tmp_path / "set" / side / f"{NAMES[3]}.bmp", 1, (8, 8))
    with pytest.raises(ValueError, match=f"two records of '.*{NAMES[3]}' have the same id.*rename or remove one"):
        build(get_source("paired-images"), tmp_path / "set", tmp_path / "out", shards=2)
