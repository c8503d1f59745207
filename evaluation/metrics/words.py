"""Words of texts in any language, for metrics whose libraries know the words of English only.

| texts | words |
|---|---|
| English | the library's own, so that its figures stay as published |
| any other | runs of letters, marks and digits; each character where a script puts no spaces between words |

Texts count as English (`reads_as_english`) when their letters are of the Latin script, symbols such as the Greek
letters of "5 μm" and "TCRαβ" aside, and at least half of their words are ASCII. So does what is written like English:
German, or French with few accents.
"""

import unicodedata

import regex

# Scripts without spaces between words; the prolonged sound mark belongs to the kana.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_CHARACTER = regex.compile(rf"[{_UNSPACED}]\p{{M}}*", regex.V1)
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.V1)
_RUN = regex.compile(r"[\p{L}\p{M}\p{N}]+", regex.V1)
# Two Greek letters may be a symbol, three are a word.
_OTHER_SCRIPT = regex.compile(
    r"[[\p{L}\p{M}\p{Nd}]--[\p{Latin}\p{Greek}\p{Common}\p{Inherited}]]|\p{Greek}{3}", regex.V1
)
_BEYOND_ASCII = regex.compile(r"[[\p{L}\p{M}]--[\x00-\x7f]]|^[^0-9A-Za-z]*$", regex.V1)
_SPACE_BESIDE_CHARACTER = regex.compile(rf"\s+(?=[{_UNSPACED}])|(?<=[{_UNSPACED}]\p{{M}}*)\s+", regex.V1)
_CHINESE = regex.compile(r"\p{Han}")
_UNSPACED_BESIDES_CHINESE = regex.compile(rf"[[{_UNSPACED}]--\p{{Han}}]", regex.V1)


def reads_as_english(*texts: str) -> bool:
    """Whether texts, taken together, have the words of English (see the module); texts without a word do."""
    whole = unicodedata.normalize("NFC", " ".join(texts))
    if whole.isascii():
        return True
    if _OTHER_SCRIPT.search(whole):
        return False
    runs = _RUN.findall(whole)
    return 2 * sum(_BEYOND_ASCII.search(run) is not None for run in runs) <= len(runs)


def words(text: str) -> list[str]:
    """The words of a text in any language: Unicode folded (NFKC), lower case, without punctuation.

    A word is a run of letters, marks and digits, or a single character (with its marks) of Chinese, Japanese, Thai,
    Lao, Khmer and Burmese, which put no spaces between words.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def spaced(text: str) -> str:
    """The text, composed (NFC), with spaces around every character of the scripts that have none between words."""
    return _CHARACTER.sub(r" \g<0> ", unicodedata.normalize("NFC", text))


def unspaced(text: str) -> str:
    """The text without the spaces beside characters of the scripts that have none between words."""
    return _SPACE_BESIDE_CHARACTER.sub("", text)


def is_chinese(*texts: str) -> bool:
    """Whether texts hold Chinese characters, and no other script that puts no spaces between words."""
    return any(map(_CHINESE.search, texts)) and not any(map(_UNSPACED_BESIDES_CHINESE.search, texts))
