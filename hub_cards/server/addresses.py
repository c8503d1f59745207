"""Images by http(s) address, for who turned that on: from public addresses only, at each redirect, in bounded bytes.

A host is resolved once, every address it has must be public, and the connection goes to the address that was checked:
a second answer of the name server, later, changes nothing. Proxies of the environment are not used. Everything waits
on the event loop, so that whoever cancels a fetch also ends its connection.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import httpcore

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
# Reserved or abandoned ranges that Python counted as public until some version.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network) for network in ("192.88.99.0/24", "64:ff9b:1::/48", "3fff::/20", "fec0::/10")
)

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
    if any(found in network for network in NOT_PUBLIC):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside one that a NAT64 gateway translates."""
    if address not in ipaddress.ip_network("64:ff9b::/96"):
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


class _CheckedConnections(httpcore.AnyIOBackend):
    """Connects to addresses that were checked; certificates are still verified by the host's name."""

    def __init__(self, allowed: Callable[[str], bool]):
        self._allowed = allowed

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        """A connection to the first address of a host whose addresses are all allowed."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise ValueError(f"{REFUSED}: its host has no IP address.") from None
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise ValueError(f"{REFUSED}: its host is not on the public internet.")
        return await super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


async def fetch(
    url: str,
    max_bytes: int,
    allowed: Callable[[str], bool] = is_public,
    grown: Callable[[int], object] | None = None,
) -> bytes:
    """The bytes behind an http(s) address. How long that may take is for the caller to say.

    Args:
        url: the address.
        max_bytes: more are refused.
        allowed: which IP addresses may be reached.
        grown: called with the number of bytes that have come, while they come; what it raises ends the fetch.

    Raises:
        ValueError: one sentence without the address, if it leads anywhere else than to a public host, redirects too
            often, answers anything but 200, or is too large.
    """
    connections = httpcore.AsyncConnectionPool(
        ssl_context=ssl.create_default_context(), network_backend=_CheckedConnections(allowed)
    )
    async with connections:
        for _ in range(MAX_REDIRECTS + 1):
            target, host = _target(url)
            headers = [("Host", host), ("Accept", "image/*, */*"), ("User-Agent", "unimedvl")]
            try:
                async with connections.stream("GET", target, headers=headers) as response:
                    if response.status in REDIRECTS:
                        answered = {name.lower(): value for name, value in response.headers}
                        url = urljoin(url, answered.get(b"location", b"").decode("latin-1"))
                        continue
                    if response.status != 200:
                        raise ValueError(f"{REFUSED}: its server answered {response.status}.")
                    return await _body(response, max_bytes, grown)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
                name = type(error).__name__
                raise ValueError(f"{REFUSED} ({name}): send the image itself, as a data URI.") from None
    raise ValueError(f"{REFUSED}: it redirects more than {MAX_REDIRECTS} times.")


async def _body(response: httpcore.Response, max_bytes: int, grown: Callable[[int], object] | None) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_stream():
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"{REFUSED}: it holds more than {max_bytes >> 20} MiB.")
        if grown is not None:
            grown(len(content))
    return bytes(content)


def _target(url: str) -> tuple[httpcore.URL, str]:
    """An address, and the name of its host and port as a header has it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        name = (host or "").encode("idna")
    except ValueError:
        raise ValueError(f"{REFUSED}: it is malformed.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{REFUSED}: it is no http or https address.")
    if parts.username is not None:
        raise ValueError(f"{REFUSED}: it holds a user name.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not (path.isascii() and path.isprintable() and " " not in path):
        raise ValueError(f"{REFUSED}: it holds characters that an address has to escape.")
    shown = f"[{name.decode()}]" if b":" in name else name.decode()
    target = httpcore.URL(scheme=parts.scheme.encode(), host=name, port=port, target=path.encode())
    return target, shown if port is None else f"{shown}:{port}"
