"""The body of a request while it comes: framed, bounded, and kept until it is read.

The connection feeds it received bytes and gets back those behind the body. A body that is
malformed, too large, or without room has failed: its bytes are dropped, those still to come too,
and its reader gets the Problem. Such a body never becomes complete, so its connection closes with
the answer.
"""

import asyncio

from proxy.http.chunks import BadChunks, Chunks, TrailerTooLong
from proxy.http.room import Room
from proxy.problems import Problem


class IncomingBody:
    """One body; `length` is what Content-Length says, None for a chunked one."""

    __slots__ = (
        "_chunks",
        "_data",
        "_failure",
        "_left",
        "_limit",
        "_peer",
        "_room",
        "_waiter",
        "is_complete",
    )

    def __init__(self, room: Room, peer: str, length: int | None) -> None:
        limits = room.limits
        self.is_complete = False
        self._room = room
        self._peer = peer
        self._data: bytes | bytearray = b""
        self._failure: Problem | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._limit = limits.max_body
        self._left = length or 0
        self._chunks = Chunks(limits.max_header) if length is None else None
        if self._left > self._limit:
            self._fail(too_large(self._limit))

    @property
    def size(self) -> int:
        """How many of its bytes are kept."""
        return len(self._data)

    @property
    def has_failed(self) -> bool:
        """True if it will never be complete."""
        return self._failure is not None

    def bound(self, limit: int) -> None:
        """Lower the limit of its bytes to that many, if it is higher."""
        if limit < self._limit:
            self._limit = limit
            if self.size + self._left > limit:
                self._fail(too_large(limit))

    def feed(self, data: bytes) -> bytes:
        """Take the body's part of these bytes; return the bytes behind the body."""
        if self._failure is not None:
            return b""
        if self._chunks is None:
            left = self._left
            if len(data) > left:
                data, behind = data[:left], data[left:]
            else:
                behind = b""
            self._left = left - len(data)
            self._keep(data)
            if not self._left:
                self._complete()
            return behind
        try:
            data, behind = self._chunks.feed(data)
        except (BadChunks, TrailerTooLong) as fault:
            self._keep(fault.before)  # which may be too large already
            if self._failure is None:
                self._fail(self._problem_of(fault))
            return b""
        self._keep(data)
        if self._chunks.is_complete:
            self._complete()
        return behind

    async def whole(self) -> bytes:
        """Wait until it has come whole, and return it; raise the Problem if it has failed."""
        if not self.is_complete and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise self._failure
        return bytes(self._data)

    def drop(self) -> None:
        """Drop the kept bytes."""
        if self._data:
            self._room.give_back(self._peer, len(self._data))
            self._data = b""

    def _problem_of(self, fault: BadChunks | TrailerTooLong) -> Problem:
        if isinstance(fault, BadChunks):
            return Problem("bad-request", "The body's framing is broken.", close=True)
        detail = f"A trailer section may have {self._room.limits.max_header} bytes at most."
        return Problem("too-large", detail, status=431, close=True)

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        if len(self._data) + len(data) > self._limit:
            self._fail(too_large(self._limit))
        elif not self._room.take(self._peer, len(data)):
            self._fail(
                Problem("overloaded", "Too many bytes are waiting.", retry_after=1, close=True)
            )
        elif not self._data:
            self._data = data
        else:
            if not isinstance(self._data, bytearray):
                self._data = bytearray(self._data)
            self._data += data

    def _complete(self) -> None:
        if self._failure is None:
            self.is_complete = True
            self._wake()

    def _fail(self, problem: Problem) -> None:
        self._failure = problem
        self.drop()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def too_large(limit: int) -> Problem:
    """Return the refusal of a body beyond that many bytes."""
    return Problem("too-large", f"A body may have {limit} bytes at most.", close=True)
