"""The outermost layer, without a model behind it: keys, pages of other hosts, and bodies in bounded bytes and time."""

import asyncio
from typing import Any

import pytest

from unimedvl.hub_cards.server.budget import Budget
from unimedvl.hub_cards.server.guard import Guard
from unimedvl.hub_cards.server.metrics import Metrics
from unimedvl.hub_cards.server.settings import MEBIBYTE, Limits, Settings

PATH = "/v1/chat/completions"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Inner:
    """An application that reads its request's body, answers 200 with it once `open` is set, and counts both."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, scope, receive, send) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        self.bodies.append(b"".join(parts))
        await self.open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def guarding(inner: Any, **settings: Any) -> tuple[Guard, Budget]:
    made = Settings(notice="n", **settings)
    budget = Budget(made.limits.total_bytes)
    return Guard(inner, made, Metrics(), {PATH}, lambda: True, budget), budget


async def post(guard: Guard, parts: list[bytes], headers: dict[str, bytes] | None = None, pause: float = 0.0) -> int:
    """The status that a request with a body of these parts gets; headers as the bytes that were sent."""
    waiting, statuses = list(parts), []

    async def receive():
        await asyncio.sleep(pause)
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    given = {"host": b"localhost:8000", **(headers or {})}
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(k.encode(), v) for k, v in given.items()]}
    await guard(scope, receive, send)
    return statuses[0]


def test_a_slow_body_is_not_waited_for():
    async def never(scope, receive, send):
        raise AssertionError("a request without its body came through")

    guard, budget = guarding(never, limits=Limits(body_seconds=0.1))
    assert asyncio.run(post(guard, [b"x"] * 100, pause=0.02)) == 408
    assert budget.used == 0


@pytest.mark.parametrize("sizes", [[0], [1], [MEBIBYTE, MEBIBYTE], [MEBIBYTE - 1, 2, 3], [100_000] * 15])
def test_a_body_arrives_as_it_was_sent(sizes):
    async def run():
        inner = Inner()
        guard, _ = guarding(inner, limits=Limits(body_mb=2))
        parts = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
        assert await post(guard, parts) == 200
        assert inner.bodies == [b"".join(parts)]

    asyncio.run(run())


@pytest.mark.parametrize("declares", [True, False])
def test_all_bodies_together_have_a_limit(declares):
    """Ten requests of one MiB where three fit: the others are sent away before they are kept, and come in later."""

    async def run():
        inner = Inner()
        inner.open.clear()
        guard, budget = guarding(inner, limits=Limits(body_mb=1, total_mb=3))
        headers = {"content-length": str(MEBIBYTE).encode()} if declares else {}
        parts = [bytes(MEBIBYTE // 4)] * 4
        # Whoever says how much comes is sent away at once; else whoever's next part does not fit.
        several = [asyncio.ensure_future(post(guard, parts, headers)) for _ in range(10)]
        while len(inner.bodies) + sum(task.done() for task in several) < len(several):
            assert budget.used <= 3 * MEBIBYTE
            await asyncio.sleep(0)
        kept = len(inner.bodies)
        inner.open.set()
        statuses = await asyncio.gather(*several)
        assert statuses.count(200) == kept and statuses.count(429) == 10 - kept
        assert kept == 3 if declares else 1 <= kept <= 3
        assert budget.used == 0
        assert await post(guard, parts, headers) == 200
        assert await post(guard, [*parts, b"x"], headers) == 413

    asyncio.run(run())


def test_a_budget_below_one_body_is_a_mistake():
    with pytest.raises(ValueError, match="total-mb"):
        Limits(body_mb=8, total_mb=7)


@pytest.mark.parametrize("key", ["plain-key", "schl\u00fcssel", "\u937c"])  # pragma: allowlist secret
def test_a_key_of_any_characters_opens_as_utf8(key):
    async def run():
        guard, _ = guarding(Inner(), api_key=key)
        right = {"authorization": b"Bearer " + key.encode()}
        wrong = {"authorization": b"Bearer " + key.encode()[:-1]}
        return [await post(guard, [b""], headers) for headers in (right, wrong, {}, {"authorization": key.encode()})]

    assert asyncio.run(run()) == [200, 401, 401, 401]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (b"http://localhost:3000", 200),
        (b"http://127.0.0.1", 200),
        (b"http://[::1]:8000", 200),
        (b"https://attacker.example", 403),
        (b"http://localhost.attacker.example:8000", 403),
        (b"http://localhost@attacker.example", 403),
        (b"http://[", 403),
        (b"null", 403),
        (b"", 403),
    ],
)
def test_a_page_of_another_host_may_not_ask_a_server_of_this_machine(origin, status):
    headers = {} if origin is None else {"origin": origin}

    async def run(hosts):
        inner = Inner()
        guard, _ = guarding(inner, hosts=hosts)
        return await post(guard, [b""], headers), len(inner.bodies)

    assert asyncio.run(run(LOOPBACK)) == (status, status == 200)
    # A server for others has a key, which no page of others has.
    assert asyncio.run(run(None)) == (200, 1)
