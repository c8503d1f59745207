"""Options shared by all tests."""

import argparse
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "golden" / "fixtures"


def golden_folder(value: str) -> Path:
    folder = Path(value)
    if not (folder / "infer.json").is_file():
        raise argparse.ArgumentTypeError(f"{value} has no infer.json: name a folder of golden records")
    return folder


def pytest_addoption(parser: pytest.Parser):
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=golden_folder,
        default=FIXTURES,
        help="folder of golden records that tests/golden compares the package with (default: the copy in the project)",
    )
    parser.addoption(
        "--device",
        metavar="NAME",
        default="cpu",
        help="device that tests/golden runs the model on, such as cuda (default: cpu)",
    )
    parser.addoption(
        "--screenshots",
        metavar="DIR",
        type=Path,
        default=None,
        help="folder for what the pages of tests/hub_cards/ui/test_browser.py looked like (default: none are kept)",
    )
