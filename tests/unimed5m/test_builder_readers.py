"""The parts that sources are made of: tables, volumes, words."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from unimedvl.commands.main import main
from unimedvl.processing.medical_formats_unimedvl import load_medical_image
from unimedvl.processing.view_unimedvl import View
from unimedvl.unimed5m.builders import get_source, markdown_table, source_texts, table_of_sources, tables
from unimedvl.unimed5m.builders.record_images import file_image, named_image, read_volume
from unimedvl.unimed5m.task_images import pixels_of

from . import fixtures_scans, fixtures_texts
from .fixtures_files import save_volume, write_image

ROWS = [{"a": "1", "b": "grüße, [x] {y}"}, {"a": "2", "b": '"quoted"\nline'}, {"a": "3", "b": ""}]


def test_tables_of_all_formats_agree(tmp_path):
    fixtures_texts.write_table(tmp_path / "t.csv", ROWS)
    fixtures_texts.write_table(tmp_path / "t.tsv", ROWS)
    fixtures_texts.write_json(tmp_path / "t.json", ROWS)
    fixtures_texts.write_lines(tmp_path / "t.jsonl", ROWS)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    for path in sorted(tmp_path.iterdir()):
        assert list(tables.rows(path)) == ROWS, path


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_json_arrays_are_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tables, "CHUNK", chunk)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(ROWS, indent=3, ensure_ascii=False), encoding="utf-8")
    assert list(tables.rows(path)) == ROWS


def test_json_arrays_may_hold_what_python_writes(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"age": float("nan"), "id": 10**30}]))
    (row,) = tables.rows(path)
    assert np.isnan(row["age"]) and row["id"] == 10**30


@pytest.mark.parametrize("content", ["[{}", '[{"a": 1} {', "3", "[1, 2]", '{"a": {"b": 1}'])
def test_broken_json_gets_one_line(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="t.json: expected a json table, found a problem: .*"):
        list(tables.rows(path))


def test_volume_slices_lie_as_the_image_reader_shows_them(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1000, (24, 20, 5)).astype(np.int16)
    path = save_volume(tmp_path / "v.nii.gz", voxels)
    volume = read_volume(path)
    for index in range(5):
        image = volume.image(index, "v", View(window=(500, 1000)))
        shown = np.asarray(load_medical_image(path, window=(500, 1000), slice_index=index))
        assert (image.height, image.width) == (20, 24)
        assert np.array_equal(pixels_of(image), shown)


def test_volume_slices_along_an_axis_of_the_file(tmp_path):
    voxels = np.zeros((3, 8, 6), np.int16)
    voxels[1, 2, 4] = 100
    volume = read_volume(save_volume(tmp_path / "v.nii", voxels), slice_axis=0)
    assert np.argwhere(pixels_of(volume.image(1, "v", View(window=(50, 100)))) == 255).tolist() == [[2, 4]]


def test_damaged_volume_gets_one_line(tmp_path):
    fixtures_scans.kits(tmp_path)
    path = next(tmp_path.glob("data/*/imaging.nii.gz"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="expected a NIfTI volume, found a problem") as caught:
        list(get_source("kits").records(tmp_path))
    assert "\n" not in str(caught.value)


def test_images_keep_their_bytes_or_become_png(tmp_path):
    for name, kept in (("a.png", True), ("a.jpg", True), ("a.tif", False), ("a.bmp", False)):
        path = write_image(tmp_path / name)
        image = file_image(path, tmp_path)
        assert (image.data == path.read_bytes()) is kept and (image.width, image.height) == (40, 36)
        assert kept or image.data.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("Axial contrast-enhanced CT of the abdomen", "CT"),
        ("T2-weighted magnetic resonance image", "MRI"),
        ("Posteroanterior chest X-ray", "CXR"),
        ("Hematoxylin and eosin staining", "HIS"),
        ("An effective method", "RAD"),
    ],
)
def test_modality_words(text, modality):
    assert source_texts.modality_of(text) == modality


def test_report_sections_end_at_the_next_heading():
    text = (
        "HISTORY:  Cough.\n\nFINDINGS:\nClear.\n\nHeart: normal.\n\nIMPRESSION:\nNo disease.\n\nNOTIFICATION:  Mail."
    )
    assert source_texts.report_sections(text) == ("Clear. Heart: normal.", "No disease.")


def test_options_by_letter_or_words():
    options = ["Diffuse", "Focal"]
    assert source_texts.chosen_option(options, "B") == source_texts.chosen_option(options, " B: focal ") == 1
    assert source_texts.chosen_option(options, "None of them") == source_texts.chosen_option(options, "A: focal") == -1


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ([" A:Diffuse", " B:Focal", " C:", " D:None"], ["Diffuse", "Focal", "", "None"]),
        (["A. liver", "", "C. kidney"], ["liver", "", "kidney"]),
        (["E. coli", "H. pylori"], ["E. coli", "H. pylori"]),
        (["C. difficile", "B. fragilis"], ["C. difficile", "B. fragilis"]),
        (["A. baumannii", "Virus"], ["A. baumannii", "Virus"]),
        (["A. niger"], ["A. niger"]),
        (["Liver ", " Kidney"], ["Liver", "Kidney"]),
    ],
)
def test_letters_are_taken_off_choices_that_all_have_theirs(options, plain):
    assert source_texts.plain_options(options) == plain


@pytest.mark.parametrize(
    ("cells", "answer", "shown"),
    [
        (("", ""), "E. coli infection", "E. coli infection"),
        (("E. coli", "H. pylori"), "B", "B"),
        (("E. coli", "H. pylori"), "E. coli", "A"),
        (("C. difficile", "S. aureus"), "D. fragilis", "D. fragilis"),
        (("A: liver", "B: kidney"), "B: kidney", "B"),
        (("", "kidney"), "B", "A"),
    ],
)
def test_names_of_germs_stay_whole(tmp_path, cells, answer, shown):
    write_image(tmp_path / "1.png")
    row = {"image": "1.png", "question": "Which?", "answer": answer, "A": cells[0], "B": cells[1]}
    fixtures_texts.write_table(tmp_path / "vqa.csv", [row])
    record = next(get_source("vqa").records(tmp_path))
    assert record.message[1].value == shown
    for cell in cells if len(shown) == 1 else ():
        assert cell.removeprefix("A: ").removeprefix("B: ") in record.message[0].value


def test_the_letter_of_a_blank_choice_is_no_answer(tmp_path):
    write_image(tmp_path / "1.png")
    row = {"image": "1.png", "question": "Which?", "answer": "B", "A": "liver", "B": "", "C": "kidney"}
    fixtures_texts.write_table(tmp_path / "vqa.csv", [row])
    with pytest.raises(ValueError, match="expected one of the choices as answer, found 'B', a blank one"):
        list(get_source("vqa").records(tmp_path))


@pytest.mark.parametrize(
    "text", ['a,b\n1,"open\n2,x\n', 'a,b\n1,"open\n2,"x"\n', 'a\tb\n1\t"open\n2\tx\n', 'a,b\n1,"x" y\n']
)
def test_a_quotation_mark_that_is_not_closed_gets_one_line(tmp_path, text):
    path = tmp_path / ("t.tsv" if "\t" in text else "t.csv")
    path.write_text(text)
    with pytest.raises(
        ValueError, match="found a problem: line [23]: .*; there or before, a quotation mark may not be closed"
    ):
        list(tables.rows(path))


def test_tables_for_people_name_unverified_layouts():
    named = table_of_sources(named_only=True)
    assert {row["name"] for row in named if row["layout source"].startswith("layout unverified")} == {
        "gmai-vl",
        "vl-health",
    }
    text = markdown_table()
    assert text.count("\n") == len(named) + 2 and text.count("layout unverified") == 2


def test_the_manual_holds_the_table_of_the_cards(capsys):
    manual = (Path(__file__).parents[2] / "docs" / "unimed5m-sources.md").read_text(encoding="utf-8")
    start, end = "<!-- begin: unimedvl data sources --markdown -->\n", "<!-- end -->"
    assert manual.partition(start)[2].partition(end)[0] == markdown_table()
    assert main(["data", "sources", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown_table()


def test_fingerprint_follows_the_folder(tmp_path):
    fixtures_scans.kvasir_seg(tmp_path)
    source = get_source("kvasir-seg")
    before = source.fingerprint(tmp_path)
    assert before == source.fingerprint(tmp_path)
    (tmp_path / "Kvasir-SEG" / "more.txt").write_text("x")
    assert before != source.fingerprint(tmp_path)


def test_rows_name_images_below_their_folder_only(tmp_path):
    write_image(tmp_path / "in" / "a.png")
    write_image(tmp_path / "b.png")
    assert named_image(tmp_path / "in", "/a.png").path == "a.png"
    with pytest.raises(ValueError, match="found a name that leads out of it"):
        named_image(tmp_path / "in", "../b.png")
    with pytest.raises(ValueError, match="found no such file"):
        named_image(tmp_path / "in", str(tmp_path / "b.png"))
