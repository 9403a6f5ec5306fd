"""Requests as the listener hands them on, without a connection, or with that of a transport."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import cast

from aiohttp.http import HttpVersion, HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.http.outflow import Outflow
from proxy.http.peer_socket import PeerSocket
from proxy.http.request import Request
from proxy.http.sockets import CLOSED, poll_of


class _Caller:
    may_stay = True

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self.transport = transport
        self.outflow = Outflow(transport)

    @property
    def socket(self) -> PeerSocket:
        return cast("PeerSocket", self)

    def is_present(self) -> bool:
        if self.transport is None or self.transport.is_closing():
            return False
        return not poll_of(self.transport, CLOSED).poll(0)

    def date(self) -> str:
        return "Thu, 01 Jan 1970 00:00:00 GMT"

    def begin_answer(self) -> int:
        return 10


def request_of(
    method: str,
    target: str = "/",
    fields: Iterable[tuple[str, str]] | Mapping[str, str] = (),
    *,
    version: HttpVersion = HttpVersion11,
    transport: asyncio.Transport | None = None,
) -> Request:
    """A request with this head and no body."""
    headers = CIMultiDict(fields)
    message = RawRequestMessage(
        method,
        target,
        version,
        CIMultiDictProxy(headers),
        tuple((name.encode(), value.encode()) for name, value in headers.items()),
        False,  # noqa: FBT003 -- the library's own signature
        None,
        False,  # noqa: FBT003 -- likewise
        False,  # noqa: FBT003 -- likewise
        URL("/"),
    )
    return Request(message, _Caller(transport), "127.0.0.1")
