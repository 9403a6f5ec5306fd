"""Bytes of a caller, given to a connection of the listen port on a transport that only records.

What becomes of them must not depend on how they are cut, and whatever is answered must be HTTP as
another library reads it.
"""

import asyncio
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

import h11

from proxy.clock import SystemClock
from proxy.http.bodies import Bodies
from proxy.http.caller import CallerConnection
from proxy.http.listener import Listener
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer, problem_answer
from proxy.problems import Problem
from proxy.settings import Limits

MAX_HEADER: Final = 300
MAX_BODY: Final = 100
_DESCRIPTOR: Final = socket.socket().detach()  # made first, so that it is not one too many
_STEPS: Final = 12  # of the loop, more than any request needs
_VARIABLE: Final = re.compile(
    rb'(?<=\r\nX-Request-Id: )[0-9a-f]+|(?<="instance": ")[0-9a-f]+|(?<=\r\nDate: )[^\r]+'
)


class Transport:
    """Records what is written; what is given while reading is paused waits."""

    def __init__(self) -> None:
        self.written = b""
        self.is_paused = False
        self.is_closed = False

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else self

    def fileno(self) -> int:
        return _DESCRIPTOR

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written after the close"
        self.written += data

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


@dataclass(frozen=True)
class Outcome:
    """What the handler saw, what was written, and whether the connection ended."""

    seen: tuple[tuple[str, str, bytes | str], ...]
    written: bytes
    is_closed: bool


@dataclass
class _Server:
    """Reads each body and answers with what it saw."""

    seen: list[tuple[str, str, bytes | str]] = field(default_factory=list)
    bodies: Bodies = field(
        default_factory=lambda: Bodies(Limits(max_header=MAX_HEADER, max_body=MAX_BODY))
    )

    async def handle(self, request: Request) -> None:
        try:
            body = await self.bodies.read(request)
        except Problem as problem:
            self.seen.append((request.method, request.target, problem.name))
            request.answer(problem_answer(problem, "id"))
        else:
            self.seen.append((request.method, request.target, body))
            if request.method == "CONNECT":  # never taken, and the end of HTTP if it were
                request.answer(problem_answer(Problem("method-not-allowed", "No.", close=True), ""))
                return
            request.answer(OwnAnswer(200, "", [("X-Seen", str(len(self.seen)))], body))


async def outcome_of(pieces: Iterator[bytes]) -> Outcome:
    """Give the pieces to a connection, one after the other."""
    server, transport = _Server(), Transport()
    listener = Listener(server.handle, server.bodies.room, clock=SystemClock())
    connection = CallerConnection(listener)
    connection.connection_made(cast("asyncio.Transport", transport))
    for piece in pieces:
        connection.data_received(piece)
        for _ in range(_STEPS):
            await asyncio.sleep(0)  # noqa: TID251 -- yields, and waits for no clock
            if not transport.is_paused and connection.is_idle:
                break
    for _ in range(_STEPS):
        await asyncio.sleep(0)  # noqa: TID251 -- likewise
    outcome = Outcome(
        tuple(server.seen),
        _VARIABLE.sub(lambda found: b"0" * len(found[0]), transport.written),
        transport.is_closed,
    )
    task = connection.task
    connection.connection_lost(None)
    if task is not None:
        await asyncio.wait([task])
    assert server.bodies.room.taken == 0, "bytes of a connection that is gone are still counted"
    return outcome


def check_caller(data: bytes) -> None:
    """Whole, cut in two, or byte by byte: the outcome is the same, and what is written is HTTP."""
    with asyncio.Runner() as runner:
        whole = runner.run(outcome_of(iter([data])))
        single = runner.run(outcome_of(data[i : i + 1] for i in range(len(data))))
        cut = sum(data) % (len(data) + 1)
        halves = runner.run(outcome_of(iter([data[:cut], data[cut:]])))
    assert whole == single, (whole, single)
    assert whole == halves, (whole, halves, cut)
    check_written(whole)


def check_written(outcome: Outcome) -> None:
    """What was written is one answer to each request, and at most one refusal behind them."""
    rest = outcome.written
    methods = [method for method, _, _ in outcome.seen]
    for method in methods:
        rest = _without_answer(rest, method)
    if rest:
        assert outcome.is_closed
        rest = _without_answer(rest, "GET")
    assert rest in {b"", b"HTTP/1.1 100 Continue\r\n\r\n"}, rest


def _without_answer(written: bytes, method: str) -> bytes:
    """Read one answer; return what is behind it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(written)
    client.receive_data(b"")
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA, written
        assert event is not h11.PAUSED, written
        assert not isinstance(event, h11.ConnectionClosed), written
    return client.trailing_data[0]
