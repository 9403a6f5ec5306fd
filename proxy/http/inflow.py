"""Receiving from a server: with a time limit, and paused while the reader of the body is slow."""

import asyncio
from collections.abc import Callable

from proxy.deadlines import Deadline


class Inflow:
    """Reads from a transport for the reader of a body, which may pause it.

    While something is expected, `expired` is called if the server sends nothing for `seconds`.
    Nothing is expected while reading is paused: then the reader is slow, not the server.
    """

    __slots__ = ("_deadline", "_expired", "_seconds", "_transport", "is_paused")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = Deadline(loop)
        self._transport: asyncio.Transport | None = None
        self._expired: Callable[[], None] = _ignore
        self.is_paused = False

    def __repr__(self) -> str:
        return f"<Inflow {'paused' if self.is_paused else 'open' if self.connected else 'over'}>"

    def begin(self, transport: asyncio.Transport, expired: Callable[[], None]) -> None:
        """Read from this transport."""
        self._transport, self._expired = transport, expired

    def expect(self) -> None:
        """Expect something within the time, from now on."""
        self._deadline.expect_within(self._seconds, self._expired)

    def rest(self) -> None:
        """Expect nothing for now."""
        self._deadline.clear()

    def end(self) -> None:
        """Expect nothing more, and leave the transport alone."""
        self._transport, self._expired = None, _ignore  # it refers to the owner, in a circle
        self._deadline.stop()

    # What the library's body calls

    @property
    def connected(self) -> bool:
        """True while something can still come."""
        return self._transport is not None

    def pause_reading(self) -> None:
        """Stop reading."""
        if not self.is_paused and self._transport is not None:
            self.is_paused = True
            self.rest()
            self._transport.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 -- the library's signature
        """Read on."""
        if self.is_paused and self._transport is not None:
            self.is_paused = False
            self.expect()
            self._transport.resume_reading()


def _ignore() -> None:
    """Do nothing: a finished answer cannot expire."""
