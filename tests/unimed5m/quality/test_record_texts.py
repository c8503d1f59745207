"""What quality control compares of texts."""

import unicodedata

import pytest

from unimedvl.unimed5m.quality.record_texts import normalized_text


def normalized(text: str) -> str:
    return normalized_text([{"from": "gpt", "value": text}])


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("The lungs, clear.", "the  lungs clear", True),
        ("की", "का", False),
        ("ไม่", "ไม", False),
        ("Röntgen", unicodedata.normalize("NFD", "Röntgen"), True),
        ("a ___ film", "a film", False),
    ],
)
def test_f15_texts_read_the_same_by_letters_and_their_marks(first, second, same):
    assert (normalized(first) == normalized(second)) is same
