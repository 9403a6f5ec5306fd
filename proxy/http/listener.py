"""The server of one port: which connections it accepts, and how they end.

Two ports use it, and differ in one thing. If there are too many connections, the listen port
refuses a new one. The admin port closes the oldest one instead, so that no peer can keep operators
out by holding connections.

`admission.py` says how many connections are accepted, and from whom; `caller.py` what a connection
may do; `room.py` how much memory the bytes of all callers may take.

It is our own server and not the HTTP library's. It protects in these ways:

=========================  =====================================================================
a slow head, idleness      closed unanswered at `header_timeout`; dripping does not prolong it
a slow body                `body_timeout` in all, then 408 (`bodies.py`)
a slow TLS handshake       `header_timeout` (`handshakes.py`)
a caller that takes nothing the kernel ends the connection after `write_timeout`
a caller that vanished     the kernel probes it while it waits, and ends the connection in a minute
keep-alive                 as the caller's version and `Connection` say; never behind an answer that
                           left before its request had come whole
pipelining                 one request at a time, in order; bounded bytes behind it, then no reading
lingering                  two seconds after a last answer, so that it arrives
a parser's refusal         400 or 431 in our words, nothing repeated, nothing logged
a caller that goes away    the handler's task is cancelled
half an answer             never followed by another one: the connection is aborted
a handler that fails       500 in our words, if nothing is written yet
shutdown                   idle connections close at once; what is under way, or has not left, gets
                           some time, then its task is cancelled and the connection aborted
=========================  =====================================================================
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate

from proxy.clock import Clock
from proxy.http.admission import Admission, Place
from proxy.http.caller import CallerConnection
from proxy.http.framing import Asked, frame
from proxy.http.handshakes import TlsServer
from proxy.http.request import Request
from proxy.http.responses import problem_answer
from proxy.http.room import Room
from proxy.http.sockets import open_port, open_sockets
from proxy.problems import Problem
from proxy.rules.shares import Reason
from proxy.settings import Limits

Handle = Callable[[Request], Awaitable[None]]


class Listener:
    """Takes connections, and hands each request to `handle`, which answers it.

    `write_timeout` is for how many seconds a caller may take nothing of an answer; `on_refused`
    gets the reason for each refused connection.
    """

    def __init__(
        self,
        handle: Handle,
        room: Room,
        *,
        clock: Clock,
        write_timeout: float = 60.0,
        on_refused: Callable[[Reason], None] = lambda _: None,
    ) -> None:
        self.handle = handle
        self.room = room
        self.write_timeout = write_timeout
        self.is_closing = False
        self._clock = clock
        self._date = (0, "")
        self._connections: dict[CallerConnection, None] = {}  # the oldest is the first
        self.admission = Admission(lambda: room.limits, on_refused)
        self._all_gone = asyncio.Event()
        self._server: asyncio.Server | TlsServer | None = None
        self._handshakes: TlsServer | None = None

    def apply(self, *, write_timeout: float, tls: ssl.SSLContext | None = None) -> None:
        """Obey it from the next connection on; limits are those of `room`."""
        self.write_timeout = write_timeout
        if tls is not None and self._handshakes is not None:
            self._handshakes.context = tls

    @property
    def limits(self) -> Limits:
        """The limits it obeys."""
        return self.room.limits

    @property
    def connections(self) -> int:
        """How many connections there are, including those with a handshake under way."""
        return self.admission.held

    @property
    def is_delivering(self) -> bool:
        """True while some of an answer has not left for its caller."""
        return any(one.is_delivering for one in self._connections)

    async def listen(
        self, host: str, port: int, *, backlog: int, tls: ssl.SSLContext | None = None
    ) -> int:
        """Open the port, and return which one it is. Raises OSError."""
        if tls is None:
            self._server = await open_port(
                lambda: CallerConnection(self), host, port, backlog=backlog
            )
        else:
            self._server = self._handshakes = TlsServer(
                await open_sockets(host, port, backlog=backlog),
                tls,
                self.admission,
                protocol=lambda place: CallerConnection(self, place),
                timeout=lambda: self.limits.header_timeout,
            )
        return int(self._server.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """Accept no further connections; the open ones go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self, seconds: float) -> None:
        """End all connections; requests under way get `seconds` twice: to end, and once told to.

        What is written of answers has the same time to leave.
        """
        self.stop_listening()
        self.is_closing = True
        if self._handshakes is not None:
            await self._handshakes.give_up()
        for connection in tuple(self._connections):
            connection.close()
        await self._ended(seconds)
        for connection in tuple(self._connections):
            if connection.task is not None:
                connection.task.cancel()
        last_moment = asyncio.get_running_loop().time() + seconds
        await self._ended(seconds)
        for connection in tuple(self._connections):
            connection.close()
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(last_moment):
                    await self._all_gone.wait()
        for connection in tuple(self._connections):
            if connection.transport is not None:
                connection.transport.abort()
        if self._connections:
            await self._all_gone.wait()

    def take(self, peer: str, descriptor: int) -> Place | None:
        """Count a connection of that address; None if it is one too many."""
        return self.admission.take(peer, descriptor)

    def admit(self, connection: CallerConnection) -> None:
        """Keep a connection that has been counted."""
        self._connections[connection] = None
        self._all_gone.clear()

    def forget(self, connection: CallerConnection) -> None:
        """Note that a connection is gone."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._all_gone.set()

    def date(self) -> str:
        """Return the time, as a Date field has it."""
        now = int(self._clock.wall())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]

    def refusal(self, problem: Problem, request_id: str) -> bytes:
        """Return the last answer of a connection, to what is no request."""
        answer = problem_answer(problem, request_id)
        asked = Asked("GET", knows_chunks=False, stays=False, idle_seconds=0)
        fields = [*answer.fields, ("Content-Length", str(len(answer.body)))]
        head = frame(asked, answer.status, answer.reason, fields, self.date())
        return head.data + answer.body

    async def _ended(self, seconds: float) -> None:
        tasks = [one.task for one in self._connections if one.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)


class NewestServed(Listener):
    """Takes each connection, without TLS; if there are too many, the oldest gives way.

    Of those that ask nothing, if there are any: so what is asked is answered.
    """

    def take(self, peer: str, descriptor: int) -> Place:  # noqa: ARG002 -- some are kept for it
        """Count a connection of that address, if necessary instead of another one."""
        if self.connections >= self.limits.max_connections:
            held = [one for one in self._connections if one.is_counted]
            idle = [one for one in held if one.is_idle]
            (idle or held)[0].give_way()
        return self.admission.count(peer)
