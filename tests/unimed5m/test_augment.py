"""Records in a model's words: what is added, what stays, what is said about answers that do not fit."""

import json

import pyarrow.parquet as pq
import pytest

from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.commands.main import main
from unimedvl.unimed5m.augment import augment
from unimedvl.unimed5m.schema import Record, Turn, from_table
from unimedvl.unimed5m.shards import shard_paths

from .quality.toy_records import drawn, record, write_shards


class Obedient:
    """A writer that keeps to the form, whatever it is asked."""

    def write(self, prompt, images):
        if prompt.startswith("Rewrite"):
            return "In other words: " + prompt.splitlines()[-1]
        if prompt.startswith("Describe"):
            return "A field. It is smooth."
        kind = "CT" if " CT image" in prompt else "MRI"
        if prompt.startswith("Below"):
            return f"Please generate a realistic {kind} image showing a smooth field."
        return f"<think>I make it smooth.</think>\nHere is the generated {kind} image that displays:\n- a field"


def sharpened(asked, answered):
    """What makes a record one of super-resolution."""
    return {
        "sub_task_type": "super_resolution",
        "main_task_type": "multimodal_input_output",
        "output_img": (drawn(99),),
        "message": (Turn("human", asked), Turn("gpt", answered)),
    }


@pytest.fixture
def records(tmp_path):
    pair = sharpened("<image>\nSharpen it.", "Done.\n<image>")
    rows = [record(number, **(pair if number % 4 == 3 else {})) for number in range(8)]
    write_shards(tmp_path / "records", rows, shards=2)
    return tmp_path / "records", rows


def read(folder) -> list[Record]:
    return [entry for path in shard_paths(folder) for entry in from_table(pq.read_table(path))]


def test_plans_follow_their_captions_and_say_who_wrote_them(records, tmp_path):
    folder, rows = records
    counts = augment(folder, tmp_path / "out", Obedient(), "obedient")
    assert counts == {"read": 8, "planned": 6, "rewritten": 0, "failed": 0}
    found = read(tmp_path / "out")
    kept = [entry for entry in found if entry.sub_task_type != "planned_text_to_image"]
    assert kept == rows
    for place, entry in enumerate(found):
        entry.validate()
        if entry.sub_task_type == "planned_text_to_image":
            source = found[place - 1]
            assert entry.output_img == source.input_img and entry.group_id == source.group_id
            assert entry.synthetic and json.loads(entry.extra) == {"caption_of": source.id, "writer": "obedient"}
            assert "smooth field" in entry.message[0].value and "<think>I make it smooth.</think>" in entry.text()


def test_templated_sentences_are_rewritten_and_the_template_is_kept(records, tmp_path):
    folder, rows = records
    counts = augment(folder, tmp_path / "out", Obedient(), "obedient", ["rewrite"])
    assert counts == {"read": 8, "planned": 0, "rewritten": 2, "failed": 0}
    for old, new in zip(rows, read(tmp_path / "out"), strict=True):
        if old.sub_task_type == "super_resolution":
            assert new.message[0].value == "<image>\nIn other words: Sharpen it."
            assert new.synthetic
            assert json.loads(new.extra)["template"] == [turn.value for turn in old.message]
        else:
            assert new == old


def test_the_same_bytes_again_and_in_two_processes(records, tmp_path):
    from unimedvl.unimed5m.pipeline import LocalExecutor

    for name, executor in (("one", None), ("two", LocalExecutor(2))):
        augment(records[0], tmp_path / name, Obedient(), "obedient", ["plan", "rewrite"], None, executor)
    files = {name: {path.name: path.read_bytes() for path in shard_paths(tmp_path / name)} for name in ("one", "two")}
    assert files["one"] == files["two"]


def test_answers_that_do_not_fit_lose_no_record(records, tmp_path, capsys):
    """The nano describes no image at length: each of its answers is refused with a reason."""
    folder, rows = records
    command = [
        "data",
        "augment",
        str(folder),
        str(tmp_path / "out"),
        "--writer",
        str(NANO_DIRECTORY),
        "--trust-remote-code",
    ]
    assert main([*command, "--max-new-tokens", "4"]) == 0
    assert "8 records" in capsys.readouterr().out
    assert read(tmp_path / "out") == rows
    reasons = [
        json.loads(line)["reason"]
        for path in sorted((tmp_path / "out" / "rejected").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(reasons) == 6 and all("expected it to start with" in reason for reason in reasons)


class Careless(Obedient):
    """Keeps to the form except in one of its answers."""

    def __init__(self, *texts):
        self.texts = texts

    def write(self, prompt, images):
        answer = super().write(prompt, images)
        for old, new in zip(self.texts[::2], self.texts[1::2], strict=True):
            answer = answer.replace(old, new)
        return answer


@pytest.mark.parametrize(
    "texts", [("Here is the generated", "Sure!"), ("- a field", "a field"), ("a smooth field", "a <image> field")]
)
def test_plans_of_another_form_are_set_aside(records, tmp_path, texts):
    folder, rows = records
    counts = augment(folder, tmp_path / "out", Careless(*texts), "careless")
    assert (counts["planned"], counts["failed"]) == (0, 6)
    assert read(tmp_path / "out") == rows


def test_other_limits_ask_again(records, tmp_path):
    folder, _ = records
    short = augment(folder, tmp_path / "out", Careless("- a field", ""), "same", settings={"max_new_tokens": 4})
    again = augment(folder, tmp_path / "out", Obedient(), "same", settings={"max_new_tokens": 400})
    assert (short["failed"], again["failed"], again["planned"]) == (6, 0, 6)


def test_an_unknown_step_and_a_folder_with_other_files_are_refused(records, tmp_path):
    with pytest.raises(ValueError, match="expected some of plan, rewrite, found dream"):
        augment(records[0], tmp_path / "out", Obedient(), "obedient", ["dream"])
    with pytest.raises(ValueError, match="holds other files"):
        augment(records[0], tmp_path, Obedient(), "obedient")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<image>", "<image>"),
        ("a\n<image>", "In other words: a\n<image>"),
        ("<image>\nimage", "<image>\nIn other words: image"),
    ],
)
def test_rewriting_leaves_the_places_of_images(tmp_path, answer, expected):
    pair = sharpened("<image>\nSharpen it.", answer)
    write_shards(tmp_path / "records", [record(0, **pair)], shards=1)
    augment(tmp_path / "records", tmp_path / "out", Obedient(), "obedient", ["rewrite"])
    (made,) = read(tmp_path / "out")
    assert made.message[-1].value == expected


def test_a_sentence_around_an_image_is_set_aside(tmp_path):
    pair = sharpened("Take <image> and sharpen.", "Done.\n<image>")
    rows = [record(0, **pair)]
    write_shards(tmp_path / "records", rows, shards=1)
    counts = augment(tmp_path / "records", tmp_path / "out", Obedient(), "obedient", ["rewrite"])
    assert (counts["rewritten"], counts["failed"]) == (0, 1) and read(tmp_path / "out") == rows
