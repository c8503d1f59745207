"""The account is closed: runs after all other golden tests."""

import pytest

SHOWN = 60


def fail_with(lines: list[str], title: str):
    if lines:
        shown = [*lines[:SHOWN], *(["..."] if len(lines) > SHOWN else [])]
        pytest.fail(f"{len(lines)} {title}:\n" + "\n".join(shown), pytrace=False)


def test_every_record_is_compared_or_excluded_with_a_reason(golden):
    fail_with(golden.open_records(), "open records (did you run only a part?)")


def test_every_comparison_notices_one_changed_value(golden):
    fail_with(golden.unnoticed_changes(), "records could change without a test failing")
