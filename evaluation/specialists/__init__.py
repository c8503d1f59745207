"""Small models of one task, trained on the same data: what a score of a generalist is to be compared with."""

from .specialist import Specialist

__all__ = ["Specialist"]
