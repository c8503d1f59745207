"""JSON files come back as they were written, and broken ones are one line."""

import pytest

from unimedvl.utils.json_files import read_json, write_json


def test_what_is_written_is_read(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ä": "猫"}}
    write_json(tmp_path / "new" / "a.json", value)
    assert read_json(tmp_path / "new" / "a.json") == value
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"') and "猫" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: get the whole checkpoint"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
    ],
)
def test_a_broken_file_is_one_line(content, message, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
