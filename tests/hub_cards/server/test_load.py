"""Many clients at once: every request is answered or refused, also while the server dies; its memory stays flat."""

import os
import signal
import threading
import time

import psutil
import pytest

from tests.hub_cards.server.load import Outcome, mixed, run_load
from tests.hub_cards.server.running import Running, free_port, serving

OVERLOADED = 429


def check(outcomes: list[Outcome], count: int) -> None:
    assert len(outcomes) == count
    for outcome in outcomes:
        expected = {400} if outcome.kind == "refused" else {200}
        assert outcome.status in {*expected, OVERLOADED}, outcome


def memory(server: Running) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


@pytest.mark.medium
def test_a_small_mixed_load_is_answered(tmp_path):
    with serving(tmp_path) as server:
        outcomes = run_load(server, 28, 8, mixed)
        check(outcomes, 28)
        assert all(outcome.status != OVERLOADED for outcome in outcomes)
        # Requests ran together: fewer batches than texts.
        texts = sum(outcome.kind in ("text", "image question", "stream", "response") for outcome in outcomes)
        assert server.metric('unimedvl_batch_rows_sum{kind="text"}') == texts
        assert server.metric('unimedvl_batch_rows_count{kind="text"}') < texts
        assert server.metric("unimedvl_queue_depth") == 0 and server.metric("unimedvl_requests_inside") == 0


@pytest.mark.slow
def test_300_mixed_requests_of_8_clients_are_answered_or_refused(tmp_path):
    with serving(tmp_path, ["--max-requests", "7"]) as server:
        outcomes = run_load(server, 300, 8, mixed)
        check(outcomes, 300)
        assert sum(outcome.status == OVERLOADED for outcome in outcomes) < 150
        assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_server_killed_under_load_leaves_no_client_waiting(tmp_path):
    port, killed, restarted = free_port(), threading.Event(), threading.Event()
    with serving(tmp_path, port=port) as server:

        def wait(number: int) -> None:
            if number == 30:
                os.kill(server.process.pid, signal.SIGKILL)
                killed.set()
            if number >= 40:
                restarted.wait(240)

        found: list[Outcome] = []
        load = threading.Thread(target=lambda: found.extend(run_load(server, 80, 8, mixed, 6, 60, wait)))
        started = time.monotonic()
        load.start()
        assert killed.wait(240)
        server.process.wait(60)
        with serving(tmp_path, port=port):
            restarted.set()
            load.join(300)
            assert not load.is_alive() and time.monotonic() - started < 600
    assert len(found) == 80
    assert {outcome.status for outcome in found} <= {0, 200, 400}
    # Before and after the restart requests are answered, between they break at once.
    assert sum(outcome.status == 0 for outcome in found) >= 1
    assert sum(outcome.status in (200, 400) for outcome in found) >= 60


@pytest.mark.medium
def test_a_server_that_is_asked_to_end_answers_what_runs(tmp_path):
    with serving(tmp_path) as server:
        running = threading.Event()

        def stop(number: int) -> None:
            if number == 4:
                running.set()

        found: list[Outcome] = []
        load = threading.Thread(target=lambda: found.extend(run_load(server, 12, 4, mixed, 6, 60, stop)))
        load.start()
        assert running.wait(120)
        server.process.terminate()
        load.join(120)
        assert not load.is_alive()
        server.process.wait(60)
    assert len(found) == 12 and {outcome.status for outcome in found} <= {0, 200, 400, 503}
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_memory_is_flat_over_1000_requests(tmp_path):
    with serving(tmp_path) as server:
        run_load(server, 200, 8, mixed)
        first = memory(server)
        outcomes = run_load(server, 1_000, 8, mixed)
        check(outcomes, 1_000)
        grown = memory(server) - first
        print(f"resident memory grew by {grown / 2**20:.1f} MiB over 1,000 requests, from {first / 2**20:.1f} MiB")
        assert grown < 0.05 * first
