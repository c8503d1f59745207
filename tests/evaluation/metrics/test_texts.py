"""Overlap of texts equals independent implementations, on random and edge inputs."""

import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from unimedvl.evaluation.metrics import texts

from .drawn_sentences import sentences


@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_sacrebleu(seed):
    said, wanted = sentences(seed), sentences(seed + 100)
    found = texts.corpus_bleu(said, wanted)
    for order in range(1, 5):
        metric = sacrebleu.BLEU(lowercase=True, max_ngram_order=order)
        assert found[f"bleu_{order}"] == pytest.approx(metric.corpus_score(said, [wanted]).score / 100, abs=1e-12)


def test_bleu_1_by_hand():
    """Three of four words are right and the brevity penalty is exp(1 - 5 / 4)."""
    found = texts.corpus_bleu(["clear lungs left heart"], ["clear lungs left lobe normal"])
    assert found["bleu_1"] == pytest.approx(0.75 * math.exp(1 - 5 / 4), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_equals_rouge_score_and_a_longest_common_subsequence(seed):
    for said, wanted in zip(sentences(seed), sentences(seed + 100), strict=True):
        found = texts.rouge_scores(said, wanted)
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
    found = texts.sentence_bleu("clear lungs left heart", "clear lungs left lobe")
    wanted = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    assert found["bleu_4"] == pytest.approx(wanted, abs=1e-12)


def test_cider_by_hand():
    """Identical texts get 10; texts without a common word get 0."""
    said = ["clear lungs in this film", "pleural effusion on the left side"]
    assert texts.cider_scores(said, said) == pytest.approx([10.0, 10.0])
    assert texts.cider_scores(said, said[::-1]) == pytest.approx([0.0, 0.0])


@pytest.mark.slow
@pytest.mark.skipif(bool(texts.meteor_problem()), reason=texts.meteor_problem() or "here")
def test_meteor_knows_stems_and_order():
    same, stem, other, *empty = texts.meteor_scores(
        ["the lungs are clear", "the lung is clear", "a broken bone", "", "", "clear"],
        ["the lungs are clear", "the lungs are clear", "the lungs are clear", "the lungs are clear", " ", ""],
    )
    assert same == pytest.approx(1.0) and 0 < stem < same and other < stem and empty == [0, 0, 0]


def test_edge_texts():
    found = texts.report_text(predictions=["", "x"], references=["", "x"], scores=["bleu", "rouge"])
    assert found["rouge_1"] == pytest.approx(0.5) and 0 <= found["bleu_1"] <= 1
    with pytest.raises(ValueError, match="choose among"):
        texts.report_text(predictions=["x"], references=["x"], scores=["spice"])
    with pytest.raises(ValueError, match="at least one"):
        texts.report_text([], [])
