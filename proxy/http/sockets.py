"""Sockets: opening a port for incoming connections, and looking at one that is connected."""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


async def open_port(  # noqa: PLR0913 -- as a loop's create_server
    protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    backlog: int,
    tls: ssl.SSLContext | None = None,
    handshake_timeout: float,
) -> asyncio.Server:
    """Listen there; each connection gets a protocol. Raises OSError.

    The unspecified IPv6 address serves IPv4 as well, as it does for most servers; asyncio by itself
    would limit it to IPv6.
    """
    loop = asyncio.get_running_loop()
    seconds = None if tls is None else handshake_timeout
    if host == "::" and socket.has_dualstack_ipv6():
        both = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
        return await loop.create_server(
            protocol, sock=both, backlog=backlog, ssl=tls, ssl_handshake_timeout=seconds
        )
    return await loop.create_server(
        protocol, host, port, backlog=backlog, ssl=tls, ssl_handshake_timeout=seconds
    )


def poll_of(transport: asyncio.BaseTransport, events: int) -> select.poll:
    """Return what tells of these events even before the event loop has noticed them.

    Its descriptor is the socket's: once the transport is closed, another's may have that number.
    """
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), events)
    return poll


def authority(host: str, port: int) -> str:
    """Return host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
