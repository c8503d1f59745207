"""Accuracy of answers to questions about images, by stated and named rules."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import regex

from .words import reads_as_english, unspaced, words

KINDS = ("yes_no", "multiple_choice", "closed", "open")
RULES = ("normalized", "contains", "medevalkit", "vlmevalkit")
YES_NO_WORDS = {"yes": frozenset({"yes", "是", "是的", "有"}), "no": frozenset({"no", "不", "不是", "没有", "否"})}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "，。？！、；：（）", " "))
_ANY_PUNCTUATION = regex.compile(r"\p{P}")
# As Chinese and Japanese keyboards type them.
_WIDE_LETTERS = {0xFEE0 + ord(letter): letter for letter in string.ascii_letters}


def normalized(text: str) -> str:
    """An answer for comparison: Unicode folded (NFKC), lower case, without punctuation, articles and repeated spaces.

    A text of articles only, as the option A, keeps them. Punctuation is that of ASCII and Chinese; in a text that does
    not read as English (`words.reads_as_english`) it is that of all scripts, and spaces beside characters of Chinese
    and the like are left out as well.
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    text = folded.translate(_PUNCTUATION)
    text = text if reads_as_english(folded) else unspaced(_ANY_PUNCTUATION.sub(" ", text).strip())
    return " ".join(_ARTICLES.sub(" ", text).split()) or " ".join(text.split())


def tokens(text: str) -> list[str]:
    """Words of a normalized text, and single characters of languages without spaces, such as Chinese (`words`)."""
    return words(normalized(text))


def kind_of(reference: str, options: Sequence[str] | None = None) -> str:
    """The kind of a question that states none: multiple_choice with options, yes_no by its answer, else open."""
    if options:
        return "multiple_choice"
    words = normalized(reference)
    return "yes_no" if any(words in answers for answers in YES_NO_WORDS.values()) else "open"


def read_yes_no(answer: str) -> str | None:
    """The one of "yes" and "no" that an answer holds, None if it holds none or both."""
    said = tokens(answer)
    joined = "".join(said)
    found = set()
    for verdict, spellings in YES_NO_WORDS.items():
        for word in spellings:
            if word.isascii() and word in said:
                found.add(verdict)
            elif not word.isascii() and joined == word:
                found.add(verdict)
    return found.pop() if len(found) == 1 else None


def read_choice(answer: str, options: Sequence[str], rule: str = "medevalkit") -> str | None:
    """The letter that an answer chooses, None if it chooses none clearly."""
    letters, answer = string.ascii_uppercase[: len(options)], answer.translate(_WIDE_LETTERS)
    alone = [letter for letter in re.findall(r"(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9])", answer) if letter in letters]
    # "A" also opens sentences: it only counts where it is written like a letter of a list.
    if alone and alone[0] == "A" and re.match(r"\s*A (?!or\b|and\b)[a-z]", answer):
        alone = alone[1:]
    named = [
        letter
        for letter, option in zip(letters, options, strict=True)
        if _holds(normalized(answer), normalized(option))
    ]
    if rule == "vlmevalkit":
        if len(set(alone)) == 1:
            return alone[0]
        return named[0] if len(named) == 1 else None
    if alone:
        return alone[0]
    bare = answer.strip().strip("().").upper()
    if len(bare) == 1 and bare in letters:
        return bare
    return named[0] if len(named) == 1 else None


def _holds(text: str, phrase: str) -> bool:
    if not phrase:
        return not text
    if phrase.isascii() and reads_as_english(text):
        return f" {phrase} " in f" {text} "
    said, wanted = words(text), words(phrase)
    if not wanted:
        return phrase in text
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def is_right(
    answer: str, reference: str, kind: str, options: Sequence[str] | None = None, rule: str = "normalized"
) -> bool:
    """Whether an answer counts as right by a rule.

    Args:
        answer: the text of the model.
        reference: the right answer; for multiple_choice its letter.
        kind: one of `KINDS`.
        options: texts of the options, for multiple_choice.
        rule: one of `RULES`, which `vqa_accuracy` explains.

    Raises:
        ValueError: for an unknown rule or kind, or a multiple-choice question without options.
    """
    if rule not in RULES:
        raise ValueError(f"rule: choose one of {', '.join(RULES)}, not {rule!r}.")
    if kind not in KINDS:
        raise ValueError(f"kind: choose one of {', '.join(KINDS)}, not {kind!r}.")
    if kind == "multiple_choice":
        if not options:
            raise ValueError("a multiple-choice question needs the texts of its options.")
        return read_choice(answer, options, rule) == reference.strip().upper()
    plain = answer.strip().lower() == reference.strip().lower()
    if rule == "vlmevalkit":
        return plain
    if kind == "yes_no":
        return read_yes_no(answer) == read_yes_no(reference) is not None
    if rule == "medevalkit":
        return plain
    said, wanted = normalized(answer), normalized(reference)
    return _holds(said, wanted) if rule == "contains" else said == wanted


def token_overlap(answer: str, reference: str) -> tuple[float, float]:
    """Recall and F1 of the reference's tokens in the answer, counted with repetition.

    Args:
        answer: the text of the model.
        reference: the right answer.

    Returns:
        Recall and F1, each in [0, 1]; both 1 where both texts are empty after normalization.
    """
    said, wanted = Counter(tokens(answer)), Counter(tokens(reference))
    common = sum((said & wanted).values())
    if not said and not wanted:
        return 1.0, 1.0
    if not common:
        return 0.0, 0.0
    recall, precision = common / sum(wanted.values()), common / sum(said.values())
    return recall, 2 * precision * recall / (precision + recall)


def score_answer(
    answer: str, reference: str, kind: str, options: Sequence[str] | None = None, rule: str = "normalized"
) -> dict[str, float]:
    """The scores of one answer, see `is_right` for the arguments.

    Returns:
        `accuracy` and `accuracy_KIND` (0 or 1), and for open questions `open_exact`, `open_recall` and `open_f1`, all
        in [0, 1].

    Raises:
        ValueError: for what `is_right` refuses.
    """
    right = float(is_right(answer, reference, kind, options, rule))
    scores = {"accuracy": right, f"accuracy_{kind}": right}
    if kind == "open":
        recall, f1 = token_overlap(answer, reference)
        exact = float(normalized(answer) == normalized(reference))
        scores |= {"open_exact": exact, "open_recall": recall, "open_f1": f1}
    return scores


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[str] | None = None,
    options: Sequence[Sequence[str] | None] | None = None,
    rule: str = "normalized",
) -> dict[str, Any]:
    """Accuracy of answers to questions about medical images, by stated and named rules.

    Every answer has a kind (yes_no, multiple_choice, closed, open), and a rule decides what counts as right:

    * normalized: equal after Unicode folding, lower case, without punctuation and articles; yes_no and
      multiple_choice as under medevalkit.
    * contains: the normalized reference occurs in the normalized answer as whole words, or as characters of languages
      without spaces between words; yes_no and multiple_choice as above.
    * medevalkit: open and closed: equal in lower case without outer spaces; yes_no: the answer holds exactly one of
      yes and no and it is the right one; multiple_choice: the first letter that stands alone, else the one option
      whose text is named.
    * vlmevalkit: without a judge model: multiple_choice: exactly one option letter, else exactly one option text,
      occurs; all others: equal in lower case without outer spaces.

    Independently of the rule, open answers get exact match, token recall and token F1.

    Args:
        predictions: answers.
        references: right answers; for multiple_choice the letter.
        kinds: kind of each question; by default multiple_choice with options, yes_no for a reference that says so,
            else open.
        options: texts of the options, for multiple_choice.
        rule: one of normalized, contains, medevalkit, vlmevalkit.

    Returns:
        `accuracy` and its parts by kind, `open_exact`, `open_recall`, `open_f1`, in [0, 1]; `count`.

    Raises:
        ValueError: without an answer, for an unknown rule or kind, or a multiple-choice question without options.

    Source:
        MedEvalKit (https://github.com/alibaba-damo-academy/MedEvalKit) and VLMEvalKit
        (https://github.com/open-compass/VLMEvalKit) for the rules named after them; token recall of open answers as in
        Li et al. 2023, "LLaVA-Med".
    """
    if not predictions:
        raise ValueError("there is nothing to score: pass at least one answer.")
    choices = list(options) if options is not None else [None] * len(predictions)
    if kinds is None:
        kinds = [kind_of(reference, offered) for reference, offered in zip(references, choices, strict=True)]
    found: dict[str, list[float]] = {}
    for answer, reference, kind, offered in zip(predictions, references, kinds, choices, strict=True):
        for name, value in score_answer(answer, reference, kind, offered, rule).items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()} | {"count": len(predictions)}
