"""F15: texts in any language score as their words agree or are refused by name; English scores as libraries say."""

import random

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer

from unimedvl.evaluation.metrics import answers, clinical_models, texts, words

from .drawn_sentences import sentences

ALPHABETS = {
    "Chinese": "肺部有一个结节未见异常心影大小正常",
    "Japanese": "胸部に結節があります。カルテー",
    "Korean": "폐에 결절이 있습니다 ",
    "Russian": "легкие чистые без ",
    "Greek": "οι πνεύμονες είναι καθαροί",
    "Arabic": "لا يوجد آفات في الرئة ",
    "Hebrew": "אין ממצאים בריאות ",
    "Hindi": "फेफड़े साफ हैं ",
    "Thai": "ปอดปกติไม่มีน้ำ",
    "Armenian": "թոքերը մաքուր են ",
    "Vietnamese": "ở đó ",
}
# What English reports write beside ASCII.
SYMBOLS = ["5 μm", "TCRαβ", "β-lactam", "cm²", "37 ℃", "Sjögren", "–", "“clear”", "1½", "±", "patient’s"]
ALL_ORDERS = {f"bleu_{order}": 1.0 for order in range(1, 5)}
NO_ENGLISH = ["α", "½", "Ménière", "μm", "тест", "CT 正常", "normal chest film with 结节", "οξύ chest film", "ở đó"]
any_script = st.sampled_from(sorted(ALPHABETS)).flatmap(
    lambda name: st.text(st.sampled_from(ALPHABETS[name] + "AB 1"), min_size=1, max_size=30)
)
whole_texts = st.text(max_size=40)


@given(any_script)
@settings(max_examples=300, deadline=None)
def test_f15_identical_texts_score_the_most_or_are_refused_by_name(text):
    said = words.words(text)
    if not said or words.reads_as_english(text):
        return
    assert texts.rouge_scores(text, text) == {"rouge_1": 1.0, "rouge_l": 1.0}
    assert texts.corpus_bleu([text], [text]) == pytest.approx(ALL_ORDERS)
    assert texts.sentence_bleu(text, text) == pytest.approx(ALL_ORDERS)
    # One of two texts, so that its words have weight.
    score = texts.cider_scores([text, "x y z"], [text, "x y z"])[0]
    assert score == pytest.approx(2.5 * min(len(said), 4))
    assert answers.token_overlap(text, text) == (1.0, 1.0)
    with pytest.raises(ValueError, match="METEOR scores English only, and 1 of 1 texts"):
        texts.meteor_scores([text], [text])
    found = texts.report_text([text], [text])
    assert found["rouge_l"] == 1 and found["bleu_4"] == pytest.approx(1) and found["unicode_words"] == 1
    assert set(found["left_out"]) == {"meteor", "cider"} and not {"meteor", "cider"} & set(found)


@given(whole_texts, whole_texts)
@settings(max_examples=300, deadline=None)
def test_f15_no_text_ends_a_score(said, wanted):
    for first, second in ((said, wanted), (said, ""), ("", wanted), ("。", said), (" ", wanted)):
        scores = {
            **texts.rouge_scores(first, second),
            **texts.corpus_bleu([first], [second]),
            "cider": texts.cider_scores([first], [second])[0] / 10,
            **dict(zip(("recall", "f1"), answers.token_overlap(first, second), strict=True)),
        }
        assert all(0 <= value <= 1 for value in scores.values())
        assert all(0 <= value <= 1 for value in texts.sentence_bleu(first, second).values())


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_f15_a_text_is_its_own_best_match_where_it_has_words(text):
    """Whatever the script: never a silent 0 for identical texts."""
    if any(character.isalnum() for character in text):
        assert texts.rouge_scores(text, text)["rouge_1"] == 1.0
        assert texts.corpus_bleu([text], [text])["bleu_1"] == pytest.approx(1.0)


english = st.lists(
    st.sampled_from([*"the lungs are clear . no effusions seen , 5 mm X-ray it's A_B".split(), *SYMBOLS, "\n"]),
    max_size=12,
).map(" ".join)


@given(
    st.one_of(st.text(st.characters(max_codepoint=127), max_size=60), english),
    st.one_of(st.text(st.characters(max_codepoint=127), max_size=60), english),
)
@settings(max_examples=300, deadline=None)
def test_f15_english_scores_as_the_libraries_say_to_the_last_bit(said, wanted):
    if not words.reads_as_english(said, wanted):
        # A text of little else than symbols.
        return
    found = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(wanted, said)
    assert texts.rouge_scores(said, wanted) == {
        "rouge_1": found["rouge1"].fmeasure,
        "rouge_l": found["rougeL"].fmeasure,
    }
    ours = texts.corpus_bleu([said], [wanted])
    for order in range(1, 5):
        theirs = sacrebleu.BLEU(lowercase=True, max_ngram_order=order).corpus_score([said], [[wanted]]).score / 100
        assert ours[f"bleu_{order}"] == min(theirs, 1.0)


def test_f15_english_with_symbols_reads_as_english():
    report = "The 5 μm section of the β-catenin stain in Sjögren syndrome shows TCRαβ cells of 2 cm² at 37 ℃ – “clear”"
    assert words.reads_as_english(report) and words.reads_as_english("", "...") and words.reads_as_english("cm²")
    assert not any(map(words.reads_as_english, NO_ENGLISH))


@pytest.mark.parametrize("seed", range(2))
def test_f15_cider_of_english_is_pycocoevalcaps(seed):
    said, wanted = sentences(seed), sentences(seed + 50)
    plain = [[" ".join(w for w in line.split() if w.isalpha()) for line in side] for side in (wanted, said)]
    other = Cider().compute_score(*({i: [line] for i, line in enumerate(side)} for side in plain))[1]
    assert texts.cider_scores(said, wanted) == pytest.approx(list(other), abs=0)


@pytest.mark.parametrize(
    ("said", "wanted", "rouge_1", "rouge_l"),
    [
        ("肺部有结节", "肺部无结节", 0.8, 0.8),
        ("结节在肺部", "肺部有结节", 0.8, 0.4),
        ("легкие чистые", "легкие темные", 0.5, 0.5),
        ("CT 正常", "CT 异常", 2 / 3, 2 / 3),
        ("ปอดปกติ", "ปอดบวม", 0.5, 0.5),
        ("फेफड़े साफ", "फेफड़े साफा", 0.5, 0.5),
        ("normal lungs", "легкие чистые", 0.0, 0.0),
        ("The lungs, 正常。", "lung 正常", 6 / 7, 6 / 7),
    ],
)
def test_f15_rouge_by_hand(said, wanted, rouge_1, rouge_l):
    """F1 of shared words: characters of Chinese, characters of Thai with their marks, stems of English."""
    assert texts.rouge_scores(said, wanted) == pytest.approx({"rouge_1": rouge_1, "rouge_l": rouge_l})


def test_f15_bleu_of_chinese_is_sacrebleus_zh_and_of_russian_its_intl():
    draw = random.Random(0)
    for name, tokenizer in (("Chinese", "zh"), ("Russian", "intl")):
        said, wanted = (
            ["".join(draw.choices(ALPHABETS[name], k=12)) + "结节。" * (tokenizer == "zh") for _ in range(20)]
            for _ in range(2)
        )
        ours = texts.corpus_bleu(said, wanted)
        for order in range(1, 5):
            metric = sacrebleu.BLEU(lowercase=True, max_ngram_order=order, tokenize=tokenizer)
            assert ours[f"bleu_{order}"] == pytest.approx(metric.corpus_score(said, [wanted]).score / 100, abs=1e-12)


def test_f15_composed_and_decomposed_letters_are_one():
    import unicodedata

    text = "Bệnh nhân có tổn thương ở phổi"
    other = unicodedata.normalize("NFD", text)
    assert texts.rouge_scores(text, other)["rouge_l"] == 1.0
    assert texts.corpus_bleu([text], [other])["bleu_4"] == pytest.approx(1.0)
    assert answers.is_right(other, text, "open")


def test_f15_a_result_states_the_languages_and_english_stays_as_it_was():
    found = texts.report_text(["clear", "легкие чистые"], ["clear", "легкие чистые"])
    assert found["unicode_words"] == 1 and "METEOR" in found["left_out"]["meteor"] and found["cider"] > 0
    assert set(texts.report_text(["clear"], ["clear"], scores=["rouge"])) == {"count", "rouge_1", "rouge_l"}
    with pytest.raises(ValueError, match="METEOR scores English only"):
        texts.report_text(["结节"], ["结节"], scores=["meteor"])


def test_f15_clinical_scores_of_other_languages_are_refused_by_name():
    with pytest.raises(ValueError, match="radgraph scores English only, and 1 of 2 texts"):
        clinical_models.clinical_text(["clear", "结节"], ["clear", "结节"], {"radgraph": "anywhere"})


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "rule", "right"),
    [
        ("это правда", "да", "open", "contains", False),
        ("да, есть", "да", "open", "contains", True),
        ("胸部CT检查", "CT", "open", "contains", True),
        ("左肺有结节", "结节", "open", "contains", True),
        ("نعم؟", "نعم", "open", "normalized", True),
        ("「肺炎」です", "肺炎です", "open", "normalized", True),
        ("胸部 CT 检查", "胸部CT检查", "open", "normalized", True),
        ("два  слова", "двас лова", "open", "normalized", False),
        ("निमोनिया।", "निमोनिया", "open", "normalized", True),
        ("की", "का", "open", "normalized", False),
        ("选Ｂ。", "B", "multiple_choice", "medevalkit", True),
        ("The patient’s left lobe", "left lobe", "open", "contains", True),
    ],
)
def test_f15_answers_in_any_script(answer, reference, kind, rule, right):
    options = ["CT", "MRI", "X"] if kind == "multiple_choice" else None
    assert answers.is_right(answer, reference, kind, options, rule) is right


def test_f15_overlap_of_answers_counts_characters_and_words():
    assert answers.token_overlap("左肺结节", "右肺结节") == (0.75, 0.75)
    assert answers.token_overlap("की", "का") == (0.0, 0.0)
    assert answers.token_overlap("левое легкое", "легкое") == (1.0, pytest.approx(2 / 3))
