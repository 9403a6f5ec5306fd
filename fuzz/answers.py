"""What a connection makes of the bytes of an answer, however they come; no sockets.

The check: whole, in two pieces, in small ones or one byte at a time, an answer has one outcome.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiohttp.http import HttpProcessingError

from proxy.http.connection import Connection
from proxy.http.reading import Limits
from proxy.http.received import Response

_LIMITS: Final = Limits(60.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far it came: `whole`, `unfinished`, `broken` off in the body, or not even a head."""

    heard: str
    status: int = 0
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    may_be_used_again: bool = False


class _Transport(asyncio.Transport):
    """Takes what is written and goes nowhere."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._is_closing = False

    def write(self, data: Any) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._connection.connection_lost(None)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def outcome_of(pieces: Iterable[bytes], *, has_body: bool, is_closed: bool) -> Outcome:
    """Return what comes of these pieces, all of which come before the reader looks."""
    connection = Connection(_LIMITS)
    transport = _Transport(connection)
    connection.connection_made(transport)
    connection.ask(b"", has_body=has_body)
    for piece in pieces:
        connection.data_received(piece)
    may_be_used_again = connection.is_reusable()
    if is_closed:
        transport.abort()
    try:
        if connection.is_waiting:
            return Outcome("nothing yet")
        message, content = await connection.answer()
        answer = Response(message, content, lambda: None)
        status, fields = message.code, message.raw_headers
        if not answer.is_complete:
            return Outcome("broken" if content.exception() else "unfinished", status, fields)
        return Outcome("whole", status, fields, answer.read_nowait(), may_be_used_again)
    except HttpProcessingError:
        return Outcome("not HTTP")
    except OSError:
        return Outcome("lost")
    finally:
        transport.abort()


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Return the data in two pieces, in pieces of seven bytes and of one."""
    yield from ([data[:at], data[at:]] for at in {len(data) // 3, len(data) // 2, len(data) - 1})
    yield [data[at : at + 7] for at in range(0, len(data), 7)]
    yield [data[at : at + 1] for at in range(len(data))]


def check_answer(data: bytes) -> None:
    """An answer has one outcome, wherever it is cut; the first byte chooses what was asked."""
    if not data:
        return
    has_body, is_closed, sent = bool(data[0] & 1), bool(data[0] & 2), data[1:]

    async def check() -> None:
        whole = await outcome_of([sent], has_body=has_body, is_closed=is_closed)
        for pieces in ways_to_cut(sent):
            cut = await outcome_of(filter(None, pieces), has_body=has_body, is_closed=is_closed)
            assert cut == whole, (pieces, cut, whole)

    asyncio.run(check())
