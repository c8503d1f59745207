"""Overlap of generated text with a reference: BLEU-1 to 4, ROUGE-1 and L, METEOR, CIDEr."""

import functools
import re
import shutil
from collections.abc import Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

SCORES = ("bleu", "rouge", "meteor", "cider")
BLEU_RULES = ("corpus", "sentence")
MAX_ORDER = 4


@functools.cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


@functools.cache
def _bleu(order: int) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, max_ngram_order=order, tokenize="13a", smooth_method="exp")


def rouge_scores(prediction: str, reference: str) -> dict[str, float]:
    """`rouge_1` and `rouge_l`, F1 in [0, 1] with stemming, of one text (Lin 2004; rouge_score)."""
    found = _rouge().score(reference, prediction)
    return {"rouge_1": found["rouge1"].fmeasure, "rouge_l": found["rougeL"].fmeasure}


def bleu_statistics(prediction: str, reference: str) -> list[int]:
    """Counts of one text that add up over a corpus: lengths, then matching and all n-grams of orders 1 to 4."""
    row: list[int] = _bleu(MAX_ORDER)._extract_corpus_statistics([prediction], [[reference]])[0]
    return row


def bleu_from_statistics(totals: Sequence[float]) -> dict[str, float]:
    """BLEU-1 to 4 in [0, 1] of summed `bleu_statistics`."""
    from sacrebleu.metrics import BLEU

    values = [int(value) for value in totals]
    said, wanted = values[:2]
    right, counts = values[2 : 2 + MAX_ORDER], values[2 + MAX_ORDER :]
    scores = {}
    for order in range(1, MAX_ORDER + 1):
        lists = right[:order], counts[:order]
        score = BLEU.compute_bleu(*lists, sys_len=said, ref_len=wanted, smooth_method="exp", max_ngram_order=order)
        scores[f"bleu_{order}"] = min(score.score / 100, 1.0)
    return scores


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-1 to 4 over a corpus (Papineni et al. 2002; sacrebleu), as `bleu_from_statistics` returns them.

    Args:
        predictions: generated texts, at least one.
        references: the true text of each.
    """
    rows = [bleu_statistics(*pair) for pair in zip(predictions, references, strict=True)]
    return bleu_from_statistics([sum(column) for column in zip(*rows, strict=True)])


def sentence_bleu(prediction: str, reference: str) -> dict[str, float]:
    """BLEU-1 to 4 of one text in [0, 1], by nltk with smoothing method 1 (Chen and Cherry 2014) over words divided by
    spaces; 0 where a text has no word."""
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

    said, wanted = prediction.split(), [reference.split()]
    if not said or not wanted[0]:
        return {f"bleu_{order}": 0.0 for order in range(1, MAX_ORDER + 1)}
    smooth = SmoothingFunction().method1
    return {
        f"bleu_{order}": float(nltk_bleu(wanted, said, [1 / order] * order, smooth))
        for order in range(1, MAX_ORDER + 1)
    }


def cider_words(text: str) -> str:
    """Lower-case words divided by spaces, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def cider_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """CIDEr-D of each text (Vedantam et al. 2015; pycocoevalcap); rare words of the references have more weight.

    Args:
        predictions: generated texts.
        references: the true text of each; one alone weights no word, which gives 0.

    Returns:
        One score in [0, 10] for each text.
    """
    from pycocoevalcap.cider.cider import Cider

    wanted = {index: [cider_words(text)] for index, text in enumerate(references)}
    said = {index: [cider_words(text)] for index, text in enumerate(predictions)}
    _, scores = Cider().compute_score(wanted, said)
    return [float(score) for score in scores]


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
    """METEOR 1.5 of each text in [0, 1] (Denkowski and Lavie 2014; pycocoevalcap's Java program).

    Raises:
        ValueError: if pycocoevalcap or Java is missing; the message says what to install.
    """
    if problem := meteor_problem():
        raise ValueError(problem)
    # The program reads fields divided by bars, and a text without any word ends its protocol.
    plain = [[re.sub(r"[|\s]+", " ", text).strip() or "." for text in texts] for texts in (predictions, references)]
    said, wanted = ({index: [text] for index, text in enumerate(texts)} for texts in plain)
    _, scores = _meteor().compute_score(wanted, said)
    return [float(score) for score in scores]


def report_text(
    predictions: Sequence[str],
    references: Sequence[str],
    scores: Sequence[str] = SCORES,
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

    Args:
        predictions: generated texts.
        references: true texts.
        scores: which of bleu, rouge, meteor, cider; all by default.
        bleu_rule: "corpus" or "sentence".

    Returns:
        `bleu_1` to `bleu_4`, `rouge_1`, `rouge_l`, `meteor` in [0, 1]; `cider` in [0, 10]; `count`.

    Raises:
        ValueError: without a text, for an unknown score or rule, or where METEOR cannot run.

    Source:
        Post 2018, "A Call for Clarity in Reporting BLEU Scores" (sacrebleu); Lin 2004, "ROUGE"; Denkowski and Lavie
        2014, "Meteor Universal"; Vedantam et al. 2015, "CIDEr" (https://github.com/salaniz/pycocoevalcap).
    """
    if not predictions:
        raise ValueError("there is nothing to score: pass at least one text.")
    if unknown := set(scores) - set(SCORES):
        raise ValueError(f"scores: choose among {', '.join(SCORES)}, not {', '.join(sorted(unknown))}.")
    if bleu_rule not in BLEU_RULES:
        raise ValueError(f"bleu_rule: choose one of {', '.join(BLEU_RULES)}, not {bleu_rule!r}.")
    pairs = list(zip(predictions, references, strict=True))
    result: dict[str, Any] = {"count": len(pairs)}
    if "bleu" in scores and bleu_rule == "corpus":
        result |= corpus_bleu(predictions, references)
    elif "bleu" in scores:
        result |= _means([sentence_bleu(*pair) for pair in pairs])
    if "rouge" in scores:
        result |= _means([rouge_scores(*pair) for pair in pairs])
    if "meteor" in scores:
        result["meteor"] = sum(meteor_scores(predictions, references)) / len(pairs)
    if "cider" in scores:
        result["cider"] = sum(cider_scores(predictions, references)) / len(pairs)
    return result


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
