"""The sources that read a published data set in the layout of its publisher."""

from . import chest, instructions, literature, question_answering, scans, segmentations
from .base import Source

NAMED: tuple[Source, ...] = (
    *literature.SOURCES,
    *instructions.SOURCES,
    *chest.SOURCES,
    *scans.SOURCES,
    *question_answering.SOURCES,
    *segmentations.SOURCES,
)


def public_datasets() -> frozenset[str]:
    """The data sets of the named sources: their files and groups have the names that their publishers gave them."""
    return frozenset(source.dataset for source in NAMED)
