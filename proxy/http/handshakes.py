"""The listen port over TLS: connections are accepted, and become callers after their handshake.

The event loop's own TLS server reports neither a failed handshake nor a connection whose handshake
is under way. So this one accepts connections itself: it asks `admission` first, then waits for the
first byte and lets the loop do the handshake, all within `header_timeout`.

A peer that closes without a byte (a health check, a browser's spare connection) is not a failure.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from proxy.deadlines import time_limit
from proxy.http.admission import Admission, Place

_AT_A_TIME: Final = 32  # connections accepted before the loop goes on
_LATER: Final = 60.0  # seconds, by which our own time limit comes before the loop's
_PAUSE: Final = 1.0  # seconds without accepting when the kernel has no descriptor left


class TlsServer:
    """Accepts connections on `sockets`, and gives each that speaks TLS a protocol."""

    def __init__(
        self,
        sockets: list[socket.socket],
        context: ssl.SSLContext,
        admission: Admission,
        *,
        protocol: Callable[[Place], asyncio.BaseProtocol],
        timeout: Callable[[], float],
    ) -> None:
        self.sockets = sockets
        self.context = context
        self._admission = admission
        self._protocol = protocol
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        for listening in sockets:
            self._resume(listening)

    def close(self) -> None:
        """Accept no further connections; handshakes under way go on."""
        for timer in self._timers.values():
            timer.cancel()
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self.sockets = []

    async def give_up(self) -> None:
        """End the handshakes under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _resume(self, listening: socket.socket) -> None:
        self._timers.pop(listening.fileno(), None)
        self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_A_TIME):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # EMFILE, ENFILE, ENOBUFS or ENOMEM; the port stays readable
                self._admission.on_refused("descriptor")
                self._loop.remove_reader(listening)
                timer = self._loop.call_later(_PAUSE, self._resume, listening)
                self._timers[listening.fileno()] = timer
                return
            peer = str(address[0])
            place = self._admission.take(peer, accepted.fileno())
            if place is None:
                accepted.close()
                continue
            accepted.settimeout(0)
            task = self._loop.create_task(self._shake_hands(accepted, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, accepted: socket.socket, place: Place) -> None:
        """Do the handshake; the resulting connection takes over the place."""
        seconds = self._timeout()
        deadline = self._loop.time() + seconds
        is_done = is_silent = False
        try:
            async with time_limit(seconds):
                is_silent = not await self._first_byte(accepted)
            if not is_silent:
                left = deadline - self._loop.time()
                if left <= 0:  # the process stood still; the peer still needs our answer
                    left = self._timeout()
                async with time_limit(left):
                    await self._loop.connect_accepted_socket(
                        lambda: self._protocol(place),
                        accepted,
                        ssl=self.context,
                        ssl_handshake_timeout=left + _LATER,
                    )
                is_done = True
        except OSError:  # ssl.SSLError and TimeoutError are of this kind
            self._admission.on_refused("handshake")
        finally:
            if not is_done:
                accepted.close()
                place.give_back()

    async def _first_byte(self, accepted: socket.socket) -> bool:
        """Wait for the first byte; False if the peer closed instead. Raises OSError."""
        readable = self._loop.create_future()
        self._loop.add_reader(accepted, _wake, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(accepted)
        try:
            return bool(accepted.recv(1, socket.MSG_PEEK))
        except ConnectionResetError:
            return False


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
