"""The shipped checkpoint, exported, draws the same pixels where this package is not."""

import sys

import pytest

from benchmarks.engines.diffusers_card import checked

pytestmark = pytest.mark.slow


def test_the_shipped_checkpoint_draws_the_same_as_a_pipeline(tmp_path):
    figure, right, _ = checked(sys.executable, tmp_path.resolve())
    assert right, figure
