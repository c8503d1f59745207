"""A part with a step that never ends."""

from .parts import first, hangs, last

STEPS = [first, hangs, last]
