"""Numbers, plots and the page of a record folder."""

import json
import re

import pyarrow.parquet as parquet
import pytest
from PIL import Image

from tests.unimed5m.test_schema import VARIANTS, record
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.mini import MiniSource
from unimedvl.unimed5m.schema import Turn, to_table
from unimedvl.unimed5m.stats import count, describe, evenness


def test_the_numbers_add_up_and_the_page_has_ten_of_each_task(mini_folder, mini_records, tmp_path):
    build(MiniSource(), mini_folder, tmp_path / "out", shards=2)
    numbers, text = describe(tmp_path / "out")
    assert numbers["records"] == len(mini_records)
    for name in ("split", "sub_task_type", "modality", "dataset", "task and split", "task and modality"):
        assert sum(numbers[name].values()) == len(mini_records)
    assert numbers["groups in two splits"] == 0
    assert numbers["groups"]["train"] == len({item.group_id for item in mini_records if item.split == "train"})
    assert numbers["synthetic"]["true"] == numbers["sub_task_type"]["counterfactual"]
    assert "groups in two splits: 0" in text
    stats = tmp_path / "out" / "stats"
    assert (stats / ".gitignore").read_text() == "*\n"
    saved = json.loads((stats / "stats.json").read_text())
    assert saved == {name: value for name, value in numbers.items() if name != "files"}
    for name in ("tasks", "modalities", "sources"):
        with Image.open(stats / f"{name}.png") as plot:
            # Not an empty canvas.
            assert len(plot.convert("L").resize((60, 60)).getcolors()) > 10
    page = (stats / "samples.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<h2 id="(\w+)">(.*?)(?=<h2|</body>)', page, re.DOTALL))
    assert {task: section.count("<article>") for task, section in sections.items()} == {
        task: min(number, 10) for task, number in numbers["sub_task_type"].items()
    }
    assert page.count("data:image/") == page.count("<img")
    assert sections["counterfactual"].count('class="synthetic"') == sections["counterfactual"].count("<article>")


def test_the_same_seed_shows_the_same_records(tmp_path):
    parquet.write_table(to_table(VARIANTS), tmp_path / "a.parquet")
    records = [record(id=str(index)) for index in range(50)]
    parquet.write_table(to_table(records), tmp_path / "b.parquet")
    paths = [tmp_path / "b.parquet"]
    assert count(paths, 5, 3)[1] == count(paths, 5, 3)[1] != count(paths, 5, 4)[1]
    assert len(count(paths, 5, 3)[1]["vqa"]) == 5


def test_text_on_the_page_is_text(tmp_path):
    turns = (Turn("human", "<image>\n<script>alert(1)</script>"), Turn("gpt", "a & b"))
    parquet.write_table(to_table([record(id="1", message=turns), VARIANTS[2]]), tmp_path / "a.parquet")
    describe(tmp_path)
    page = (tmp_path / "stats" / "samples.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page and "a &amp; b" in page


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected Parquet shards"):
        describe(tmp_path)


@pytest.mark.parametrize("shares, value", [({"a": 5}, 0), ({"a": 2, "b": 2}, 1), ({"a": 3, "b": 1}, 0.8113)])
def test_evenness(shares, value):
    assert evenness(shares) == value
