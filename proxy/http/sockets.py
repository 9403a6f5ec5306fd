"""Sockets: opening a port for incoming connections, and settings of the kernel.

The kernel probes a waiting caller, bounds how long a caller takes no bytes, and knows which ones
hung up.
"""

import asyncio
import os
import select
import socket
from collections.abc import Callable
from typing import Final

CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
# A caller may wait for an hour, and NAT forgets a connection without traffic after some minutes.
# The probes keep it known; a caller that vanished is noticed within a minute.
KEEPALIVE_IDLE: Final = 30  # seconds without a byte until the first probe
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_TRIES: Final = 3
# Two probes unanswered: the kernel's long timers are a second or two late (kernel/time/timer.c), so
# with the third one the minute would be over.
VANISHED: Final = float(KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * (KEEPALIVE_TRIES - 1))  # seconds

# tcp(7); other systems call the first one otherwise, or know fewer of them.
_IDLE: Final = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_PROBES: Final = (
    (_IDLE, KEEPALIVE_IDLE),
    (getattr(socket, "TCP_KEEPINTVL", None), KEEPALIVE_INTERVAL),
    (getattr(socket, "TCP_KEEPCNT", None), KEEPALIVE_TRIES),
)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux; tcp(7)


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


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel probe an idle peer, and end a connection whose peer is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES:
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class BorrowedSocket(socket.socket):
    """The socket of a transport, to set options of it often; it never closes it.

    A transport of uvloop makes a socket object for each option that is set. Once the transport is
    closed, another socket may have the descriptor: then set nothing more.
    """

    __slots__ = ()

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        super().__init__(fileno=transport.get_extra_info("socket").fileno())

    def __del__(self) -> None:
        self.detach()


def bound_silence(connection: socket.socket, seconds: float) -> None:
    """Make the kernel end the connection of a peer that acknowledges nothing for that long.

    So it also ends if all is written and closed, and only the peer's window blocks it. The time
    replaces the number of keepalive probes, too (tcp(7)).
    """
    if _TCP_USER_TIMEOUT is not None:
        milliseconds = max(1, int(seconds * 1000))
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, milliseconds)


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
