"""torchao's 8-bit weights: the experts' linear layers and no others, within what 8 bits allow, saved and loaded."""

import pytest

from benchmarks.engines.environments import python_of, variable_of
from benchmarks.engines.torchao_weights import checked

pytestmark = pytest.mark.slow


def test_weights_are_rounded_to_8_bits_and_kept(tmp_path):
    python = python_of("torchao")
    if python is None:
        pytest.skip(f"torchao has an environment of its own: name its Python in {variable_of('torchao')}")
    figure, right, _ = checked(python, tmp_path.resolve())
    assert right, figure
