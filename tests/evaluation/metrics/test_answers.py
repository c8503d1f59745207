"""Accuracy of answers by its rules, and overlap of tokens against counts."""

import collections

import pytest

from unimedvl.evaluation.metrics import answers

from .drawn_sentences import sentences


@pytest.mark.parametrize("seed", range(3))
def test_token_overlap_equals_a_count(seed):
    for said, wanted in zip(sentences(seed), sentences(seed + 9), strict=True):
        recall, f1 = answers.token_overlap(said, wanted)
        words = [[word for word in line.split() if word.isalpha()] for line in (said, wanted)]
        # Articles go, but from texts that hold nothing else.
        clean = [[word for word in line if word not in ("a", "the")] or line for line in words]
        left = collections.Counter(clean[0])
        common = 0
        for word in clean[1]:
            if left[word] > 0:
                left[word], common = left[word] - 1, common + 1
        assert recall == pytest.approx(common / len(clean[1]) if clean[1] and common else float(clean[0] == clean[1]))
        total = len(clean[0]) + len(clean[1])
        assert f1 == pytest.approx(2 * common / total if common else float(total == 0))


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "rule", "right"),
    [
        ("Yes, there is.", "yes", "yes_no", "medevalkit", True),
        ("yes and no", "yes", "yes_no", "medevalkit", False),
        ("nothing normal", "no", "yes_no", "medevalkit", False),
        ("Yes, there is.", "yes", "yes_no", "vlmevalkit", False),
        ("是的", "是", "yes_no", "medevalkit", True),
        ("The Left lobe.", "left lobe", "open", "normalized", True),
        ("The Left lobe.", "left lobe", "open", "medevalkit", False),
        (" LEFT LOBE ", "left lobe", "open", "medevalkit", True),
        ("It is in the left lobe, I think", "left lobe", "open", "contains", True),
        ("pneumoniae", "pneumonia", "open", "contains", False),
        ("", "left", "open", "contains", False),
        ("B", "B", "multiple_choice", "medevalkit", True),
        ("(b)", "B", "multiple_choice", "medevalkit", True),
        ("The answer is C.", "C", "multiple_choice", "vlmevalkit", True),
        ("A fundus photograph", "C", "multiple_choice", "vlmevalkit", False),
        ("It shows a fundus photograph", "B", "multiple_choice", "medevalkit", True),
        ("A or B", "A", "multiple_choice", "vlmevalkit", False),
        ("A or B", "A", "multiple_choice", "medevalkit", True),
    ],
)
def test_rules_of_answers(answer, reference, kind, rule, right):
    options = ["CT scan", "Fundus photograph", "X-ray"] if kind == "multiple_choice" else None
    assert answers.is_right(answer, reference, kind, options, rule) is right


def test_answers_by_kind_add_up():
    found = answers.vqa_accuracy(
        predictions=["yes", "no", "left lung", "B"],
        references=["yes", "yes", "lung", "B"],
        options=[None, None, None, ["x", "y"]],
    )
    assert found["accuracy"] == 0.5 and found["accuracy_yes_no"] == 0.5 and found["accuracy_multiple_choice"] == 1
    assert found["open_exact"] == 0 and found["open_recall"] == 1 and found["open_f1"] == pytest.approx(2 / 3)


def test_wrong_calls_of_accuracy_get_one_line():
    with pytest.raises(ValueError, match="rule: choose"):
        answers.is_right("a", "a", "open", rule="judge")
    with pytest.raises(ValueError, match="kind: choose"):
        answers.is_right("a", "a", "opened")
    with pytest.raises(ValueError, match="options"):
        answers.is_right("a", "a", "multiple_choice")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  The LEFT   lobe. ", "left lobe"),
        ("A.", "a"),
        ("an", "an"),
        ("ｃｔ，scan", "ct scan"),
        ("anterior", "anterior"),
        ("", ""),
    ],
)
def test_normalized_answers(text, wanted):
    assert answers.normalized(text) == wanted == answers.normalized(wanted)
