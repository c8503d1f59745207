"""What travels with a checkpoint runs on the oldest transformers of an engine."""

import pytest

from benchmarks.engines.environments import python_of, variable_of
from benchmarks.engines.transformers_floor import checked

pytestmark = pytest.mark.slow


def test_the_folder_and_the_golden_records_hold(tmp_path):
    python = python_of("transformers")
    if python is None:
        pytest.skip(
            f"transformers 5.16 has an environment of its own: name its Python in {variable_of('transformers')}"
        )
    figure, right, _ = checked(python, tmp_path.resolve())
    assert right, figure
