"""F13: conversations of other programs are kept as they are, or set aside with their reasons and ids."""

import json

import pytest

from .builds import built
from .fixtures_files import write_image, write_json

pytestmark = pytest.mark.medium
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
    "nothing to see": (turns(("human", "q"), ("gpt", "\u200b\u200e ")), "message[1].value: expected a text of gpt"),
    "no turns": ([], "conversations: expected a list of turns"),
    "an object": ({"from": "human"}, "conversations: expected a list of turns"),
    "nothing": (None, "conversations: expected a text"),
}


@pytest.mark.parametrize("name", SET_ASIDE)
def test_f13_conversations_that_cannot_be_trained_on_are_set_aside(tmp_path, name):
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
