"""What several tests of the Hub send."""

import pytest

from tests.unimed5m.quality.toy_records import record, write_shards
from unimedvl.unimed5m.publish import publish


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write_shards(folder / "records", [record(number) for number in range(6)], shards=2)
    publish(folder / "records", folder / "published")
    return folder / "published"
