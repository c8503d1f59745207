"""Drawn sentences for the tests of texts and answers."""

import random

WORDS = "the a lung lungs clear opacity left right lobe no pleural effusion is are , . heart size normal".split()


def sentences(seed: int, count: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]
