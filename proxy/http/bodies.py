"""Request bodies, read whole, each bounded in bytes and in seconds."""

from proxy.deadlines import time_limit
from proxy.http.request import Request
from proxy.http.room import Room
from proxy.problems import Problem
from proxy.settings import Limits


class Bodies:
    """Reads bodies; all together take at most the bytes of `room`."""

    def __init__(self, limits: Limits) -> None:
        self.room = Room(limits)

    def apply(self, limits: Limits) -> None:
        """Obey new limits from now on."""
        self.room.limits = limits

    async def read(self, request: Request, limit: int | None = None) -> bytes:
        """Return the body, of `limit` bytes at most; call `release` when it is no longer needed.

        Raises the Problem `too-large`, `timeout`, `overloaded` or `bad-request`.
        """
        body = request.body
        if body is None:
            return b""
        if limit is not None:
            body.bound(limit)
        if not body.has_failed and request.waits_for_go_ahead:
            request.go_ahead()
        if body.is_complete or body.has_failed:  # so no caller waits
            return await body.whole()
        try:
            async with time_limit(self.room.limits.body_timeout):
                return await body.whole()
        except TimeoutError:
            request.is_late = True
            raise Problem("timeout", "The body did not arrive in time.", close=True) from None

    def release(self, request: Request) -> None:
        """Release the body of that request."""
        if request.body is not None:
            request.body.drop()
