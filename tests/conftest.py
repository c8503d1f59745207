"""Options shared by all tests."""

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "golden" / "fixtures"


def pytest_addoption(parser: pytest.Parser):
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=FIXTURES,
        help="folder of golden records that tests/golden compares the package with (default: the copy in the project)",
    )
