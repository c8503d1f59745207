"""Ray Serve: two replicas on one machine, one of them killed under load, and an update that no client notices."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.hub_cards.server.load import mixed, run_load
from tests.hub_cards.server.running import Running, free_port, serving, wait_until_ready
from tests.ray_cluster import ray_cluster
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.commands.main import main

pytest.importorskip("ray")

REPLICAS = 2


def replicas(process: subprocess.Popen) -> list[psutil.Process]:
    """The replicas' processes among those that a process started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("ServeReplica" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for_replicas(process: subprocess.Popen, without: int = 0) -> None:
    deadline = time.monotonic() + 240
    while len([replica for replica in replicas(process) if replica.pid != without]) < REPLICAS:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "token"),
        ({"RAY_AUTH_MODE": "disabled"}, "disabled"),
        ({"RAY_ADDRESS": "127.0.0.1:6379"}, None),
    ],
)
def test_a_cluster_of_this_machine_asks_for_its_token(monkeypatch, capsys, given, mode):
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # Refused, for its numbers, right before it starts a cluster.
    assert main(["serve", "--ray", "2", "--max-replicas", "1"]) == 2
    assert "--max-replicas 1" in capsys.readouterr().err
    assert os.environ.get("RAY_AUTH_MODE") == mode


@pytest.mark.slow
def test_what_replicas_cannot_take_is_refused_and_not_queued_without_end(tmp_path):
    with serving(tmp_path, ["--ray", "1", "--max-requests", "2"]) as server:
        answers, lock = [], threading.Lock()

        def send() -> None:
            with server.http() as client:
                body = {"prompt": "a", "steps": 20, "n": 2}
                response = client.post("/v1/images/generations", json=body)
            with lock:
                answers.append(response)

        threads = [threading.Thread(target=send) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [response.status_code for response in answers]
        # 503 is Ray's own word for what it does not even keep back.
        assert len(statuses) == 16 and set(statuses) <= {200, 429, 503}
        assert statuses.count(200) >= 2 and statuses.count(429) >= 1
        for response in answers:
            if response.status_code == 429:
                assert response.json()["error"]["code"] == "queue_full" and "retry-after" in response.headers


@pytest.mark.slow
def test_a_replica_that_dies_under_load_is_replaced(tmp_path):
    with serving(tmp_path, ["--ray", str(REPLICAS)]) as server:
        wait_for_replicas(server.process)
        victim = replicas(server.process)[0]

        def kill(number: int) -> None:
            if number == 30:
                victim.send_signal(signal.SIGKILL)

        outcomes = run_load(server, 120, 8, mixed, between=kill)
        assert len(outcomes) == 120
        expected = [outcome.status == (400 if outcome.kind == "refused" else 200) for outcome in outcomes]
        broken = [outcome for outcome, fine in zip(outcomes, expected, strict=True) if not fine]
        # Only what the dead replica was at: at most one request of each client.
        assert len(broken) <= 8 and {outcome.status for outcome in broken} <= {0, 500, 503}
        wait_for_replicas(server.process, without=victim.pid)
        last = run_load(server, 16, 8, mixed)
        assert all(outcome.status in (200, 400) for outcome in last)


@pytest.mark.slow
def test_an_update_replaces_replicas_while_others_answer(tmp_path):
    port, updated = free_port(), tmp_path / "updated-model"
    shutil.copytree(NANO_DIRECTORY, updated, ignore=shutil.ignore_patterns("*.py", "evaluation"))
    with ray_cluster() as (environment, cluster):

        def deploy(*words: str) -> None:
            command = [sys.executable, "-m", "unimedvl", "serve", "--port", str(port), "--device", "cpu"]
            command += ["--ray", str(REPLICAS), *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stderr

        deploy()
        wait_until_ready(cluster, port, tmp_path / "none")
        server = Running(cluster, port, tmp_path / "none", None)
        statuses: list[int] = []
        over = threading.Event()

        def ask() -> None:
            with server.http() as client:
                while not over.is_set():
                    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
                    statuses.append(client.post("/v1/chat/completions", json=body).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        deploy("--model", str(updated))
        deadline = time.monotonic() + 240
        with server.http() as client:
            while client.get("/v1/models").json()["data"][0]["id"] != updated.name:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        over.set()
        thread.join(120)
        assert len(statuses) > 3 and set(statuses) == {200}
