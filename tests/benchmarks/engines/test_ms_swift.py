"""ms-swift's own command tunes the understanding half; its loss is ours, and its adapter fits our whole model."""

import pytest

from benchmarks.engines.environments import python_of, variable_of
from benchmarks.engines.ms_swift import checked

pytestmark = pytest.mark.slow


def test_the_loss_is_ours_and_falls_and_the_adapter_loads(tmp_path):
    python = python_of("ms-swift")
    if python is None:
        pytest.skip(f"ms-swift has an environment of its own: name its Python in {variable_of('ms-swift')}")
    figure, right, _ = checked(python, tmp_path.resolve())
    assert right, figure
