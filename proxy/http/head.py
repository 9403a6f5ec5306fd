"""What a request must look like before anything is done for it: head first, then body.

aiohttp's parser refuses broken framing by itself; here is what it lets through and a strict server
must not (RFC 9112 sections 3.2 and 6.1, RFC 9110 sections 7.2 and 10.1.1). Nothing a caller wrote
is repeated in a refusal.
"""

import asyncio
import re
from itertools import chain
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.problems import Problem
from proxy.rules.headers import has_passed
from proxy.rules.targets import BadTarget, Target, parse_target
from proxy.settings import Limits

_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._~%!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})  # the parser lets 0.9 and 2.0 pass
_REFUSED_METHODS: Final = frozenset({"CONNECT", "TRACE"})


def check_head(request: web.BaseRequest, pseudonym: str, *, max_header: int) -> Target:
    """Return the request's target, or raise the Problem that refuses it."""
    if _head_size(request) > max_header:
        raise Problem(
            "too-large", f"A head may have {max_header} bytes at most.", status=431, close=True
        )
    if request.version not in _VERSIONS:
        raise _malformed("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    headers = request.headers
    if request.method in _REFUSED_METHODS:
        raise Problem(
            "method-not-allowed",
            "This is no forward proxy: set it as the SDK's gateway or base URL instead.",
            headers={"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"},
            close=True,
        )
    _check_framing(request)
    _check_host(request)
    if len(headers.getall("Authorization", ())) > 1:
        raise _malformed("There are several Authorization fields.")
    expectations = headers.getall("Expect", ())
    if expectations and [value.lower() for value in expectations] != ["100-continue"]:
        raise Problem("bad-request", "Only 100-continue can be expected.", status=417, close=True)
    if has_passed(pseudonym, headers.getall("Via", ())):
        raise Problem("loop", "The request has already passed through this proxy.")
    try:
        return parse_target(request.raw_path)
    except BadTarget as error:
        raise _malformed(str(error)) from None


def _check_framing(request: web.BaseRequest) -> None:
    coding = request.headers.getall("Transfer-Encoding", ())
    if not coding:
        return
    if [value.lower() for value in coding] != ["chunked"]:
        raise _malformed("Transfer-Encoding must be exactly 'chunked'.")
    if "Content-Length" in request.headers:
        raise _malformed("Transfer-Encoding and Content-Length exclude each other.")
    if request.version < HttpVersion11:
        raise _malformed("There is no Transfer-Encoding before HTTP/1.1.")


def _check_host(request: web.BaseRequest) -> None:
    hosts = request.headers.getall("Host", ())
    if len(hosts) > 1 or (hosts and _AUTHORITY.fullmatch(hosts[0]) is None):
        raise _malformed("There must be one Host field, with one valid host.")
    if not hosts and request.version >= HttpVersion11:
        raise _malformed("The Host field is missing.")


class Bodies:
    """Reads request bodies whole, each and all together bounded in bytes, each in seconds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._buffered = 0

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
            raise _malformed("The body's framing is broken.") from None
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


def _head_size(request: web.BaseRequest) -> int:
    """Return the bytes of request line and fields: the parser bounds each, and not their sum."""
    line = len(request.method) + len(request.raw_path) + len("  HTTP/1.1\r\n")
    fields = request.raw_headers
    return line + len(b"".join(chain.from_iterable(fields))) + len(": \r\n") * len(fields)


def _malformed(detail: str) -> Problem:
    return Problem("bad-request", detail, close=True)
