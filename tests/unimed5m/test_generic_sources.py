"""The generic sources on the command line, with the mistakes that people make: one line each, and nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unimedvl.commands.main import main

from .fixtures_files import save_volume, write_image
from .fixtures_generic import LAYOUTS

pytestmark = pytest.mark.medium


def built(name: str, folder: Path, output: Path, capsys) -> tuple[int, list[str], dict, list[str]]:
    """Exit code, lines of the error, summary and reasons of a build on the command line."""
    code = main(["data", "build", "--source", name, str(folder), str(output), "--shards", "2", "--json"])
    printed = capsys.readouterr()
    summary = json.loads(printed.out) if code == 0 else {}
    paths = sorted(output.glob("rejected/*.jsonl"))
    reasons = [json.loads(line)["reason"] for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return code, printed.err.splitlines(), summary, reasons


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_becomes_records(name, tmp_path, capsys):
    counts = LAYOUTS[name](tmp_path / "in")
    code, errors, summary, reasons = built(name, tmp_path / "in", tmp_path / "out", capsys)
    assert (code, errors, reasons) == (0, [], [])
    assert summary["kept"] == sum(counts.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_gets_one_line(name, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    code, errors, _, _ = built(name, tmp_path / "in", tmp_path / "out", capsys)
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith(f"unimedvl: {name}: expected ") and errors[0].endswith("found nothing.")


def rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


REFUSED = {
    "labels": [
        (
            rewrite("labels.csv", "file,label\na.png,x\n"),
            "labels.csv: expected the columns image, label, found file, label.",
        ),
        (rewrite("labels.csv", "image;label\na.png;x\n"), "found image;label, which one other character divides"),
        (rewrite("labels.csv", "image,label\n"), "labels: expected rows in labels.csv in"),
        (rewrite("labels.csv", ""), "labels: expected rows in labels.csv in"),
        (rewrite("labels.csv", "image,label\n../a.png,x\n"), "found a name that leads out of it."),
        (rewrite("labels.csv", "image,label,split\nimages/a.png,x,trian\n"), "row 1: split: expected one of test, "),
        (rewrite("labels.csv", "image,label,modality\nimages/a.png,x,XRAY\n"), "row 1: modality: expected one of CFP"),
        (
            rewrite("labels.csv", "image,label,split,group\nimages/a.png,x,train,p\nimages/b.png,x,test,p\n"),
            "are in both train and test: a patient or slide must be on one side.",
        ),
        (
            lambda folder: (folder / "labels.csv").write_bytes(b"image,label\na,m\xfcde\n"),
            "expected text in utf-8, found the byte 0xfc in line 2",
        ),
    ],
    "captions": [
        (rewrite("captions.jsonl", '{"image": "1.png", "caption": "x"}\n{oops\n'), "a jsonl table, found a pro")
    ],
    "reports": [(rewrite("reports.json", '{"a": 3}'), "expected rows with named columns, found int.")],
    "vqa": [(rewrite("vqa.tsv", "image\tquestion\tanswer\n1.png\tq\t\n"), "vqa.tsv: row 1: answer: expected a text")],
    "reasoning": [
        (rewrite("reasoning.jsonl", '{"question": "q"}\n'), "expected the columns question, reasoning, answer")
    ],
    "conversations": [
        (
            rewrite("conversations.json", '[{"image": "1.png", "conversations": [{"from": "human", "value": "q"}]}]'),
            "conversations.json: row 1: conversations: expected an answer at the end, found a turn of human.",
        )
    ],
    "segmentation-pairs": [
        (rewrite("source.json", '{"classes": {"cyst": [9]}}'), "images/a.jpg holds nothing to make a record of."),
        (
            rewrite("source.json", '{"classes": {"cyst": 3}}'),
            "classes: expected structures with lists of whole numbers",
        ),
        (lambda folder: shutil.rmtree(folder / "masks"), "expected the mask masks/a.* for images/a, found none."),
    ],
    "paired-images": [
        (lambda folder: shutil.rmtree(folder / "target"), "expected target in"),
        (rewrite("source.json", '{"window": [40, 400]}'), "window in the settings is for dicom-series and nifti-vol"),
    ],
    "dicom-series": [
        (rewrite("source.json", "[]"), "source.json: expected a JSON object, found list."),
        (rewrite("source.json", '{"window": 5}'), "window: expected center and width, two numbers, found 5."),
        (rewrite("source.json", '{"license": ""}'), "license: expected a text, found ''."),
        (rewrite("source.json", '{"modality": "XRAY"}'), "expected a modality of CFP, "),
    ],
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in REFUSED.items() for case in range(len(cases))]
)
def test_a_mistake_in_the_whole_folder_gets_one_line(name, case, tmp_path, capsys):
    change, words = REFUSED[name][case]
    LAYOUTS[name](tmp_path / "in")
    change(tmp_path / "in")
    code, errors, _, _ = built(name, tmp_path / "in", tmp_path / "out", capsys)
    assert code == 2 and len(errors) == 1 and words in errors[0], errors


def damaged(name: str, content: bytes = b"no image") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


SET_ASIDE = {
    "image-folder": [(damaged("test/polyp/1.png"), "test/polyp/1.png: expected an image")],
    "labels": [
        (damaged("images/a.png", b""), "images/a.png: expected an image"),
        (lambda folder: (folder / "images/a.png").unlink(), "images/a.png: expected an image, found no such file."),
        (
            rewrite("labels.csv", "image,label\nimages/a.png,\nimages/b.png,x\n"),
            "labels.csv: row 1: label: expected a text, found ''.",
        ),
    ],
    "captions": [
        (
            rewrite("captions.jsonl", '{"image": "1.png", "caption": "A cyst."}\n{"image": "1.png", "caption": 5}\n'),
            "captions.jsonl: row 2: caption: expected a text, found 5.",
        )
    ],
    "reasoning": [(damaged("1.png"), "1.png: expected an image")],
    "segmentation-pairs": [
        (damaged("masks/a.png"), "masks/a.png: expected a mask image"),
        (lambda folder: (folder / "masks/a.png").unlink(), "expected the mask masks/a.* for images/a, found none."),
        (lambda folder: (folder / "images/a.jpg").unlink(), "images/a.png: expected an image, found no such file."),
        (lambda folder: write_image(folder / "masks/a.png", size=(5, 5)), "expected a mask of 36x40 like its image"),
    ],
    "paired-images": [
        (lambda folder: (folder / "target/1.png").unlink(), "target/1.png: expected an image, found no such file."),
        (lambda folder: (folder / "input/1.png").unlink(), "input/1.png: expected an image, found no such file."),
        (lambda folder: write_image(folder / "target/1.png", size=(5, 5)), "a pair of one shape, found 40x36 and 5x5"),
    ],
    "dicom-series": [(damaged("series1/0.dcm"), "series1/0.dcm: expected an image")],
    "nifti-volumes": [
        (damaged("images/a.nii.gz"), "images/a.nii.gz: expected a NIfTI volume"),
        (
            lambda folder: save_volume(folder / "labels/a.nii.gz", np.zeros((3, 3, 3), np.uint8)),
            "labels/a.nii.gz: expected the shape (4, 20, 24), found (3, 3, 3).",
        ),
        (
            lambda folder: save_volume(folder / "images/b.nii.gz", np.zeros((24, 20, 4), np.uint8)),
            "images/b.nii.gz holds nothing to make a record of.",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in SET_ASIDE.items() for case in range(len(cases))]
)
def test_a_mistake_in_one_sample_is_set_aside_with_its_reason(name, case, tmp_path, capsys):
    change, words = SET_ASIDE[name][case]
    LAYOUTS[name](tmp_path / "in")
    change(tmp_path / "in")
    code, errors, summary, reasons = built(name, tmp_path / "in", tmp_path / "out", capsys)
    assert (code, errors) == (0, [])
    assert len(reasons) == 1 and words in reasons[0] and "\n" not in reasons[0], reasons
    assert str(tmp_path) not in reasons[0]
    assert summary["read"] == summary["kept"] + summary["rejected"] and summary["rejected"] == 1 <= summary["kept"]


def test_the_command_says_where_the_reasons_are(tmp_path, capsys):
    LAYOUTS["reasoning"](tmp_path / "in")
    (tmp_path / "in" / "1.png").unlink()
    assert main(["data", "build", "--source", "reasoning", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert f"reasons of the rejected: {tmp_path}/out/rejected/*.jsonl" in capsys.readouterr().out
