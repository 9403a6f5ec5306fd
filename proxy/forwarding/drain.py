"""The drain: whether it is announced or has begun, and the end of waits outside the queues.

A request that waits for its body, for a token or for another attempt has not been carried out: the
drain refuses it with `draining` at once. The queues do the same for their waiters. Nothing here
waits for requests that were sent.
"""

import asyncio
from math import inf
from types import TracebackType

from proxy.problems import draining


class Drain:
    """Knows whether the drain is announced or has begun, and which waits it interrupts."""

    def __init__(self) -> None:
        self.has_begun = False
        self.closes_at = inf  # monotonic seconds
        self._waits: set[_Wait] = set()

    def announce(self, closes_at: float) -> None:
        """Announce the drain for that moment; until then only requests sent in time may wait."""
        self.closes_at = closes_at

    @property
    def is_announced(self) -> bool:
        """True once the drain is announced or has begun."""
        return self.has_begun or self.closes_at < inf

    def begin(self) -> None:
        """Begin the drain: end every wait now, and each new one as it begins."""
        if not self.has_begun:
            self.has_begun = True
            for wait in self._waits:
                wait.interrupt()

    def interrupts(self) -> "_Wait":
        """Leave the block with the Problem `draining` as soon as the drain begins."""
        return _Wait(self, self._waits)


class _Wait:
    """A block that ends early when the drain begins, as `asyncio.timeout` ends one."""

    __slots__ = ("_cancelling", "_drain", "_is_interrupted", "_task", "_waits")

    def __init__(self, drain: Drain, waits: "set[_Wait]") -> None:
        self._drain = drain
        self._waits = waits
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Cancel what the block waits for."""
        self._is_interrupted = True
        self._task.cancel()

    def __enter__(self) -> None:
        if self._drain.has_begun:
            raise draining()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- for the type checker
        self._task = task
        self._cancelling = task.cancelling()
        self._waits.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._waits.discard(self)
        if not self._is_interrupted:
            return
        is_ours = self._task.uncancel() <= self._cancelling  # else another cancelled it, too
        if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise draining() from None
