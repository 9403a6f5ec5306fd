"""Request bodies, read whole: each and all together bounded in bytes, each in seconds."""

import asyncio

from aiohttp import HttpVersion11, web

from proxy.problems import Problem
from proxy.settings import Limits


class Bodies:
    """Reads request bodies whole, each and all together bounded in bytes, each in seconds."""

    def __init__(self, limits: Limits) -> None:
        self.apply(limits)
        self._buffered = 0

    def apply(self, limits: Limits) -> None:
        """Obey new limits from the next chunk on."""
        self.limits = limits

    async def read(self, request: web.BaseRequest) -> bytes:
        """Return the body; call `release` with its length when it is no longer needed.

        Raises the Problem `too-large`, `timeout`, `overloaded` or `bad-request`.
        """
        if not request.can_read_body:
            return b""
        announced = request.content_length
        if announced is not None and announced > self.limits.max_body:
            raise self._too_large()
        if (
            "Expect" in request.headers
            and request.version >= HttpVersion11  # who speaks an older one knows no interim answers
            and request.transport is not None
        ):
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = 0
        body: bytes | None = None
        chunks: list[bytes] = []
        try:
            if request.content.is_eof():  # it came with its head, so there is nothing to wait for
                chunks.append(request.content.read_nowait())
                size = len(chunks[0])
                self._buffered += size
                self._check(size)
            else:
                async with asyncio.timeout(self.limits.body_timeout):
                    async for chunk in request.content.iter_any():
                        size += len(chunk)
                        self._buffered += len(chunk)
                        self._check(size)
                        chunks.append(chunk)
            body = b"".join(chunks)
        except TimeoutError:
            raise Problem("timeout", "The body did not arrive in time.", close=True) from None
        except web.RequestPayloadError:
            raise Problem("bad-request", "The body's framing is broken.", close=True) from None
        finally:
            if body is None:
                self.release(size)
        return body

    def release(self, size: int) -> None:
        """Take note that a body of that many bytes is gone."""
        self._buffered -= size

    def _check(self, size: int) -> None:
        if size > self.limits.max_body:
            raise self._too_large()
        if self._buffered > self.limits.max_buffered:
            raise Problem("overloaded", "Too many bytes are waiting.", retry_after=1, close=True)

    def _too_large(self) -> Problem:
        return Problem(
            "too-large", f"A body may have {self.limits.max_body} bytes at most.", close=True
        )
