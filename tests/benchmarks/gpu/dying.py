"""A part whose process ends in the middle."""

from .parts import dies, first, last

STEPS = [first, dies, last]
