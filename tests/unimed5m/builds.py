"""Builds of small folders, their records and what they set aside."""

import json
from pathlib import Path

from unimedvl.commands.main import main
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.schema import Record, from_table
from unimedvl.unimed5m.shards import batches, shard_paths


def built(source: str, folder: Path, output: Path) -> tuple[list[Record], dict[str, str]]:
    """Records and {id: reason} of the rejected."""
    build(get_source(source), folder, output, shards=1)
    lines = (output / "rejected" / "00000-of-00001.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert len(reasons) == len(lines) and all(reasons), "every rejected row has an id of its own"
    assert not any("\n" in reason for reason in reasons.values())
    return [entry for path in shard_paths(output) for table in batches(path) for entry in from_table(table)], reasons


def refusal(source: str, folder: Path, output: Path, capsys) -> str:
    """The one line that a build of the folder ends with."""
    assert main(["data", "build", "--source", source, str(folder), str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
