"""A part with a step that breaks."""

from .parts import breaks, first, last

STEPS = [first, breaks, last]
