"""F12: tables and folders as other programs leave them are read rightly or set aside with their reasons."""

import codecs
import json

import pytest

from .builds import built, refusal
from .fixtures_files import write_image, write_json

pytestmark = pytest.mark.medium
ACCENTED = "Röntgenbild"


# F12: columns


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "image,caption,caption\na.png,A chest film.,other\n"),
        ("captions.csv", "image,caption, caption \na.png,A chest film.,other\n"),
        ("captions.csv", "image,caption,Caption\na.png,A chest film.,other\n"),
        ("captions.tsv", "image\tcaption\tcaption\na.png\tA chest film.\tother\n"),
        ("captions.json", '[{"image": "a.png", "caption": "A chest film.", "caption": "other"}]'),
        ("captions.jsonl", '{"image": "a.png", "caption": "A chest film.", "caption": "other"}\n'),
        ("captions.jsonl", '{"image": "a.png", "caption": "A chest film.", "CAPTION": "other"}\n'),
    ],
)
def test_f12_a_column_that_stands_twice_is_named(tmp_path, capsys, name, content):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / name).write_text(content)
    line = refusal("captions", tmp_path / "in", tmp_path / "out", capsys)
    assert "'caption'" in line and "twice" in line


def test_f12_columns_without_a_name_are_no_duplicates(tmp_path):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "captions.csv").write_text(",image,caption,,\n7,a.png,A chest film.,,\n")
    (first, *_), reasons = built("captions", tmp_path / "in", tmp_path / "out")
    assert not reasons and json.loads(first.extra)["columns"] == {"column 1": "7"}


@pytest.mark.parametrize(
    "header", ["Image,CAPTION", " image , caption ", "\ufeffimage,caption", "\ufeff Image,Caption\xa0"]
)
def test_f12_headers_in_any_case_with_spaces_or_a_mark(tmp_path, header):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "captions.csv").write_text(f"{header}\na.png,A chest film.\n", encoding="utf-8")
    records, reasons = built("captions", tmp_path / "in", tmp_path / "out")
    assert not reasons and records[0].message[-1].value == "A chest film."


def test_f12_choices_in_small_letters(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    rows = "1.png,Which organ?,b,liver,kidney\n1.png,Which group?,b,B,A\n"
    (tmp_path / "in" / "vqa.csv").write_text(f"Image,Question,Answer,a,b\n{rows}")
    (record, words), _ = built("vqa", tmp_path / "in", tmp_path / "out")
    assert "kidney" in record.message[0].value and record.message[1].value == "B"
    # A choice of that very text comes first.
    assert words.message[1].value == "A"


# F12: encodings

ENCODINGS = {
    "UTF-8": ("utf-8", b"", False),
    "UTF-8 with its mark": ("utf-8", codecs.BOM_UTF8, False),
    "UTF-16 little-endian": ("utf-16-le", codecs.BOM_UTF16_LE, False),
    "UTF-16 big-endian": ("utf-16-be", codecs.BOM_UTF16_BE, False),
    "UTF-32": ("utf-32-le", codecs.BOM_UTF32_LE, False),
    "cp1252": ("cp1252", b"", True),
    "gb18030": ("gb18030", b"", True),
    "UTF-16 without its mark": ("utf-16-le", b"", True),
}
TABLES = {
    "csv": f"image,caption\r\na.png,{ACCENTED}\r\n",
    "tsv": f"image\tcaption\na.png\t{ACCENTED}\n",
    "jsonl": json.dumps({"image": "a.png", "caption": ACCENTED}, ensure_ascii=False) + "\n",
    "json": json.dumps([{"image": "a.png", "caption": ACCENTED}], ensure_ascii=False),
}


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_f12_tables_in_other_encodings_are_read_or_refused_with_the_remedy(tmp_path, capsys, name, ending):
    encoding, mark, unmarked = ENCODINGS[name]
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / f"captions.{ending}").write_bytes(mark + TABLES[ending].encode(encoding))
    if unmarked:
        line = refusal("captions", tmp_path / "in", tmp_path / "none", capsys)
        assert "utf-8" in line.lower() and '"encoding": ' in line and f"captions.{ending}" in line
        write_json(tmp_path / "in" / "source.json", {"encoding": encoding})
    records, reasons = built("captions", tmp_path / "in", tmp_path / "out")
    assert not reasons and records[0].message[-1].value == ACCENTED


def test_f12_the_encoding_of_a_folder_is_checked_and_its_settings_may_have_a_mark(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "captions.csv").write_text("image,caption\na.png,A chest film.\n")
    (tmp_path / "in" / "source.json").write_bytes(codecs.BOM_UTF8 + b'{"encoding": "windows"}')
    line = refusal("captions", tmp_path / "in", tmp_path / "out", capsys)
    assert "encoding: expected an encoding that Python knows" in line


# F12: answers that are no text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("yes", "yes"),
        (3, "3"),
        (2.5, "2.5"),
        (0, "0"),
        (True, None),
        (False, None),
        (None, None),
        (["x", "y"], None),
        (["x"], None),
        ([], None),
        ({"text": "x"}, None),
        (float("nan"), None),
        ("", None),
        (" \n", None),
        ("<image>", None),
    ],
)
@pytest.mark.parametrize("source", ["vqa", "reasoning"])
def test_f12_answers_are_texts_or_numbers(tmp_path, source, answer, text):
    write_image(tmp_path / "in" / "a.png")
    row = {"image": "a.png", "question": "Which?", "reasoning": "So.", "id": "good", "answer": "fine"}
    (tmp_path / "in" / f"{source}.json").write_text(json.dumps([row, {**row, "id": "odd", "answer": answer}]))
    records, reasons = built(source, tmp_path / "in", tmp_path / "out")
    if text is None:
        assert len(records) == 1 and f"{source}.json: row 2: answer: expected a text" in reasons["odd"]
    else:
        assert not reasons and records[1].message[-1].value.endswith(text)


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("captions", {"image": ["a.png"]}, "image: expected a text"),
        ("captions", {"caption": None}, "caption: expected a text"),
        ("captions", {"caption": {"en": "x"}}, "caption: expected a text"),
        ("captions", {"caption": "<image> "}, "caption: expected a text"),
        ("captions", {"description": ["x"]}, "description: expected a text"),
        ("captions", {"group": ["p"]}, "group: expected a text or a number"),
        ("vqa", {"question": 5}, "question: expected a text"),
        ("vqa", {"B": ["x"]}, "B: expected a text or a number"),
        ("vqa", {"A": True}, "A: expected a text or a number"),
        ("labels", {"label": 3}, "label: expected a text"),
        ("reasoning", {"image": ["a.png"]}, "image: expected a text"),
        ("conversations", {"image": [3]}, "image: expected the name of a file, or a list of names"),
        ("conversations", {"image": {"path": "a.png"}}, "image: expected the name of a file, or a list of names"),
    ],
)
def test_f12_other_cells_that_are_no_text_are_set_aside(tmp_path, source, changes, words):
    write_image(tmp_path / "in" / "a.png")
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A chest film."}]
    row = {"image": "a.png", "conversations": turns, "id": "good"}
    row |= dict.fromkeys(("caption", "label", "question", "reasoning", "answer"), "A chest film.")
    write_json(tmp_path / "in" / f"{source}.json", [row, {**row, **changes, "id": 17}])
    records, reasons = built(source, tmp_path / "in", tmp_path / "out")
    assert records and f"{source}.json: row 2: {words}" in reasons["17"]
