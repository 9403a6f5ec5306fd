"""The socket of a connection whose peer may wait for an hour, and may vanish meanwhile.

The kernel knows first if the peer hung up, probes it while nothing is sent, and ends the connection
of one that acknowledges nothing.
"""

import asyncio
import select
import socket
from typing import Final

from proxy.http.sockets import CLOSED, poll_of

# NAT forgets a connection without traffic after some minutes. The probes keep it known; a peer that
# vanished is noticed within a minute.
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


class PeerSocket:
    """Asks and tells the kernel about the peer of one transport, until that is lost."""

    __slots__ = ("_poll", "_silence", "_socket", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport: asyncio.Transport | None = transport
        self._socket = _BorrowedSocket(transport)
        self._poll: select.poll | None = None
        self._silence = 0.0  # seconds in which the peer may acknowledge nothing
        self._keep_alive()
        self.bound_silence(VANISHED)

    def is_present(self) -> bool:
        """True if the peer has not closed, as the kernel says in this very moment."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if self._poll is None:
            self._poll = poll_of(transport, CLOSED)
        return not self._poll.poll(0)

    def bound_silence(self, seconds: float) -> None:
        """Make the kernel end the connection of a peer that acknowledges nothing for that long.

        So it also ends if all is written and closed, and only the peer's window blocks it. The time
        replaces the number of keepalive probes, too (tcp(7)).
        """
        if seconds != self._silence and self._transport is not None:
            self._silence = seconds
            if _TCP_USER_TIMEOUT is not None:
                milliseconds = max(1, int(seconds * 1000))
                self._socket.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, milliseconds)

    def lose(self) -> None:
        """Note that the transport is lost: from now on another socket may have its descriptor."""
        self._transport = None

    def _keep_alive(self) -> None:
        """Let the kernel probe an idle peer, and end the connection if it is gone."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES:
            if option is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)


class _BorrowedSocket(socket.socket):
    """The socket of a transport, to set options of it often; it never closes it.

    A transport of uvloop makes a socket object for each option that is set.
    """

    __slots__ = ()

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        super().__init__(fileno=transport.get_extra_info("socket").fileno())

    def __del__(self) -> None:
        self.detach()
