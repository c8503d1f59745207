"""Scores: arithmetic, ranking, exchanged texts, what they distinguish, and the scorer that is trained here."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy
import pytest
import torch

from unimedvl.evaluation.metrics.ranking import auroc
from unimedvl.unimed5m.quality.alignment import (
    AlignmentModels,
    Selection,
    caption_once,
    final_scores,
    normalize,
    select,
    shuffled_texts,
    text_similarity,
)
from unimedvl.unimed5m.quality.record_texts import stated_facts
from unimedvl.unimed5m.quality.scorer import CompactScorer, RetrievalCaptioner
from unimedvl.unimed5m.quality.separation import read_samples, separation
from unimedvl.unimed5m.quality.train_scorer import main as train_main
from unimedvl.unimed5m.quality.train_scorer import read_pairs, train
from unimedvl.unimed5m.task_images import open_stored_image

from .toy_models import ColorCaptioner, ColorScorer, WordEncoder
from .toy_records import COLORS, caption, drawn, record, write_shards

pytestmark = pytest.mark.medium


def test_final_score_is_half_s_plus_m():
    s, m = numpy.array([-1.0, 0.0, 1.0]), numpy.array([1.0, 0.0, -0.5])
    assert final_scores(s, m)[2].tolist() == [1.0, 0.75, 0.75]
    assert normalize(s, "minmax").tolist() == [0.0, 0.5, 1.0]
    assert normalize(numpy.full(3, 0.2), "minmax").tolist() == [0.5] * 3


def test_an_image_is_captioned_once():
    class Counting(ColorCaptioner):
        seen = 0

        def caption(self, images, count):
            self.seen += len(images)
            return super().caption(images, count)

    red, blue = (open_stored_image(drawn(number, color=name).data) for number, name in enumerate(("red", "blue")))
    captioner = Counting()
    captions = caption_once(captioner, [red, blue, red, red], 2)
    assert captioner.seen == 2
    assert [entry[0].split()[3] for entry in captions] == ["red", "blue", "red", "red"]


def test_s_is_the_best_caption():
    value = text_similarity(WordEncoder(), ["red field"], [["blue field", "red field", "nothing"]])
    assert value[0] == pytest.approx(1.0, abs=1e-4)


def rows(scores, split="train", **changes):
    return [
        {"id": f"{number:02d}", "modality": "CT", "dataset": "a", "split": split, "s": score, "m": score, **changes}
        for number, score in enumerate(scores)
    ]


def test_selection_keeps_the_upper_half_of_each_scope():
    data = rows([0.1, 0.2, 0.3, 0.4, 0.5]) + rows([-0.9, -0.8], modality="MRI", dataset="b")
    kept = [result["keep"] for result in select(data, Selection(scope="modality"))]
    assert kept == [False, False, True, True, True, False, True]
    kept = [result["keep"] for result in select(data, Selection(scope="global"))]
    assert kept == [False, True, True, True, True, False, False]


def test_ties_are_broken_by_id_and_nulls_stay():
    data = rows([0.5, 0.5, 0.5, 0.5]) + rows([None])
    result = select(data, Selection(scope="global"))
    assert [entry["keep"] for entry in result] == [True, True, False, False, True]
    assert result[4]["s_final"] is None


@pytest.mark.parametrize("wrong", [{"scope": "page"}, {"keep": 0.0}, {"normalization": "rank"}])
def test_selection_refuses_what_it_does_not_know(wrong):
    with pytest.raises(ValueError, match="expected"):
        Selection(**wrong)


def test_exchanged_texts_differ_and_stay_in_their_block():
    texts = ["a", "b", "b", "c", "only", "only"]
    blocks = [1, 1, 1, 1, 2, 2]
    others = shuffled_texts(texts, blocks)
    assert others[4:] == [None, None]
    assert all(other in "abc" and other != text for text, other in zip(texts[:4], others[:4], strict=True))
    assert shuffled_texts(texts, blocks) == others


def test_exchanged_texts_state_other_facts():
    texts = ["no tumor", "without tumor", "a tumor", "tumor seen"]
    facts = ["none", "none", "tumor", "tumor"]
    for seed in range(5):
        others = shuffled_texts(texts, [1] * 4, seed, facts)
        assert all(facts[texts.index(other)] != fact for other, fact in zip(others, facts, strict=True))
    assert shuffled_texts(texts[:2], [1] * 2, 0, facts[:2]) == [None, None]


def test_facts_are_what_the_source_states():
    said = {"label": "pneumonia", "plane": "PA", "source_id": "1"}
    one, other = (
        record(number, extra=json.dumps({**said, "source_id": str(number)}), message=caption(text)).to_row()
        for number, text in enumerate(("Pneumonia, PA.", "A PA view labeled pneumonia."))
    )
    assert stated_facts(one) == stated_facts(other)
    assert stated_facts(one) != stated_facts({**one, "extra": json.dumps({**said, "label": "no finding"})})
    assert stated_facts({**one, "sub_task_type": "report"}) != stated_facts({**other, "sub_task_type": "report"})
    asked = json.dumps({**said, "official_split": "test"})
    assert stated_facts({**one, "extra": asked}) != stated_facts({**other, "extra": asked})


def tinted_samples(count, split="train"):
    names = list(COLORS)
    return [
        record(number, drawn(number, color=names[number % 4]), split=split, modality=("CT", "MRI")[number // 4 % 2],
               message=caption(f"A field tinted {names[number % 4]} all over, it is {names[number % 4]}."))
        for number in range(count)
    ]  # fmt: skip


def test_separation_of_models_that_know(tmp_path):
    models = AlignmentModels(ColorCaptioner(), WordEncoder(), ColorScorer())
    samples, images = read_samples(write_shards(tmp_path, tinted_samples(40)), "train")
    result = separation(models, samples, images)
    assert (result["records"], result["images"]) == (40, 40)
    assert result["within"]["pairs"] == result["across"]["pairs"] == 40
    assert result["within"]["overall"]["m"] == result["within"]["overall"]["s_final"] == [1.0, 1.0, 1.0]
    assert {name: figures["pairs"] for name, figures in result["within"]["modalities"].items()} == {
        "CT": 20,
        "MRI": 20,
    }
    assert result["other_facts"] == {"pairs": 0}, "nothing is stated in `extra`"


def test_separation_of_a_model_that_guesses_has_a_wide_interval_around_a_half(tmp_path):
    class Guess(ColorScorer):
        def similarity(self, images, texts):
            return numpy.array([zlib.crc32(f"{place} {text}".encode()) / 2**32 for place, text in enumerate(texts)])

    models = AlignmentModels(ColorCaptioner(), WordEncoder(), Guess())
    samples, images = read_samples(write_shards(tmp_path, tinted_samples(60)), "train")
    value, low, high = separation(models, samples, images)["within"]["overall"]["m"]
    assert low < 0.5 < high and low < value < high and high - low > 0.1


def test_records_of_one_group_have_no_interval(tmp_path):
    models = AlignmentModels(ColorCaptioner(), WordEncoder(), ColorScorer())
    samples, images = read_samples(write_shards(tmp_path, tinted_samples(40)), "train")
    for sample in samples:
        sample["group"] = ("toy", "one patient")
        sample["text"] = sample["text"].replace("red", "blue")
    value, low, high = separation(models, samples, images)["within"]["overall"]["m"]
    assert 0.0 < value < 1.0 and low is None and high is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A scorer of the tints, trained and saved by the program."""
    folder = tmp_path_factory.mktemp("scorer")
    write_shards(folder / "records", tinted_samples(96))
    train_main(folder / "records", folder / "scorer", epochs=16)
    return folder / "scorer"


def test_scorer_learns_saves_and_scores_alone_as_in_company(trained):
    scorer = CompactScorer.load(trained)
    fresh = [open_stored_image(drawn(500 + number, color=list(COLORS)[number % 4]).data) for number in range(16)]
    told = [f"A field tinted {name} all over, it is {name}." for name in COLORS] * 4
    wrong = told[1:] + told[:1]
    true, false = scorer.similarity(fresh, told), scorer.similarity(fresh, wrong)
    assert auroc([*true, *false], [1] * len(true) + [0] * len(false)) > 0.9
    numpy.testing.assert_allclose(scorer.similarity(fresh[:1], told[:1]), true[:1], atol=1e-6)


def test_neighbors_caption_without_the_own_text(trained):
    captioner = RetrievalCaptioner.load(trained)
    new = open_stored_image(drawn(700, color="green").data)
    assert any("green" in text for text in captioner.caption([new], 5)[0])
    known = open_stored_image(drawn(0, color="red").data)
    captioner.texts = [f"{place} {text}" for place, text in enumerate(captioner.texts)]
    assert not any(text.startswith("0 ") for text in captioner.caption([known], 5)[0])


def test_training_is_repeatable(tmp_path):
    pairs = read_pairs(write_shards(tmp_path, tinted_samples(64)), limit=48)
    assert len(pairs.texts) == len(pairs.images) == 48
    first, second = (train(pairs, epochs=1, batch=16) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_image_of_several_records_is_one_pair_with_its_caption_first(tmp_path):
    image = drawn(1)
    records = [
        record(1, image, sub_task_type="vqa", message=caption("Yes, it is.")),
        record(2, image, message=caption("A smooth field.")),
        record(3, drawn(2), split="validation"),
        record(4, image, sub_task_type="segmentation"),
    ]
    pairs = read_pairs(write_shards(tmp_path, records, shards=1))
    assert pairs.texts == [["A smooth field.", "Describe it. Yes, it is."]] and pairs.sources == ["toy"]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="train_scorer"):
        CompactScorer.load(tmp_path)


def test_a_captioners_own_code_runs_only_if_asked(tmp_path):
    nano = Path(__file__).parents[3] / "hub_cards" / "unimedvl-nano"
    command = [sys.executable, "-m", "unimedvl.unimed5m.quality.separation", str(tmp_path)]
    command += ["--text-encoder", "unread", "--scorer", "unread", "--captioner", str(nano)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == 2 and "trust_remote_code" in done.stderr and "Traceback" not in done.stderr
