"""`unimedvl data check`, `audit`, `agreement` and `publish`, as typed."""

import json

import pytest

from unimedvl.commands.main import main
from unimedvl.unimed5m.quality.models import ModelPaths, ends_digest

from .toy_records import faulty_records, record, write_shards


@pytest.fixture
def records(tmp_path):
    return write_shards(tmp_path / "records", faulty_records())


def run(capsys, *words) -> str:
    assert not main([str(word) for word in words]), capsys.readouterr().err
    return capsys.readouterr().out


def test_check_then_publish(records, tmp_path, capsys):
    write_shards(tmp_path / "bench", [record(900)], shards=1)
    out = run(capsys, "data", "check", records, tmp_path / "checked", "--benchmark", f"bench={tmp_path / 'bench'}")
    assert out.splitlines()[0] == "50 read = 41 kept + 9 dropped"
    assert "undecodable" in out and "contaminated_image" in out
    out = run(capsys, "data", "publish", tmp_path / "checked", tmp_path / "published", "--json", "--name", "Toy")
    assert json.loads(out)["records"] == 41
    assert "# Toy" in (tmp_path / "published" / "README.md").read_text()


def test_built_unimed_mini_is_only_reported(records, tmp_path, capsys):
    (records / "build.json").write_text('{"source": "unimed-mini"}')
    summary = json.loads(run(capsys, "data", "check", records, tmp_path / "checked", "--keep-duplicates", "--json"))
    assert summary["stages"][0]["dropped"] == {"undecodable": 2}
    assert summary["reported_only"]["too_small"] == 1


def test_audit_and_agreement(records, tmp_path, capsys):
    assert "10 records" in run(capsys, "data", "audit", records, tmp_path / "audit", "--size", 10, "--experts", 2)
    sheets = sorted((tmp_path / "audit").glob("*.csv"))
    for sheet in sheets:
        lines = sheet.read_text().splitlines()
        filled = [",".join(line.split(",")[:2]) + f",1,5,4,5,{place % 6},3,5," for place, line in enumerate(lines[1:])]
        sheet.write_text("\n".join([lines[0], *filled]) + "\n")
    out = run(capsys, "data", "agreement", *sheets, "--out", tmp_path / "audit.json")
    assert "professionalism: mean 2.100, alpha 1.000" in out
    assert json.loads((tmp_path / "audit.json").read_text())["experts"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text-encoder", "somewhere"], "give both or neither"),
        (["--benchmark", "bench"], "NAME=RECORDS"),
        (["--keep", "2"], "kept share"),
    ],
)
def test_bad_input_is_one_clear_line(records, tmp_path, capsys, words, message):
    assert main(["data", "check", str(records), str(tmp_path / "out"), *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors and len(errors.strip().splitlines()) == 1


def test_weights_are_distinguished_by_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100)
    before = ends_digest(str(tmp_path))
    assert before == ends_digest(str(tmp_path)) in ModelPaths(str(tmp_path), "b").describe()
    (tmp_path / "model.safetensors").write_bytes(b"1" * 100)
    assert ends_digest(str(tmp_path)) != before
    assert ends_digest("google/medsiglip-448") == "google/medsiglip-448"
