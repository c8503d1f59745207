"""Text metrics equal independent implementations, on random and edge inputs."""

import collections
import math
import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from unimedvl.evaluation.metrics.report_text import report_text as text
from unimedvl.evaluation.metrics.vqa_accuracy import vqa_accuracy as vqa

WORDS = "the a lung lungs clear opacity left right lobe no pleural effusion is are , . heart size normal".split()


def sentences(seed: int, count: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_sacrebleu(seed):
    said, wanted = sentences(seed), sentences(seed + 100)
    found = text.corpus_bleu(said, wanted)
    for order in range(1, 5):
        metric = sacrebleu.BLEU(lowercase=True, max_ngram_order=order)
        assert found[f"bleu_{order}"] == pytest.approx(metric.corpus_score(said, [wanted]).score / 100, abs=1e-12)


def test_bleu_1_by_hand():
    """Three of four words are right and the brevity penalty is exp(1 - 5 / 4)."""
    found = text.corpus_bleu(["clear lungs left heart"], ["clear lungs left lobe normal"])
    assert found["bleu_1"] == pytest.approx(0.75 * math.exp(1 - 5 / 4), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_equals_rouge_score_and_a_longest_common_subsequence(seed):
    for said, wanted in zip(sentences(seed), sentences(seed + 100), strict=True):
        found = text.rouge_scores(said, wanted)
        other = RougeScorer(["rougeL"], use_stemmer=True).score(wanted, said)["rougeL"].fmeasure
        assert found["rouge_l"] == pytest.approx(other, abs=1e-12)
        # No word of the list has another stem than its plural.
        first, second = ([word.rstrip("s") for word in line.split() if word.isalpha()] for line in (said, wanted))
        assert found["rouge_l"] == pytest.approx(f_of_subsequence(first, second), abs=1e-12)


def f_of_subsequence(first: list[str], second: list[str]) -> float:
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for row, left in enumerate(first):
        for column, right in enumerate(second):
            better = max(lengths[row][column + 1], lengths[row + 1][column])
            lengths[row + 1][column + 1] = lengths[row][column] + 1 if left == right else better
    common = lengths[-1][-1]
    return 2 * common / (len(first) + len(second)) if common else 0.0


def test_sentence_bleu_is_nltks_first_smoothing():
    """Words 3 of 4, pairs 2 of 3, triples 1 of 2, no quadruple: 0.1 / 1."""
    found = text.sentence_bleu("clear lungs left heart", "clear lungs left lobe")
    wanted = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    assert found["bleu_4"] == pytest.approx(wanted, abs=1e-12)


def test_cider_by_hand():
    """Identical texts get 10; texts without a common word get 0."""
    said = ["clear lungs in this film", "pleural effusion on the left side"]
    assert text.cider_scores(said, said) == pytest.approx([10.0, 10.0])
    assert text.cider_scores(said, said[::-1]) == pytest.approx([0.0, 0.0])


@pytest.mark.slow
@pytest.mark.skipif(bool(text.meteor_problem()), reason=text.meteor_problem() or "here")
def test_meteor_knows_stems_and_order():
    same, stem, other, empty = text.meteor_scores(
        ["the lungs are clear", "the lung is clear", "a broken bone", ""],
        ["the lungs are clear", "the lungs are clear", "the lungs are clear", "the lungs are clear"],
    )
    assert same == pytest.approx(1.0) and 0 < stem < same and other < stem and empty == 0


def test_edge_texts():
    found = text.ReportText().compute(predictions=["", "x"], references=["", "x"], scores=["bleu", "rouge"])
    assert found["rouge_1"] == pytest.approx(0.5) and 0 <= found["bleu_1"] <= 1
    with pytest.raises(ValueError, match="choose among"):
        text.ReportText().compute(predictions=["x"], references=["x"], scores=["spice"])
    with pytest.raises(ValueError, match="at least one"):
        text.ReportText()._compute([], [])


@pytest.mark.parametrize("seed", range(3))
def test_token_overlap_equals_a_count(seed):
    for said, wanted in zip(sentences(seed), sentences(seed + 9), strict=True):
        recall, f1 = vqa.token_overlap(said, wanted)
        clean = [[w for w in line.split() if w.isalpha() and w not in ("a", "the")] for line in (said, wanted)]
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
        ("The Left lobe.", "left lobe", "open", "normalised", True),
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
    assert vqa.is_right(answer, reference, kind, options, rule) is right


def test_answers_by_kind_add_up():
    found = vqa.VQAAccuracy().compute(
        predictions=["yes", "no", "left lung", "B"],
        references=["yes", "yes", "lung", "B"],
        options=[None, None, None, ["x", "y"]],
    )
    assert found["accuracy"] == 0.5 and found["accuracy_yes_no"] == 0.5 and found["accuracy_multiple_choice"] == 1
    assert found["open_exact"] == 0 and found["open_recall"] == 1 and found["open_f1"] == pytest.approx(2 / 3)


def test_wrong_calls_of_accuracy_get_one_line():
    with pytest.raises(ValueError, match="rule: choose"):
        vqa.is_right("a", "a", "open", rule="judge")
    with pytest.raises(ValueError, match="kind: choose"):
        vqa.is_right("a", "a", "opened")
    with pytest.raises(ValueError, match="options"):
        vqa.is_right("a", "a", "multiple_choice")
