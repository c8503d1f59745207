"""Images by http(s) address, for who turned that on: from public addresses only, at each redirect, in bounded bytes.

A host is resolved once, every address it has must be public, and the connection goes to the address that was checked:
a second answer of the name server, later, changes nothing. Proxies of the environment are not used.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

MAX_REDIRECTS = 3
SECONDS = 30.0
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16

REFUSED = "The address of an image cannot be fetched"


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet: not private, loopback, link-local or reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or _translated(found)
        if found.teredo is not None:
            return False
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside one that a NAT64 gateway translates."""
    if address not in ipaddress.ip_network("64:ff9b::/96"):
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def fetch(url: str, max_bytes: int, allowed: Callable[[str], bool] = is_public, seconds: float = SECONDS) -> bytes:
    """The bytes behind an http(s) address.

    Args:
        url: the address.
        max_bytes: more are refused.
        allowed: which IP addresses may be reached.
        seconds: for everything together.

    Raises:
        ValueError: one sentence without the address, if it leads anywhere else than to a public host, redirects too
            often, answers anything but 200, is too large or takes too long.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        connection, target = _prepared(url, allowed, deadline)
        # A server that drips bytes never runs into the time limit of one read.
        cut = threading.Timer(max(deadline - time.monotonic(), 0.0), _cut, [connection])
        cut.start()
        try:
            connection.request("GET", target, headers={"Accept": "image/*, */*", "User-Agent": "unimedvl"})
            response = connection.getresponse()
            if response.status in REDIRECTS:
                url = urljoin(url, response.headers.get("Location", ""))
                continue
            if response.status != 200:
                raise ValueError(f"{REFUSED}: its server answered {response.status}.")
            return _body(response, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{REFUSED} ({type(error).__name__}): send the image itself, as a data URI.") from None
        finally:
            cut.cancel()
            connection.close()
    raise ValueError(f"{REFUSED}: it redirects more than {MAX_REDIRECTS} times.")


def _cut(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"{REFUSED}: it holds more than {max_bytes >> 20} MiB.")
        if time.monotonic() > deadline:
            raise ValueError(f"{REFUSED}: it takes too long.")
    return bytes(content)


def _prepared(url: str, allowed: Callable[[str], bool], deadline: float) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{REFUSED}: it is malformed.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{REFUSED}: it is no http or https address.")
    if parts.username is not None:
        raise ValueError(f"{REFUSED}: it holds a user name.")
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"{REFUSED}: its host has no IP address.") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(allowed, addresses)):
        raise ValueError(f"{REFUSED}: its host is not on the public internet.")
    remaining = max(deadline - time.monotonic(), 0.001)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=remaining, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=remaining)

    def create(place, timeout=None, source_address=None):
        return socket.create_connection((addresses[0], port), timeout=timeout, source_address=source_address)

    # The connection verifies certificates by the host's name, and reaches the address that was checked.
    connection._create_connection = create  # type: ignore[attr-defined]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        target.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError(f"{REFUSED}: it holds characters that an address has to escape.") from None
    return connection, target
