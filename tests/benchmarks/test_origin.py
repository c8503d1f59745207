"""Every file of figures says where they come from, and the block that does is of the checkout that it was made in."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import origin as module
from benchmarks.origin import ROOT, commit, origin

RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
    done = subprocess.run(["git", "-C", str(folder), *names, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with a measured file and a file of results, both committed."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "measured.py").write_text("a = 1\n")
    (tmp_path / "benchmarks" / "results" / "a.json").write_text("{}\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_file_of_figures_has_a_complete_origin(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    made = found["origin"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", made["date"])
    for run in (made, *made.get("kept", ())):
        assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", run["commit"])
    assert re.match(r"\w+, \d+ cores, \S", made["machine"])
    assert {"python", "torch", "transformers"} <= made["versions"].keys()
    assert all(re.match(r"\d", version) for version in made["versions"].values())
    assert made.get("recorded", "from the history") == "from the history"
    # One place for each of these.
    assert not {"date", "commit", "code", "machine", "versions", "python", "torch", "transformers"} & found.keys()


def test_commits_of_figures_are_of_this_repository():
    known = git(ROOT, "rev-list", "--all").splitlines()
    if git(ROOT, "rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone does not hold the commits of earlier figures")
    for path in RESULTS:
        made = json.loads(path.read_text(encoding="utf-8"))["origin"]
        for run in (made, *made.get("kept", ())):
            assert any(name.startswith(run["commit"][:12]) for name in known), path.name


def test_origin_is_of_the_commit_and_names_changes(checkout):
    head = git(checkout, "rev-parse", "HEAD")[:12]
    made = origin("one thread", root=checkout)
    assert made["commit"] == head and made["machine"].endswith("; one thread")
    (checkout / "benchmarks" / "results" / "a.json").write_text('{"changed": 1}\n')
    assert commit(checkout) == head, "what a benchmark writes is no change of what it measures"
    (checkout / "measured.py").write_text("a = 2\n")
    assert commit(checkout) == f"{head}+changes"
    git(checkout, "commit", "--quiet", "--all", "--message", "second")
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")[:12] != head
    (checkout / "new.py").write_text("b = 1\n")
    assert commit(checkout / "benchmarks").endswith("+changes")


def test_figures_that_stay_keep_the_commits_of_their_runs(checkout):
    first = origin(root=checkout)
    assert "kept" not in origin(kept=first, root=checkout)
    (checkout / "measured.py").write_text("a = 2\n")
    second = origin(kept=first, root=checkout)
    git(checkout, "commit", "--quiet", "--all", "--message", "second")
    third = origin(kept=second, root=checkout)
    assert [run["commit"] for run in second["kept"]] == [first["commit"]]
    assert [run["commit"] for run in third["kept"]] == [second["commit"], first["commit"]]


def test_no_checkout_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="is no git checkout"):
        commit(tmp_path)


def test_the_command_adds_the_block_to_a_file(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text('{"origin": {"date": "2000-01-01"}, "validation": {"value": 1.0}}\n')
    module.main(path, "one thread")
    found = json.loads(path.read_text())
    assert found["validation"] == {"value": 1.0}
    assert found["origin"]["versions"] == module.library_versions() and "one thread" in found["origin"]["machine"]
