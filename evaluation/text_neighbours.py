"""The most similar of many texts, by the words that they share."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy
from scipy import sparse


def pieces(text: str) -> list[str]:
    """Lower-case words and pairs of adjacent words; single characters of Chinese."""
    words = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())
    return words + [f"{left} {right}" for left, right in pairwise(words)]


class TextNeighbours:
    """Cosine of word and word-pair counts, weighed by how rare they are among the texts."""

    def __init__(self, texts: Sequence[str]):
        known: dict[str, int] = {}
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            for piece, count in Counter(pieces(text)).items():
                rows.append(row)
                columns.append(known.setdefault(piece, len(known)))
                values.append(float(count))
        self.known = known
        matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), max(len(known), 1)))
        document_counts = numpy.bincount(columns, minlength=max(len(known), 1))
        self.weights = numpy.log((1 + len(texts)) / (1 + document_counts)) + 1
        matrix = matrix @ sparse.diags(self.weights)
        norms = numpy.sqrt(numpy.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        self.matrix = sparse.diags(1 / numpy.maximum(norms, 1e-12)) @ matrix

    def nearest(self, text: str, count: int) -> list[tuple[int, float]]:
        """(place, cosine) of the most similar texts, best first; of equals the earlier one."""
        query = numpy.zeros(self.matrix.shape[1])
        for piece, number in Counter(pieces(text)).items():
            if piece in self.known:
                query[self.known[piece]] = number * self.weights[self.known[piece]]
        length = math.sqrt(float(query @ query))
        cosines = self.matrix @ (query / length if length else query)
        order = numpy.argsort(-cosines.round(9), kind="stable")[:count]
        return [(int(place), float(cosines[place])) for place in order]
