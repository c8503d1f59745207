"""F15: a benchmark in several languages reports overlap for all texts, METEOR for English alone, and says so."""

import pytest

from tests.training.record_folders import record
from unimedvl.evaluation.metrics import texts
from unimedvl.evaluation.predictions import Prediction
from unimedvl.evaluation.samples import sample_of
from unimedvl.evaluation.scoring import Settings, TaskScores


def result(answers: list[str], settings: Settings) -> dict:
    """What a benchmark reports of dialogues that are answered word by word."""
    scores = TaskScores("dialogue")
    for number, answer in enumerate(answers):
        sample = sample_of(record("dialogue", number, turns=[("human", "what is it?"), ("gpt", answer)]))
        scores.add(sample, Prediction(answer), settings)
    return scores.finish(settings, None)


def test_f15_texts_in_other_languages_are_scored_and_counted():
    found = result(["肺部有一个结节", "легкие чистые и прозрачные", "the lungs are clear"], Settings(meteor=False))
    values = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert found["unicode_words"] == 2 and "unicode_words" not in result(["clear"], Settings(meteor=False))
    for name in ("rouge_1", "rouge_l", "bleu_1", "bleu_4"):
        assert values[name] == pytest.approx(1.0), name
    assert values["cider"] == pytest.approx(10.0)


@pytest.mark.slow
@pytest.mark.skipif(bool(texts.meteor_problem()), reason=texts.meteor_problem() or "here")
def test_f15_meteor_is_that_of_the_english_texts():
    found = result(["肺部有一个结节", "the lungs are clear", ""], Settings())["metrics"]
    assert found["meteor"]["count"] == 2 and found["meteor"]["value"] == pytest.approx(0.5)
    none = result(["肺部有一个结节"], Settings())["metrics"]
    assert "meteor" not in none and none["rouge_l"]["value"] == 1
