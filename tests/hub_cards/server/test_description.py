"""Requests made from the server's own OpenAPI description, valid and broken: no crash, no hang, no stack trace."""

import time

import psutil
import pytest

from tests.hub_cards.server.running import KEY, Running, serving

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

CI_CASES, SLOW_CASES = 150, 1_000
MOST_SECONDS, MOST_BYTES = 10.0, 4 << 30
# What a request may cost is bounded by the limits, so that made-up numbers of steps and tokens stay short.
OPTIONS = [
    *("--max-tokens", "16", "--max-steps", "4", "--max-n", "2", "--max-body-mb", "2", "--max-prompt", "2000"),
    *("--timeout", "8"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("description"), OPTIONS, KEY) as running:
        yield running


def operations(server: Running):
    with server.http() as client:
        description = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=server.address)
    return [found.ok() for found in schema.get_all_operations()]


def check_cases(server: Running, count: int) -> None:
    found = operations(server)
    posts = [operation for operation in found if operation.method.lower() == "post"]
    process = psutil.Process(server.process.pid)
    statuses: list[int] = []
    for operation in found:
        # Routes that only read have nothing to vary.
        share = max(1, round((count - (len(found) - len(posts))) / len(posts))) if operation in posts else 1
        positive = schemathesis.GenerationMode.POSITIVE
        strategies = [
            (operation.as_strategy(generation_mode=positive), share - share // 2),
            (operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE), share // 2),
        ]
        for strategy, cases in strategies if operation in posts else strategies[:1]:

            @settings(
                max_examples=cases,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def check(case):
                started = time.monotonic()
                response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
                assert time.monotonic() - started < MOST_SECONDS
                statuses.append(response.status_code)
                # 504: made-up requests may well ask for more than the time limit allows.
                assert response.status_code < 500 or response.status_code == 504, (case.path, response.text)
                assert "Traceback" not in response.text and 'File "' not in response.text
                if response.status_code >= 400:
                    assert response.json()["error"]["message"]

            check()
    assert len(statuses) >= 0.8 * count and 200 in statuses and 400 in statuses
    assert process.memory_info().rss < MOST_BYTES
    log = server.log.read_text()
    assert "Traceback" not in log and " ERROR " not in log, log[-2000:]


@pytest.mark.medium
def test_made_up_requests_are_answered_or_refused(server):
    check_cases(server, CI_CASES)


@pytest.mark.slow
def test_a_thousand_made_up_requests_are_answered_or_refused(server):
    check_cases(server, SLOW_CASES)
