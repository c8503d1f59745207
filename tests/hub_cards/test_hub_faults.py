"""Pushing and asking while the Hub fails: one clear line each, nothing lost, and the same command resumes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub_cards.test_push_checks import CARD
from tests.hub_server import Fault, HubServer
from tests.tiny_checkpoint import tiny_checkpoint

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "tester/tiny"
SNIPPETS = """
```python
repository = "tester/tiny"
revision = "COMMIT"
```

    unimedvl ask --model tester/tiny --revision COMMIT
"""
ALWAYS = 1_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_checkpoint(directory)
    (directory / "README.md").write_text(CARD + SNIPPETS)
    return directory


@pytest.fixture(scope="module")
def changed(folder, tmp_path_factory):
    """The same weights with another card."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "tiny")
    (copy / "README.md").write_text(CARD + "One sentence more.\n" + SNIPPETS)
    return copy


def run(hub, home, *steps, environment=None, folder=ROOT):
    """Commands one after the other in one process, see commands_in_one_process.py.

    Args:
        environment: further variables.
        folder: where they run.
    """
    written = [{**step, "faults": [dataclasses.asdict(fault) for fault in step.get("faults", [])]} for step in steps]
    command = [sys.executable, "-m", "tests.hub_cards.commands_in_one_process", json.dumps(written)]
    settings = {**os.environ, **hub.environment(home), "PYTHONPATH": str(ROOT), **(environment or {})}
    done = subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def refused(result, *words):
    """Whether a command ended in one line that holds these words."""
    assert result["code"] == 2 and result["out"] == "", result
    assert result["err"].count("\n") == 1 and "Traceback" not in result["err"], result["err"]
    return all(word in result["err"] for word in words)


def uploads(hub):
    return [request for request in hub.requests if request.startswith("PUT /lfs/")]


def test_a_push_survives_faults_and_resumes(folder, tmp_path):
    push = ["push", str(folder), REPOSITORY, "--json"]
    with HubServer() as hub:
        steps = [
            # The upload of the weights breaks off every time; later it breaks off twice.
            {"words": push, "faults": [Fault("PUT /lfs/", ALWAYS, cut=0)]},
            {"words": push, "faults": [Fault("PUT /lfs/", 2, cut=0)]},
            {"words": push},
            # A server that is overloaded or asks to slow down, for a while and for good.
            {"words": push, "faults": [Fault("POST .*preupload", 1, status=429, headers={"Retry-After": "1"})]},
            {"words": push, "faults": [Fault("POST .*preupload", ALWAYS, status=503)]},
            {"words": push, "faults": [Fault("POST /api/repos", ALWAYS, status=500)]},
        ]
        broken, pushed, again, slowed, down, failing = run(hub, tmp_path / "home", *steps)
        repository = hub.repositories["models", REPOSITORY]
        weights = (folder / "model.safetensors").read_bytes()
        assert refused(broken, "ended", "run the same command again") and pushed["code"] == 0, (broken, pushed)
        head = json.loads(pushed["out"])["commit"]
        assert repository.refs["main"] == head
        assert repository.commits[head]["model.safetensors"].content == weights
        # The card pins the commit before it, which holds the same weights.
        card = repository.commits[head]["README.md"].content.decode()
        pinned = card.split('revision = "')[1][:40]
        assert f"--revision {pinned}" in card and "COMMIT" not in card and pinned != head
        assert repository.commits[pinned]["model.safetensors"].content == weights
        # Nothing to do is done: no commit, no second upload.
        assert json.loads(again["out"])["commit"] == json.loads(slowed["out"])["commit"] == head
        assert len(repository.commits) == 3, list(repository.commits)
        assert refused(down, "the Hub refused", "503") and refused(failing, "the Hub refused", "500", "later")
        assert repository.refs["main"] == head


def test_a_card_alone_moves_the_branch_and_keeps_its_pin(folder, changed, tmp_path):
    with HubServer() as hub:
        steps = [{"words": ["push", str(directory), REPOSITORY, "--json"]} for directory in (folder, changed)]
        before, after = (json.loads(result["out"])["commit"] for result in run(hub, tmp_path / "home", *steps))
        repository = hub.repositories["models", REPOSITORY]
    first, second = (repository.commits[commit]["README.md"].content.decode() for commit in (before, after))
    assert after == repository.refs["main"] != before and "One sentence more." in second
    assert first.split("```")[1] == second.split("```")[1]


def test_a_killed_push_is_resumed_by_the_same_command(folder, tmp_path):
    with HubServer() as hub:
        hub.faults = [Fault("POST .*/commit/", 1, seconds=60)]
        command = [sys.executable, "-m", "unimedvl.commands.main", "push", str(folder), REPOSITORY, "--json"]
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not any("/commit/" in request for request in [*hub.requests, *hub.waiting]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.communicate()
        sent = uploads(hub)
        assert sent
        [resumed] = run(hub, tmp_path / "home", {"words": ["push", str(folder), REPOSITORY, "--json"]})
        assert resumed["code"] == 0, resumed
        assert uploads(hub) == sent
        head = json.loads(resumed["out"])["commit"]
        assert "model.safetensors" in hub.repositories["models", REPOSITORY].commits[head]


def test_pulling_survives_faults_and_says_what_is_wrong(folder, changed, tmp_path):
    ask = ["ask", "What is this?", "--max-new-tokens", "2", "--json", "--model", REPOSITORY]
    weights, half = "GET .*/resolve/.*model.safetensors", (folder / "model.safetensors").stat().st_size // 2
    home = tmp_path / "home"
    with HubServer() as hub:
        steps = [
            {"words": ["push", str(folder), REPOSITORY, "--private", "--json"]},
            # The download breaks off, and what is left comes slowly.
            {"words": ask, "faults": [Fault(weights, cut=half), Fault(weights, rate=half)]},
            {"words": ["ask", "What?", "--model", "tester/none"]},
            {"words": [*ask, "--revision", "0" * 40]},
            {"words": [*ask, "--revision", "later"], "faults": [Fault("GET /api/models", ALWAYS, status=502)]},
            # The branch moves; who pinned the old commit keeps it.
            {"words": ["push", str(changed), REPOSITORY, "--json"]},
            {"words": ask},
        ]
        pushed, cut, missing, revision, failing, later, moved = run(hub, home, *steps)
        old = json.loads(pushed["out"])["commit"]
        pinned = {"words": [*ask, "--revision", old]}
        [offline] = run(hub, home, pinned, environment={"HF_HUB_OFFLINE": "1"})
        wrong = {"words": ask}, {"words": ["push", str(folder), REPOSITORY]}
        stranger, writer = run(hub, tmp_path / "wrong", *wrong, environment={"HF_TOKEN": "hf_wrong"})
        repository = hub.repositories["models", REPOSITORY]
        repository.private, repository.gated = False, True
        [gated] = run(hub, tmp_path / "gated", {"words": ask}, environment={"HF_TOKEN": "hf_wrong"})
    answer = json.loads(cut["out"])
    assert answer["revision"] == old
    assert json.loads(moved["out"])["revision"] == json.loads(later["out"])["commit"] != old
    assert {**json.loads(offline["out"]), "seed": answer["seed"]} == answer
    assert refused(missing, "no repository 'tester/none'", "hf auth login")
    assert refused(revision, "has no revision", "0" * 40) and refused(failing, "busy or down (502)", "again later")
    assert refused(stranger, REPOSITORY, "hf auth login") and refused(writer, REPOSITORY, "hf auth login")
    assert refused(gated, f"'{REPOSITORY}' is gated: ask for access on its page")
