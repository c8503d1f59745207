"""Linear probes of features, and folds for sets too small to hold a part out.

Shape legend: N images, F features.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .captions import GRADED, referable
from .record_images import UNCAPTIONED, RecordImages

FOLDS = 5
FEWEST_HELD_OUT = 30  # a set with fewer held-out rows is judged by folds
# Sources whose captions are distinguished by what the image shows, not by what kind of image it is.
FOCUS = ("brain-tumor-classification", "nih-chestxray14-subset", "lc25000-lung", GRADED)


def grouped_folds(
    labels: Sequence[Any] | numpy.ndarray, groups: Sequence[str], seed: int = 0, folds: int = FOLDS
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Places to fit on and places left out, for each fold; no group is on both sides, classes are balanced.

    Raises:
        ValueError: if there are fewer groups than folds.
    """
    if len(set(groups)) < folds:
        raise ValueError(f"{len(set(groups))} groups do not make {folds} folds: choose fewer folds.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    yield from splitter.split(numpy.zeros(len(labels)), numpy.asarray(labels), numpy.asarray(groups))


def probe(features: numpy.ndarray, labels: numpy.ndarray, strength: float = 0.02) -> Any:
    """A linear probe: logistic regression on standardized features (N, F).

    Args:
        strength: scikit-learn's `C`, the inverse of the penalty on the weights.
    """
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(features, labels)


def cross_validated(features: numpy.ndarray, labels: numpy.ndarray, groups: Sequence[str], seed: int = 0) -> float:
    """Accuracy of linear probes on the images that each has not seen, over all folds."""
    right = 0
    for fitted, left in grouped_folds(labels, groups, seed):
        right += int((probe(features[fitted], labels[fitted]).predict(features[left]) == labels[left]).sum())
    return right / len(labels)


def class_of(source: str, label: str) -> str:
    """The class of an image of a source of FOCUS; empty where its label states none.

    Retinopathy is referable or not, by its grade.
    """
    if source != GRADED:
        return label
    return {True: "referable", False: "not referable", None: ""}[referable(label)]


def classified(images: RecordImages) -> dict[str, tuple[list[int], numpy.ndarray]]:
    """The places and the classes of the images of each source of FOCUS that have one."""
    found = {}
    for source in FOCUS:
        classes = {
            place: class_of(source, images.labels[place])
            for place, name in enumerate(images.sources)
            if name == source and images.captions[place] != UNCAPTIONED
        }
        places = [place for place, name in classes.items() if name]
        if places:
            found[source] = (places, numpy.array([classes[place] for place in places]))
    return found
