"""Images by address: from public hosts only, at every redirect, in bounded bytes and time, beside all other work."""

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.hub_cards.server.running import conversation, png_bytes, serving
from unimedvl.hub_cards.server import inputs
from unimedvl.hub_cards.server.addresses import fetch, is_public
from unimedvl.hub_cards.server.budget import Budget
from unimedvl.hub_cards.server.errors import ApiError
from unimedvl.hub_cards.server.inputs import Inputs
from unimedvl.hub_cards.server.requests import ChatBody
from unimedvl.hub_cards.server.settings import Settings


class Redirecting(BaseHTTPRequestHandler):
    """Answers `/go?address` with a redirect, `/large` and `/slow` without end, everything else with an image."""

    seen: list[str] = []
    open = 0

    def do_GET(self):
        self.seen.append(self.path)
        place, _, target = self.path.partition("?")
        if place == "/go":
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        type(self).open += 1
        try:
            self.wfile.write(png_bytes())
            while place == "/large":
                self.wfile.write(b"x" * 65_536)
            while place == "/slow":
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            return
        finally:
            type(self).open -= 1

    def log_message(self, *arguments):
        return


@pytest.fixture(scope="module")
def web():
    # All of 127.0.0.0/8 is this machine: 127.0.0.2 takes the part of a public host, 127.0.0.1 that of a private one.
    httpd = ThreadingHTTPServer(("0.0.0.0", 0), Redirecting)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd.server_port
    httpd.shutdown()
    httpd.server_close()


def test_addresses_are_followed_only_to_public_hosts(web):
    public, private = f"http://127.0.0.2:{web}", f"http://127.0.0.1:{web}"

    def get(url: str, size: int = 1 << 20) -> bytes:
        return asyncio.run(fetch(url, size, allowed=lambda address: address == "127.0.0.2"))

    assert (
        get(f"{public}/a.png") == get(f"{public}/go?/a.png") == get(f"{public}/go?{public}/go?/a.png") == png_bytes()
    )
    before = len(Redirecting.seen)
    for target in (private, f"http://localhost:{web}", f"http://[::ffff:127.0.0.1]:{web}", f"http://2130706433:{web}"):
        with pytest.raises(ValueError, match="not on the public internet|no IP address"):
            get(f"{target}/a.png")
        with pytest.raises(ValueError, match="not on the public internet|no IP address"):
            get(f"{public}/go?{target}/a.png")
    # Only the redirects themselves were asked for.
    assert all(path.startswith("/go") for path in Redirecting.seen[before:])
    for target in ("file:///etc/passwd", "ftp://127.0.0.2/a", "http://user@127.0.0.2/a", "http://", "http://a:b/"):
        with pytest.raises(ValueError, match="cannot be fetched"):
            get(f"{public}/go?{target}")
    with pytest.raises(ValueError, match="redirects more than"):
        get(f"{public}/go?" * 6 + "/a.png")
    with pytest.raises(ValueError, match="more than"):
        get(f"{public}/large")


def asked(*addresses: str):
    return ChatBody(messages=conversation("What is it?", *addresses)).conversation()


def fetching(budget: int = 1 << 20) -> Inputs:
    """Inputs that fetch from 127.0.0.2 only."""
    return Inputs(
        Settings(notice="n", allow_url=True), 1 << 20, Budget(budget), allowed=lambda address: address == "127.0.0.2"
    )


def test_all_addresses_of_a_request_have_one_deadline(web, monkeypatch):
    monkeypatch.setattr(inputs, "FETCH_SECONDS", 1.0)
    reader, addresses = (
        fetching(),
        [f"http://127.0.0.2:{web}/{name}" for name in ("a.png", "slow", "slow?2", "slow?3")],
    )

    async def run():
        with reader.budget.share() as share:
            return await reader.fetched(asked(*addresses), share)

    started = time.monotonic()
    with pytest.raises(ValueError, match="takes too long"):
        asyncio.run(run())
    assert 0.9 < time.monotonic() - started < 2.5
    addresses = addresses[:1] * 2
    assert asyncio.run(run()) == {addresses[0]: png_bytes()}
    assert reader.budget.used == 0


def test_slow_addresses_hold_up_nobody_and_end_when_nobody_waits(web):
    async def run():
        reader = fetching()
        with reader.budget.share() as share:
            slow = [
                asyncio.ensure_future(reader.fetched(asked(f"http://127.0.0.2:{web}/slow?{n}"), share))
                for n in range(8)
            ]
            while Redirecting.open < len(slow):
                await asyncio.sleep(0.02)
            started = time.monotonic()
            assert await reader.run(lambda: "read") == "read"
            assert time.monotonic() - started < 0.5
            for task in slow:
                task.cancel()
            await asyncio.wait(slow, timeout=2)
            assert all(task.cancelled() for task in slow)
        while Redirecting.open:
            assert time.monotonic() - started < 5
            await asyncio.sleep(0.02)

    asyncio.run(run())


def test_what_is_fetched_counts_among_the_bytes_that_the_server_holds(web):
    async def run():
        reader = fetching(budget=len(png_bytes()) * 2)
        address = f"http://127.0.0.2:{web}"
        with reader.budget.share() as share:
            await reader.fetched(asked(f"{address}/a.png"), share)
            assert reader.budget.used == len(png_bytes())
            with reader.budget.share() as other:
                with pytest.raises(ApiError) as raised:
                    await reader.fetched(asked(f"{address}/b.png", f"{address}/c.png"), other)
        return raised.value.status, reader.budget.used

    assert asyncio.run(run()) == (429, 0)


def test_no_image_is_opened_after_its_client_left():
    async def run():
        reader, opened, cancelled = fetching(), [], threading.Event()

        def read(reading):
            opened.append(reading.open(png_bytes(), None))
            cancelled.wait(5)
            with pytest.raises(ApiError, match="left"):
                reading.open(png_bytes(), None)
            opened.append("refused")

        task = asyncio.ensure_future(reader.read(read))
        while not opened:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        cancelled.set()
        while len(opened) < 2:
            await asyncio.sleep(0.01)
        assert opened[1] == "refused"

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a00:1::", False),
        ("2001:0:a00:1::1", False),
        ("192.88.99.1", False),
        ("64:ff9b:1::808:808", False),
        ("3fff::1", False),
        ("fec0::1", False),
        ("::ffff:192.88.99.1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


@pytest.mark.medium
def test_a_server_that_fetches_reaches_no_private_host(tmp_path, web):
    with serving(tmp_path, ["--allow-url"]) as server, server.http() as client:
        before = len(Redirecting.seen)
        for address in (f"http://127.0.0.1:{web}/a.png", f"http://localhost:{web}/a.png", f"http://[::1]:{web}/a.png"):
            body = {"messages": conversation("What is it?", address)}
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 400 and "public internet" in response.json()["error"]["message"]
            assert str(web) not in response.text
        assert len(Redirecting.seen) == before
