"""What distinguishes one run from another."""

import pytest
from huggingface_hub import constants

from unimedvl.checkpoint.identity import hub_commit, weights_digest


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "chat_template.jinja", "code.py"])
def test_the_digest_follows_every_file_that_decides_answers(name, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_digest(str(tmp_path))
    (tmp_path / name).write_bytes(b"changed")
    assert weights_digest(str(tmp_path)) != before


def test_published_results_do_not_change_the_digest(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_digest(str(tmp_path))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    assert weights_digest(str(tmp_path)) == before
    assert weights_digest("owner/name") == ""


def test_the_commit_of_a_hub_id_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub_commit("owner/name", None) == ""
    commit = "0123456789" * 4
    folder = tmp_path / "models--owner--name"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert hub_commit("owner/name", None) == hub_commit("owner/name", "main") == commit


def test_a_run_within_the_checkpoint_does_not_change_the_digest(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_digest(str(tmp_path))
    (tmp_path / "out" / "unimed-mini").mkdir(parents=True)
    (tmp_path / "out" / "unimed-mini" / "scores.json").write_text("{}")
    assert weights_digest(str(tmp_path)) != before
    (tmp_path / "out" / "run.json").write_text("{}")
    assert weights_digest(str(tmp_path)) == before
