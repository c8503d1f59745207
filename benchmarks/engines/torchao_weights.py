"""torchao's 8-bit weights on the shipped checkpoint, loaded by plain transformers with the code that travels.

    python -m benchmarks.engines.torchao_weights PYTHON

PYTHON is the interpreter of an environment that has torchao besides what this package needs.
"""

import json
from pathlib import Path
from typing import Any

from .environments import CHECKPOINT, ROOT, Ran, check_and_write, run

PROGRAM = ROOT / "benchmarks" / "engines" / "torchao_process.py"
KINDS = ("int8", "float8")
# Rounding in float32 on top of what 8 bits allow.
TOLERANCE = 1.01


def checked(python: str, folder: Path) -> tuple[dict[str, Any], bool, Ran]:
    """What became of the checkpoint by kind, whether all of it is right, and the last command."""
    figure: dict[str, Any] = {}
    for kind in KINDS:
        done = run(python, [str(PROGRAM), str(CHECKPOINT), kind, str(folder / kind)], folder / "work", path=())
        figure[kind] = json.loads(done.output.splitlines()[-1])
    right = all(
        found["packed layers are those of the experts"]
        and found["saved folder holds the same weights"]
        and found["largest difference of its pixels"] < 1e-4
        and 0 < found["mean error as a share of what 8 bits allow"]
        and found["largest error as a share of what 8 bits allow"] <= TOLERANCE
        for found in figure.values()
    )
    return figure, right, done


if __name__ == "__main__":
    check_and_write("torchao", "torchao_weights", "interpreter of torchao's environment", __doc__, checked)
