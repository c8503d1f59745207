"""Overlap of generated text with a reference: BLEU-1 to 4, ROUGE-1 and L, METEOR, CIDEr.

Pairs that read as English (`words.reads_as_english`) get the libraries' own figures to the last bit. All others get
the same formulas over Unicode's words; METEOR refuses them.
"""

import functools
import re
import shutil
from collections.abc import Sequence
from typing import Any

from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize, tokenizers
from rouge_score.rouge_scorer import RougeScorer

from .words import is_chinese, reads_as_english, spaced, words

SCORES = ("bleu", "rouge", "meteor", "cider")
BLEU_RULES = ("corpus", "sentence")
MAX_ORDER = 4


class _AnyLanguage(tokenizers.Tokenizer):
    """`words`, of which those in ASCII are stemmed as rouge_score stems them."""

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        return [
            part
            for word in words(text)
            for part in (tokenize.tokenize(word, self._stemmer) if word.isascii() else [word])
        ]


@functools.cache
def _rouge(english: bool) -> RougeScorer:
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True, tokenizer=None if english else _AnyLanguage())


@functools.cache
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, max_ngram_order=MAX_ORDER, tokenize=tokenizer, smooth_method="exp")


def _bleu_pair(prediction: str, reference: str) -> tuple[Any, str, str]:
    """sacrebleu's scorer for the language of a pair, and the texts that it reads."""
    if reads_as_english(prediction, reference):
        return _bleu("13a"), prediction, reference
    if is_chinese(prediction, reference):
        return _bleu("zh"), prediction, reference
    return _bleu("intl"), spaced(prediction), spaced(reference)


def rouge_scores(prediction: str, reference: str) -> dict[str, float]:
    """`rouge_1` and `rouge_l`, F1 in [0, 1] with stemming, of one text (Lin 2004; rouge_score).

    Texts that do not read as English are compared by `words`, of which those in ASCII are stemmed. A text without a
    word scores 0, against another one as well.
    """
    found = _rouge(reads_as_english(prediction, reference)).score(reference, prediction)
    return {"rouge_1": found["rouge1"].fmeasure, "rouge_l": found["rougeL"].fmeasure}


def bleu_statistics(prediction: str, reference: str) -> list[int]:
    """Counts of one text that add up over a corpus: lengths, matching and all n-grams of orders 1 to 4, and 1 where
    the pair does not read as English.
    """
    scorer, *pair = _bleu_pair(prediction, reference)
    row: list[int] = scorer._extract_corpus_statistics(pair[:1], [pair[1:]])[0]
    return [*row, int(not reads_as_english(prediction, reference))]


def bleu_from_statistics(totals: Sequence[float]) -> dict[str, float]:
    """BLEU-1 to 4 in [0, 1] of summed `bleu_statistics`.

    An order that no text is long enough for is 0 in English, as sacrebleu has it by default, and is left out of the
    mean (sacrebleu's effective order) of other texts.
    """
    from sacrebleu.metrics import BLEU

    values = [int(value) for value in totals]
    said, wanted = values[:2]
    right, counts = values[2 : 2 + MAX_ORDER], values[2 + MAX_ORDER : 2 + 2 * MAX_ORDER]
    scores = {}
    for order in range(1, MAX_ORDER + 1):
        score = BLEU.compute_bleu(
            right[:order],
            counts[:order],
            sys_len=said,
            ref_len=wanted,
            smooth_method="exp",
            max_ngram_order=order,
            effective_order=values[-1] > 0,
        )
        scores[f"bleu_{order}"] = min(score.score / 100, 1.0)
    return scores


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-1 to 4 over a corpus (Papineni et al. 2002; sacrebleu), as `bleu_from_statistics` returns them.

    Each pair is divided by sacrebleu's tokenizer for its language (see `report_text`). Punctuation marks count as
    words; 0 where all texts of a side are empty.

    Args:
        predictions: generated texts, at least one.
        references: the true text of each.
    """
    rows = [bleu_statistics(*pair) for pair in zip(predictions, references, strict=True)]
    return bleu_from_statistics([sum(column) for column in zip(*rows, strict=True)])


def sentence_bleu(prediction: str, reference: str) -> dict[str, float]:
    """BLEU-1 to 4 of one text in [0, 1], by nltk with smoothing method 1 (Chen and Cherry 2014) over words divided by
    spaces; 0 where a text has no word.

    Pairs that do not read as English are divided as `corpus_bleu` divides them, and orders beyond the prediction's
    length are left out of the mean.
    """
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

    english = reads_as_english(prediction, reference)
    if not english:
        scorer, *pair = _bleu_pair(prediction, reference)
        prediction, reference = (scorer.tokenizer(text) for text in pair)
    said, wanted = prediction.split(), [reference.split()]
    if not said or not wanted[0]:
        return {f"bleu_{order}": 0.0 for order in range(1, MAX_ORDER + 1)}
    smooth, scores = SmoothingFunction().method1, {}
    for order in range(1, MAX_ORDER + 1):
        used = order if english else min(order, len(said))
        scores[f"bleu_{order}"] = float(nltk_bleu(wanted, said, [1 / used] * used, smooth))
    return scores


def cider_words(prediction: str, reference: str) -> tuple[str, str]:
    """The two texts of a pair as lower-case words divided by spaces, without punctuation."""
    if reads_as_english(prediction, reference):
        said, wanted = (re.findall(r"\w+", text.lower()) for text in (prediction, reference))
    else:
        said, wanted = words(prediction), words(reference)
    return " ".join(said), " ".join(wanted)


def cider_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """CIDEr-D of each text (Vedantam et al. 2015; pycocoevalcap); rare words of the references have more weight.

    Args:
        predictions: generated texts.
        references: the true text of each; one alone weights no word, which gives 0, and a word that all of them have
            counts nothing.

    Returns:
        One score in [0, 10] for each text; 10 takes four words, and a text without a word has 0.
    """
    from pycocoevalcap.cider.cider import Cider

    pairs = [cider_words(*pair) for pair in zip(predictions, references, strict=True)]
    if not any(wanted for _, wanted in pairs):
        # pycocoevalcap looks for the longest of no n-grams.
        return [0.0] * len(pairs)
    wanted = {index: [pair[1]] for index, pair in enumerate(pairs)}
    said = {index: [pair[0]] for index, pair in enumerate(pairs)}
    _, scores = Cider().compute_score(wanted, said)
    return [float(score) for score in scores]


def english_only(name: str, predictions: Sequence[str], references: Sequence[str]) -> str:
    """Why a score that knows the words of English only refuses some texts, or an empty text."""
    others = sum(not reads_as_english(*pair) for pair in zip(predictions, references, strict=True))
    if not others:
        return ""
    return (
        f"{name} scores English only, and {others} of {len(predictions)} texts are in other languages: leave it out."
    )


def meteor_problem() -> str:
    """Why METEOR cannot run here, or an empty text."""
    import importlib.util

    if importlib.util.find_spec("pycocoevalcap") is None:
        return "METEOR needs pycocoevalcap: pip install 'unimedvl[eval]'."
    if shutil.which("java") is None:
        return "METEOR 1.5 is a Java program: install a Java runtime of version 8 or later."
    return ""


@functools.cache
def _meteor() -> Any:
    """The program takes ten seconds to start, so one serves the whole process, whose end closes it."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def meteor_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """METEOR 1.5 of each text in [0, 1] (Denkowski and Lavie 2014; pycocoevalcap's Java program); 0 for an empty text.

    Raises:
        ValueError: if a text does not read as English, or if pycocoevalcap or Java is missing; the message says what
            to install.
    """
    if problem := english_only("METEOR", predictions, references) or meteor_problem():
        raise ValueError(problem)
    # The program reads fields divided by bars, and a text without any word ends its protocol.
    plain = [[re.sub(r"[|\s]+", " ", text).strip() or "." for text in texts] for texts in (predictions, references)]
    said, wanted = ({index: [text] for index, text in enumerate(texts)} for texts in plain)
    _, scores = _meteor().compute_score(wanted, said)
    empty = [not all(map(str.strip, pair)) for pair in zip(predictions, references, strict=True)]
    return [0.0 if nothing else float(score) for score, nothing in zip(scores, empty, strict=True)]


def report_text(
    predictions: Sequence[str],
    references: Sequence[str],
    scores: Sequence[str] | None = None,
    bleu_rule: str = "corpus",
) -> dict[str, Any]:
    """Overlap of generated captions, reports and explanations with a reference text: BLEU, ROUGE, METEOR, CIDEr.

    * bleu_1 to bleu_4: sacrebleu, whole corpus, 13a tokens, lower case, exponential smoothing (rule "corpus"); or the
      mean over texts of nltk's sentence BLEU over words divided by spaces, smoothing method 1 (rule "sentence", the
      one of the code that the authors of UniMedVL published with a later project).
    * rouge_1, rouge_l: mean F1 of rouge_score with stemming.
    * meteor: METEOR 1.5 through pycocoevalcap, which needs Java.
    * cider: what pycocoevalcap calls CIDEr over lower-case words, which is CIDEr-D: counts are clipped to the
      reference's, and other lengths lose by a Gaussian penalty; it needs several references to weight words, and is 0
      for one pair.

    Languages: a pair of texts reads as English if its letters are Latin, Greek symbols aside, and at least half of its
    words are ASCII; its figures are those of the libraries, to the last bit. All other pairs (Chinese, Japanese,
    Russian, Arabic, Greek, Hindi, Thai, Vietnamese, ...) are counted in `unicode_words` and differ as follows:

    * BLEU divides Chinese by sacrebleu's tokenizer zh, all others by its tokenizer intl, for which every character of
      Japanese, Thai, Lao, Khmer and Burmese is a word. An order of n-grams that no text is long enough for is left
      out of the mean (effective order), where English has 0.
    * ROUGE and CIDEr take runs of Unicode's letters, marks and digits as words, and every character of Chinese and of
      the languages just named.
    * METEOR scores English only: it is left out by default, and an error where it is asked for.
    * CIDEr of a single pair is left out by default.

    Texts without a word score 0 in ROUGE and CIDEr, against each other as well; in BLEU and METEOR punctuation marks
    count as words, and empty texts score 0.

    Args:
        predictions: generated texts.
        references: true texts.
        scores: which of bleu, rouge, meteor, cider; by default all that know the language of the texts.
        bleu_rule: "corpus" or "sentence".

    Returns:
        `bleu_1` to `bleu_4`, `rouge_1`, `rouge_l`, `meteor` in [0, 1]; `cider` in [0, 10]; `count`. Where not all
        texts read as English also `unicode_words`, how many do not, and `left_out`, {score: why it is missing}.

    Raises:
        ValueError: without a text, for an unknown score or rule, or where METEOR cannot run or is asked to score texts
            in other languages than English.

    Source:
        Post 2018, "A Call for Clarity in Reporting BLEU Scores" (sacrebleu); Lin 2004, "ROUGE"; Denkowski and Lavie
        2014, "Meteor Universal"; Vedantam et al. 2015, "CIDEr" (https://github.com/salaniz/pycocoevalcap).
    """
    if not predictions:
        raise ValueError("there is nothing to score: pass at least one text.")
    if unknown := set(scores or ()) - set(SCORES):
        raise ValueError(f"scores: choose among {', '.join(SCORES)}, not {', '.join(sorted(unknown))}.")
    if bleu_rule not in BLEU_RULES:
        raise ValueError(f"bleu_rule: choose one of {', '.join(BLEU_RULES)}, not {bleu_rule!r}.")
    pairs = list(zip(predictions, references, strict=True))
    result: dict[str, Any] = {"count": len(pairs)}
    others = sum(not reads_as_english(*pair) for pair in pairs)
    left_out: dict[str, str] = {}
    if others:
        result["unicode_words"] = others
    if others and scores is None:
        left_out["meteor"] = english_only("METEOR", predictions, references)
        if len(pairs) == 1:
            left_out["cider"] = "CIDEr weights words by several references, and there is one."
        result["left_out"] = left_out
    chosen = [name for name in (SCORES if scores is None else scores) if name not in left_out]
    if "bleu" in chosen and bleu_rule == "corpus":
        result |= corpus_bleu(predictions, references)
    elif "bleu" in chosen:
        result |= _means([sentence_bleu(*pair) for pair in pairs])
    if "rouge" in chosen:
        result |= _means([rouge_scores(*pair) for pair in pairs])
    if "meteor" in chosen:
        result["meteor"] = sum(meteor_scores(predictions, references)) / len(pairs)
    if "cider" in chosen:
        result["cider"] = sum(cider_scores(predictions, references)) / len(pairs)
    return result


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
