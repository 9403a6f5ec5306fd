"""Sockets: opening a port for incoming connections, and asking the kernel about a connection."""

import asyncio
import os
import select
import socket
from collections.abc import Callable
from typing import Final

CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


async def open_port(
    protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    backlog: int,
    is_serving: bool = True,
) -> asyncio.Server:
    """Listen there; each connection gets a protocol. Raises OSError.

    The unspecified IPv6 address serves IPv4 as well, as it does for most servers; asyncio by itself
    would limit it to IPv6.
    """
    loop = asyncio.get_running_loop()
    if host == "::" and socket.has_dualstack_ipv6():
        both = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
        return await loop.create_server(
            protocol, sock=both, backlog=backlog, start_serving=is_serving
        )
    return await loop.create_server(protocol, host, port, backlog=backlog, start_serving=is_serving)


async def open_sockets(host: str, port: int, *, backlog: int) -> list[socket.socket]:
    """Return the listening sockets of a port whose connections the caller accepts itself."""
    server = await open_port(asyncio.Protocol, host, port, backlog=backlog, is_serving=False)
    opened = [socket.socket(fileno=os.dup(one.fileno())) for one in server.sockets]
    server.close()
    for one in opened:
        one.settimeout(0)
        one.listen(backlog)
    return opened


def poll_of(transport: asyncio.BaseTransport, events: int) -> select.poll:
    """Return a poll that sees these events even before the event loop has noticed them.

    It uses the socket's descriptor: once the transport is closed, another may have that number.
    """
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), events)
    return poll


def authority(host: str, port: int) -> str:
    """Return host and port as in a URL, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
