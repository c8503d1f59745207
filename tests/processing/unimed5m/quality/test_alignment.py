"""Scores: arithmetic, ranking, exchanged texts, and the transformers-backed interfaces with models made here."""

import numpy
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from unimedvl.processing.unimed5m.quality.alignment import (
    AlignmentModels,
    Selection,
    auroc,
    caption_once,
    final_scores,
    normalise,
    select,
    shuffled_texts,
    text_similarity,
)
from unimedvl.processing.unimed5m.quality.encoders import (
    TransformersImageTextEncoder,
    TransformersTextEncoder,
    is_unverified,
)
from unimedvl.processing.unimed5m.quality.pictures import open_picture
from unimedvl.processing.unimed5m.quality.scorer import CompactScorer, RetrievalCaptioner
from unimedvl.processing.unimed5m.quality.separation import separation
from unimedvl.processing.unimed5m.quality.train_scorer import main as train_main
from unimedvl.processing.unimed5m.quality.train_scorer import read_pairs, train

from .toy_models import ColourCaptioner, ColourScorer, WordEncoder
from .toy_records import COLOURS, caption, drawn, record, write_shards


def test_auroc_counts_wins_and_half_ties():
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1], [2]) == 0.0
    assert auroc([1, 2], [1, 2]) == 0.5
    generator = numpy.random.default_rng(0)
    a, b = generator.integers(0, 9, 40), generator.integers(2, 11, 30)
    brute = numpy.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert auroc(a, b) == pytest.approx(brute)
    with pytest.raises(ValueError, match="at least one"):
        auroc([], [1])


def test_final_score_is_half_s_plus_m():
    s, m = numpy.array([-1.0, 0.0, 1.0]), numpy.array([1.0, 0.0, -0.5])
    assert final_scores(s, m)[2].tolist() == [1.0, 0.75, 0.75]
    assert normalise(s, "minmax").tolist() == [0.0, 0.5, 1.0]
    assert normalise(numpy.full(3, 0.2), "minmax").tolist() == [0.5] * 3


def test_an_image_is_captioned_once():
    class Counting(ColourCaptioner):
        seen = 0

        def caption(self, images, count):
            self.seen += len(images)
            return super().caption(images, count)

    red, blue = (open_picture(drawn(number, colour=name).data, "RGB") for number, name in enumerate(("red", "blue")))
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


@pytest.mark.parametrize("wrong", [{"scope": "page"}, {"keep": 0.0}, {"normalisation": "rank"}])
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


def tinted_samples(count, split="train"):
    names = list(COLOURS)
    return [
        record(number, drawn(number, colour=names[number % 4]), split=split, modality=("CT", "MRI")[number // 4 % 2],
               message=caption(f"A field tinted {names[number % 4]} all over, it is {names[number % 4]}."))
        for number in range(count)
    ]  # fmt: skip


def test_separation_of_models_that_know():
    models = AlignmentModels(ColourCaptioner(), WordEncoder(), ColourScorer())
    records = tinted_samples(40)
    images = [open_picture(entry.input_img[0].data, "RGB") for entry in records]
    samples = [
        {"sub_task_type": "caption", "modality": entry.modality, "dataset": "toy", "text": entry.message[1].value}
        for entry in records
    ]
    result = separation(models, samples, images)
    assert result["within"]["pairs"] == result["across"]["pairs"] == 40
    assert result["within"]["m"] == result["within"]["s_final (affine)"] == 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A scorer of the tints, trained and saved by the program."""
    folder = tmp_path_factory.mktemp("scorer")
    write_shards(folder / "records", tinted_samples(128))
    train_main([str(folder / "records"), str(folder / "scorer"), "--epochs", "8"])
    return folder / "scorer"


def test_scorer_learns_saves_and_scores_alone_as_in_company(trained):
    scorer = CompactScorer.load(trained)
    fresh = [open_picture(drawn(500 + number, colour=list(COLOURS)[number % 4]).data, "RGB") for number in range(16)]
    told = [f"A field tinted {name} all over, it is {name}." for name in COLOURS] * 4
    wrong = told[1:] + told[:1]
    true, false = scorer.similarity(fresh, told), scorer.similarity(fresh, wrong)
    assert auroc(true, false) > 0.9
    numpy.testing.assert_allclose(scorer.similarity(fresh[:1], told[:1]), true[:1], atol=1e-6)


def test_neighbours_caption_without_the_own_text(trained):
    captioner = RetrievalCaptioner.load(trained)
    new = open_picture(drawn(700, colour="green").data, "RGB")
    assert any("green" in text for text in captioner.caption([new], 5)[0])
    known = open_picture(drawn(0, colour="red").data, "RGB")
    captioner.texts = [f"{place} {text}" for place, text in enumerate(captioner.texts)]
    assert not any(text.startswith("0 ") for text in captioner.caption([known], 5)[0])


def test_training_is_repeatable(tmp_path):
    images, texts = read_pairs(write_shards(tmp_path, tinted_samples(64)), limit=48)
    assert len(texts) == 48
    first, second = (train(images, texts, epochs=1, batch=16) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="train_scorer"):
        CompactScorer.load(tmp_path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "query",
        ":",
        *"red green blue field tinted scan".split(),
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_text_encoder_gives_the_mean_of_real_tokens(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = TransformersTextEncoder(str(tmp_path), prefix="query: ")
    texts = ["a red field", "scan", "a green field tinted blue"]
    vectors = encoder.encode(texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer("query: " + text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        numpy.testing.assert_allclose(vector, (hidden / hidden.norm()).numpy(), atol=1e-5)


def test_image_text_encoder_runs_a_siglip(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 16}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(processor, tokenizer).save_pretrained(tmp_path)
    encoder = TransformersImageTextEncoder(str(tmp_path), max_length=16)
    images = [open_picture(drawn(number).data, "RGB") for number in range(3)]
    scores = encoder.similarity(images, ["a red field", "scan", "blue"])
    assert scores.shape == (3,) and (numpy.abs(scores) <= 1.0001).all()
    numpy.testing.assert_allclose(encoder.similarity(images[1:2], ["scan"]), scores[1:2], atol=1e-5)


@pytest.mark.parametrize("path", ["google/medgemma-27b-it", "/models/E5-large-v2", "google/medsiglip-448"])
def test_models_never_run_here_are_marked(path):
    assert is_unverified(path) and not is_unverified("all-MiniLM-L6-v2")
