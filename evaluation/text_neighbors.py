"""The most similar of many texts, by the words that they share."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy
from sklearn.feature_extraction.text import TfidfVectorizer


def pieces(text: str) -> list[str]:
    """Lower-case words and pairs of adjacent words; single characters of Chinese."""
    words = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())
    return words + [f"{left} {right}" for left, right in pairwise(words)]


class TextNeighbors:
    """Cosine of word and word-pair counts, weighted by how rare they are among the texts (TF-IDF)."""

    def __init__(self, texts: Sequence[str]):
        self.vectorizer = TfidfVectorizer(analyzer=pieces)
        # Texts without a single word, such as none at all, are no vocabulary to scikit-learn.
        self.matrix = self.vectorizer.fit_transform(texts) if any(map(pieces, texts)) else None
        self.count = len(texts)

    def nearest(self, text: str, count: int) -> list[tuple[int, float]]:
        """(place, cosine) of the most similar texts, best first; of equals the earlier one."""
        if self.matrix is None:
            return [(place, 0.0) for place in range(min(self.count, count))]
        # Both sides have length 1. A dense query: scikit-learn's `linear_kernel` transposes the matrix for each one.
        cosines = self.matrix @ self.vectorizer.transform([text]).toarray()[0]
        order = numpy.argsort(-cosines.round(9), kind="stable")[:count]
        return [(int(place), float(cosines[place])) for place in order]
