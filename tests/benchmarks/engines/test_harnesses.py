"""The commands of evaluation harnesses give the answers and scores of `unimedvl eval`, sample by sample."""

import pytest

from benchmarks.engines import harnesses
from benchmarks.engines.environments import CHECKPOINT, python_of, run, variable_of
from benchmarks.engines.question_sets import CHOICES, OPEN_QUESTIONS, write_sets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harnesses").resolve()
    write_sets(folder)
    return folder


@pytest.fixture(scope="module")
def noisy(root):
    return harnesses.write_noisy(root / "noisy")


@pytest.mark.parametrize("harness", harnesses.ANSWERS)
@pytest.mark.parametrize("weights", ["nano", "noisy"])
def test_answers_and_scores_are_equal(harness, weights, root, noisy):
    python = python_of(harness)
    if python is None:
        pytest.skip(f"{harness} has an environment of its own: name its Python in {variable_of(harness)}")
    checkpoint = CHECKPOINT if weights == "nano" else noisy
    others, _ = harnesses.ANSWERS[harness](python, checkpoint, root)
    own = harnesses.own_answers(checkpoint, root)
    assert others == own
    figure = harnesses.compared(own, others)
    assert figure["samples"] == 2 * len(OPEN_QUESTIONS) + len(CHOICES)
    # Long texts that differ from question to question: equality says something.
    if weights == "noisy":
        assert figure["distinct answers"] > 0.9 * figure["samples"]
    else:
        assert 0 < figure["right answers"] < figure["samples"]


def test_two_processes_of_lmms_eval_share_the_questions(root):
    python = python_of("lmms-eval")
    if python is None:
        pytest.skip(f"lmms-eval has an environment of its own: name its Python in {variable_of('lmms-eval')}")
    others, done = harnesses.lmms_eval_answers(python, CHECKPOINT, root, processes=2)
    assert "--num_processes 2" in done.shown
    assert others == harnesses.own_answers(CHECKPOINT, root)


def test_lighteval_runs_no_code_of_a_checkpoint_unless_it_is_trusted(root, tmp_path):
    python = python_of("lighteval")
    if python is None:
        pytest.skip(f"lighteval has an environment of its own: name its Python in {variable_of('lighteval')}")
    words = ["-m", "lighteval", "custom", str(CHECKPOINT), str(harnesses.HARNESSES / "lighteval_model.py"), "vqa_rad"]
    words += ["--custom-tasks", str(harnesses.HARNESSES / "lighteval_tasks.py"), "--output-dir", str(tmp_path)]
    with pytest.raises(RuntimeError) as caught:
        run(python, words, root / "hub")
    # lighteval breaks lines.
    last = " ".join(str(caught.value).split()).rpartition("ValueError: ")[2]
    assert last.startswith("The code of the checkpoint") and "set UNIMEDVL_TRUST_REMOTE_CODE=1" in last


def test_differences_are_counted():
    own = {"vqa_rad": {"a": ("yes", 1.0), "b": ("no", 0.0)}}
    figure = harnesses.compared(own, {"vqa_rad": {"a": ("yes.", 1.0), "b": ("no", 1.0)}})
    assert (figure["samples"], figure["equal answers"], figure["equal accuracy"]) == (2, 1, 1)
    with pytest.raises(AssertionError, match="other questions"):
        harnesses.compared(own, {"vqa_rad": {"a": ("yes", 1.0)}})
