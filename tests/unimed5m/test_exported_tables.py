"""F12 and F13: tables and conversations as other programs export them are read rightly or set aside with reasons."""

import codecs
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimedvl.commands.main import main
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.builders.image_names import image_name
from unimedvl.unimed5m.quality.control import quality_control
from unimedvl.unimed5m.schema import Record, from_table
from unimedvl.unimed5m.shards import batches, shard_paths

from .fixtures_files import write_image, write_json, write_lines, write_mask

pytestmark = pytest.mark.medium
ACCENTED = "Röntgenbild"


def built(source: str, folder: Path, output: Path) -> tuple[list[Record], dict[str, str]]:
    """Records and {id: reason} of the rejected."""
    build(get_source(source), folder, output, shards=1)
    lines = (output / "rejected" / "00000-of-00001.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert len(reasons) == len(lines) and all(reasons), "every rejected row has an id of its own"
    assert not any("\n" in reason for reason in reasons.values())
    return [entry for path in shard_paths(output) for table in batches(path) for entry in from_table(table)], reasons


def refusal(source: str, folder: Path, output: Path, capsys) -> str:
    """The one line that a build of the folder ends with."""
    assert main(["data", "build", "--source", source, str(folder), str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


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
    texts = dict.fromkeys(("caption", "report", "label", "question", "reasoning", "answer"), "A chest film.")
    write_json(tmp_path / "in" / f"{source}.json", [{**texts, "image": name, "conversations": GOOD} for name in names])
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


def test_f12_a_decomposed_folder_is_the_same_class(tmp_path):
    write_image(tmp_path / "in" / unicodedata.normalize("NFD", "Zöliakie") / "a.png")
    (record,), _ = built("image-folder", tmp_path / "in", tmp_path / "out")
    assert json.loads(record.extra)["label"] == "Zöliakie"


# F13: conversations

GOOD = [{"from": "human", "value": "<image>\nIs there a lesion?"}, {"from": "gpt", "value": "yes"}]


def turns(*pairs):
    return [{"from": role, "value": value} for role, value in pairs]


SET_ASIDE = {
    "an empty answer": (turns(("human", "q"), ("gpt", "")), "turn 2: value: expected a text of gpt, found none"),
    "an answer of spaces": (turns(("human", "q"), ("gpt", " \n")), "turn 2: value: expected a text of gpt"),
    "an empty answer in the middle": (
        turns(("human", "q"), ("gpt", ""), ("human", "r"), ("gpt", "b")),
        "turn 2: value: expected a text of gpt",
    ),
    "an empty question": (turns(("human", ""), ("gpt", "a")), "turn 1: value: expected a text of human"),
    "an image alone": (turns(("human", "<image>"), ("gpt", "a")), "turn 1: value: expected a text of human"),
    "an empty system turn": (turns(("system", ""), ("human", "q"), ("gpt", "a")), "turn 1: value: expected a text"),
    "an image of the system": (
        turns(("system", "<image> s"), ("human", "q"), ("gpt", "a")),
        "no image in a system turn",
    ),
    "an image of the answer": (turns(("human", "q"), ("gpt", "<image> a")), "<image> in gpt turns"),
    "too many images": (turns(("human", "<image><image> q"), ("gpt", "a")), "<image> in human turns"),
    "a last question": (
        turns(("human", "q"), ("gpt", "a"), ("human", "r")),
        "an answer at the end, found a turn of human",
    ),
    "answers only": (turns(("gpt", "a")), "expected a question, found no turn of human"),
    "a tool": (turns(("human", "q"), ("tool", "x"), ("gpt", "a")), "turn 2: from: expected human, user, gpt"),
    "no role": (turns((None, "q"), ("gpt", "a")), "turn 1: from: expected human"),
    "no text": (turns(("human", "q"), ("gpt", None)), "turn 2: value: expected a text, found NoneType"),
    "a number": (turns(("human", "q"), ("gpt", 3)), "turn 2: value: expected a text, found int"),
    "parts": (turns(("human", [{"type": "text"}]), ("gpt", "a")), "turn 1: value: expected a text, found list"),
    "another layout": ([{"role": "user", "content": "q"}], "turn 1: expected from and value, found role, content"),
    "a text for a turn": (["q", "a"], "turn 1: expected from and value, found str"),
    "no turns": ([], "conversations: expected a list of turns"),
    "an object": ({"from": "human"}, "conversations: expected a list of turns"),
    "nothing": (None, "conversations: expected a text"),
}


@pytest.mark.parametrize("name", SET_ASIDE)
def test_f13_conversations_that_cannot_be_learned_are_set_aside(tmp_path, name):
    conversation, words = SET_ASIDE[name]
    write_image(tmp_path / "in" / "a.png")
    rows = [{"id": "good", "image": "a.png", "conversations": GOOD}]
    rows.append({"id": "odd", "image": "a.png", "conversations": conversation})
    write_json(tmp_path / "in" / "conversations.json", rows)
    records, reasons = built("conversations", tmp_path / "in", tmp_path / "out")
    assert len(records) == 1 and list(reasons) == ["odd"] and words in reasons["odd"]


@pytest.mark.parametrize("name", ["human", "Human", "USER ", "user"])
def test_f13_roles_are_known_in_any_case(tmp_path, name):
    write_image(tmp_path / "in" / "a.png")
    rows = [{"image": "a.png", "conversations": turns((name, "q?"), ("Assistant", "oui"))}]
    write_json(tmp_path / "in" / "conversations.json", rows)
    (record,), _ = built("conversations", tmp_path / "in", tmp_path / "out")
    assert [turn.role for turn in record.message] == ["human", "gpt"]
    assert record.message[0].value == "<image>\nq?"


@pytest.mark.parametrize("first", [("system", "Answer in French."), ("gpt", "Hello.")])
def test_f13_a_turn_before_the_question_is_kept_and_the_image_stays_with_the_question(tmp_path, first):
    write_image(tmp_path / "in" / "a.png")
    rows = [{"image": "a.png", "conversations": turns(first, ("human", "q?"), ("gpt", "oui"))}]
    write_json(tmp_path / "in" / "conversations.json", rows)
    (record,), _ = built("conversations", tmp_path / "in", tmp_path / "out")
    found = [(turn.role, turn.value) for turn in record.message]
    assert found == [first, ("human", "<image>\nq?"), ("gpt", "oui")]


def test_f13_conversations_in_cells_of_csv(tmp_path):
    write_image(tmp_path / "in" / "a.png")
    cell = json.dumps(GOOD).replace('"', '""')
    (tmp_path / "in" / "conversations.csv").write_text(f'id,image,conversations\n1,a.png,"{cell}"\n2,a.png,[broken\n')
    (record,), reasons = built("conversations", tmp_path / "in", tmp_path / "out")
    assert record.message[1].value == "yes" and "row 2: conversations: expected a list of turns" in reasons["2"]
