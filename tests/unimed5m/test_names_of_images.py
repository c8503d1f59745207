"""F12: however a file is named, it is one image of one group; what is hidden is none."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.builders.image_names import image_name
from unimedvl.unimed5m.quality.control import quality_control

from .builds import built
from .fixtures_files import save_volume, write_image, write_json, write_lines, write_mask, write_volume

pytestmark = pytest.mark.medium


# F12: spellings of names


def spellings(name: str, folder: Path) -> list[str]:
    decomposed, composed = (unicodedata.normalize(form, name) for form in ("NFD", "NFC"))
    kinds = [f"./{composed}", composed.replace("/", "//"), f"other/../{composed}", composed.replace("/", "\\")]
    kinds += [f".\\{composed}", f" {composed} ", f"/{composed}", str(folder / composed), decomposed, composed]
    return kinds


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_f12_spellings_of_one_file_are_one_group_and_one_split(tmp_path, stored):
    folder = tmp_path / "in"
    rows = []
    for number in range(12):
        name = f"süd/é{number}.png"
        write_image(folder / unicodedata.normalize(stored, name), number, (160, 160))
        rows += [{"image": text, "caption": f"Text {n} of a film."} for n, text in enumerate(spellings(name, folder))]
    write_lines(folder / "captions.jsonl", rows)
    records, reasons = built("captions", folder, tmp_path / "out")
    assert not reasons and len(records) == len(rows)
    places: dict[str, set[tuple[str, str]]] = {}
    for record in records:
        places.setdefault(record.input_img[0].path, set()).add((record.group_id, record.split))
    assert len(places) == 12 and all(len(found) == 1 for found in places.values())
    # A digest of the composed name decides, whatever the disk has: the split is the same on every system.
    assert {group for found in places.values() for group, _ in found} == {f"in/süd/é{n}.png" for n in range(12)}
    quality_control(tmp_path / "out", tmp_path / "checked")
    qc = json.loads((tmp_path / "checked" / "qc.json").read_text())
    assert not any("leak" in reason for stage in qc["stages"] for reason in stage["dropped"])


@pytest.mark.parametrize("source", ["captions", "reports", "labels", "vqa", "reasoning", "conversations"])
def test_f12_every_table_groups_by_the_file(tmp_path, source):
    write_image(tmp_path / "in" / "a" / "b.png")
    (tmp_path / "in" / "link").symlink_to("a")
    names = ["a/b.png", "./a/b.png", "a\\b.png", "link/b.png", "x/../link//b.png"]
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A chest film."}]
    texts = dict.fromkeys(("caption", "report", "label", "question", "reasoning", "answer"), "A chest film.")
    write_json(
        tmp_path / "in" / f"{source}.json", [{**texts, "image": name, "conversations": turns} for name in names]
    )
    records, reasons = built(source, tmp_path / "in", tmp_path / "out")
    assert not reasons and len(records) == len(names) and {record.group_id for record in records} == {"in/a/b.png"}


def test_f12_groups_are_the_same_in_any_spelling(tmp_path):
    rows = []
    for number in range(2):
        write_image(tmp_path / "in" / f"{number}.png", number)
        group = unicodedata.normalize(("NFC", "NFD")[number], "Müller ")
        rows.append({"image": f"{number}.png", "caption": "A chest film.", "group": " " * number + group})
    write_lines(tmp_path / "in" / "captions.jsonl", rows)
    records, _ = built("captions", tmp_path / "in", tmp_path / "out")
    assert {record.group_id for record in records} == {"in/Müller"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../b.png", "leads out of it"),
        ("x/../../b.png", "leads out of it"),
        ("..\\b.png", "leads out of it"),
        ("/../b.png", "leads out of it"),
        ("C:\\scans\\a.png", "found no such file"),
        ("https://example.org/a.png", "found an address"),
        ("file:///a.png", "found an address"),
        ("data:image/png;base64,AAAA", "found an address"),
        ("none.png", "found no such file"),
        ("a.png/", "a chest film"),
    ],
)
def test_f12_names_of_other_places_are_set_aside(tmp_path, name, words):
    write_image(tmp_path / "b.png")
    write_image(tmp_path / "in" / "a.png")
    rows = [{"image": text, "caption": "A chest film."} for text in ("a.png", name)]
    write_lines(tmp_path / "in" / "captions.jsonl", rows)
    records, reasons = built("captions", tmp_path / "in", tmp_path / "out")
    if words == "a chest film":
        assert not reasons and len({record.group_id for record in records}) == 1
    else:
        assert len(records) == 1 and words in reasons["captions#1"]


def test_f12_a_name_with_a_backslash_of_its_own_is_that_file(tmp_path):
    write_image(tmp_path / "a\\b.png", 1)
    write_image(tmp_path / "a" / "b.png", 2)
    assert image_name(tmp_path, "a\\b.png") == "a\\b.png" and image_name(tmp_path, "a/b.png") == "a/b.png"


part = st.text(st.sampled_from("aäéあ한 ."), min_size=1, max_size=4).filter(
    lambda text: text.strip(". ") and text == text.strip()
)


@given(st.lists(part, min_size=1, max_size=3), st.sampled_from(["NFC", "NFD"]), st.integers(0, 9))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_f12_every_spelling_leads_to_the_file(tmp_path_factory, parts, stored, kind):
    folder = tmp_path_factory.mktemp("names")
    name = "/".join(unicodedata.normalize("NFC", text) for text in parts)
    path = folder / unicodedata.normalize(stored, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    found = image_name(folder, spellings(name, folder)[kind])
    assert os.path.samefile(folder / found, path) and found == path.relative_to(folder).as_posix()


# F12: hidden files and folders

LEFT_BEHIND = [
    ".DS_Store",
    "._a.png",
    ".git/x.png",
    ".ipynb_checkpoints/a.png",
    "__MACOSX/polyp/._a.png",
    "__MACOSX/polyp/a.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
    "polyp/@eaDir/a.png",
    "polyp/.DS_Store",
    "polyp/._a.png",
    "polyp/Thumbs.db",
    "polyp/desktop.ini",
    "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png",
    "lost+found/a.png",
]


def litter(folder: Path, *below: str) -> None:
    """What operating systems leave behind, in the folder and in those below it that are named."""
    for place in ("", *below):
        for name in LEFT_BEHIND:
            write_image(folder / place / f"{name}.png").rename(folder / place / name)


def test_f12_hidden_and_system_folders_are_no_classes(tmp_path):
    write_image(tmp_path / "in" / "polyp" / "a.png")
    write_image(tmp_path / "in" / "normal" / "a.png", 1)
    source = get_source("image-folder")
    before = source.fingerprint(tmp_path / "in")
    litter(tmp_path / "in")
    records, reasons = built("image-folder", tmp_path / "in", tmp_path / "out")
    assert not reasons and Counter(json.loads(record.extra)["label"] for record in records) == {
        "polyp": 1,
        "normal": 1,
    }
    # What a file browser leaves behind makes no other build of it.
    assert source.fingerprint(tmp_path / "in") == before


def test_f12_hidden_files_are_no_masks_no_pairs_and_no_volumes(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "masks" / "images" / f"{name}.png")
        write_mask(tmp_path / "masks" / "masks" / f"{name}.png")
        for side in ("input", "target"):
            write_image(tmp_path / "pairs" / side / f"{name}.png")
    for folder in ("masks/images", "masks/masks", "pairs/input", "pairs/target"):
        (tmp_path / folder / ".DS_Store").write_bytes(b"x")
        (tmp_path / folder / "._a.png").write_bytes(b"x")
        (tmp_path / folder / "Thumbs.db").write_bytes(b"x")
    for source, folder, count in (("segmentation-pairs", "masks", 2), ("paired-images", "pairs", 4)):
        records, reasons = built(source, tmp_path / folder, tmp_path / f"{folder}-out")
        assert len(records) == count and not reasons


@pytest.mark.parametrize("first", ["NFC", "NFD"])
def test_f12_masks_pairs_and_labels_are_found_by_names_in_the_other_form(tmp_path, first):
    one, other = (unicodedata.normalize(form, "é[1]") for form in (first, {"NFC": "NFD", "NFD": "NFC"}[first]))
    write_image(tmp_path / "masks" / "images" / f"{one}.png")
    write_mask(tmp_path / "masks" / "masks" / f"{other}.png")
    write_image(tmp_path / "pairs" / "input" / f"{one}.png")
    write_image(tmp_path / "pairs" / "target" / f"{other}.png")
    write_volume(tmp_path / "volumes" / "images" / f"{one}.nii.gz")
    marked = np.zeros((24, 20, 4), np.uint8)
    marked[4:8, 4:8, 2] = 1
    save_volume(tmp_path / "volumes" / "labels" / f"{other}.nii.gz", marked)
    for source, folder in (("segmentation-pairs", "masks"), ("paired-images", "pairs"), ("nifti-volumes", "volumes")):
        records, reasons = built(source, tmp_path / folder, tmp_path / f"{folder}-out")
        assert records and not reasons and {r.sub_task_type for r in records} <= {"segmentation", "cross_modal"}
        assert all(unicodedata.is_normalized("NFC", record.group_id) for record in records)


def test_f12_a_decomposed_folder_is_the_same_class(tmp_path):
    write_image(tmp_path / "in" / unicodedata.normalize("NFD", "Zöliakie") / "a.png")
    (record,), _ = built("image-folder", tmp_path / "in", tmp_path / "out")
    assert json.loads(record.extra)["label"] == "Zöliakie"
