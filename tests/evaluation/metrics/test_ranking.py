"""Scores that set two kinds apart, against counts of pairs and scipy."""

import numpy
import pytest
from scipy.stats import mannwhitneyu

from unimedvl.evaluation.metrics import ranking


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_auroc_is_the_share_of_right_orders(seed, scale):
    """Ties count half; scores of any size, not only probabilities, keep their order."""
    draw = numpy.random.default_rng(seed)
    truth = draw.integers(0, 2, 40)
    scores = draw.integers(0, 6, 40) / 5 * scale
    positive, negative = scores[truth == 1], scores[truth == 0]
    brute = numpy.mean([(x > y) + 0.5 * (x == y) for x in positive for y in negative])
    assert ranking.auroc(scores, truth) == pytest.approx(brute, abs=1e-6)
    wanted = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert ranking.reader_study(scores, truth)["auroc"] == pytest.approx(wanted, abs=1e-6)


def test_f1_by_count():
    draw = numpy.random.default_rng(0)
    truth, scores = draw.integers(0, 2, 40), draw.random(40)
    called = scores > 0.5
    hits = (called & (truth == 1)).sum()
    assert ranking.f1_score(scores, truth) == pytest.approx(2 * hits / (called.sum() + truth.sum()), abs=1e-6)
    found = ranking.counterfactual(scores, truth)
    assert found == {"f1": ranking.f1_score(scores, truth), "auroc": ranking.auroc(scores, truth), "count": 40}


def test_edge_scores():
    assert ranking.auroc([3, 4, 1, 2], [1, 1, 0, 0]) == 1 and ranking.auroc([1, 2], [1, 0]) == 0
    assert ranking.auroc([0.1, 0.9], [1, 1]) is None
    assert ranking.f1_score([0.1, 0.2], [0, 0]) == 0
    for wrong in ([], [float("nan"), 0.2]):
        with pytest.raises(ValueError):
            ranking.auroc(wrong, [0, 1][: len(wrong)])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        ranking.counterfactual([1.2, 0.1], [0, 1])
    with pytest.raises(ValueError, match="0 or 1"):
        ranking.auroc([0.3, 0.4], [1, 2])


def test_reader_study_by_hand():
    found = ranking.reader_study([5, 4, 2, 1, 3, 4], [1, 1, 1, 0, 0, 0])
    assert found["true_positive_rate"] == found["true_negative_rate"] == pytest.approx(2 / 3)
    assert found["roc"][0] == [0, 0] and found["roc"][-1] == [1, 1]
    area = numpy.trapezoid([y for _, y in found["roc"]], [x for x, _ in found["roc"]])
    assert area == pytest.approx(found["auroc"])
    with pytest.raises(ValueError, match="one kind only"):
        ranking.reader_study([1, 2], [1, 1])
