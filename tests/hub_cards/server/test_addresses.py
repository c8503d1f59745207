"""Images by address: from public hosts only, at every redirect, in bounded bytes and time."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.hub_cards.server.running import conversation, png_bytes, serving
from unimedvl.hub_cards.server.addresses import fetch, is_public


class Redirecting(BaseHTTPRequestHandler):
    """Answers `/go?address` with a redirect, `/large` without end, everything else with an image."""

    seen: list[str] = []

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
        try:
            self.wfile.write(png_bytes())
            while place == "/large":
                self.wfile.write(b"x" * 65_536)
            while place == "/slow":
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            return

    def log_message(self, *arguments):
        return


@pytest.fixture(scope="module")
def web():
    # All of 127.0.0.0/8 is this machine: 127.0.0.2 takes the part of a public host, 127.0.0.1 that of a private one.
    httpd = HTTPServer(("0.0.0.0", 0), Redirecting)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd.server_port
    httpd.shutdown()
    httpd.server_close()


def test_addresses_are_followed_only_to_public_hosts(web):
    public, private = f"http://127.0.0.2:{web}", f"http://127.0.0.1:{web}"

    def get(url: str, size: int = 1 << 20) -> bytes:
        return fetch(url, size, allowed=lambda address: address == "127.0.0.2", seconds=2)

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
    started = time.monotonic()
    with pytest.raises(ValueError, match="cannot be fetched"):
        get(f"{public}/slow")
    assert time.monotonic() - started < 4


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
