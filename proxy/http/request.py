"""A request as the listener passes it to the handler, and the methods to answer it."""

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import Final, Protocol

from aiohttp import HttpVersion11
from aiohttp.http import RawRequestMessage

from proxy.http.framing import Asked, Head, frame
from proxy.http.incoming import IncomingBody
from proxy.http.outflow import Outflow
from proxy.http.peer_socket import PeerSocket
from proxy.http.responses import OwnAnswer
from proxy.rules.headers import Field

_GO_AHEAD: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing discards what is unsent
_ONE_PIECE: Final = 65_536  # bytes; a longer body is not copied behind its head


class Caller(Protocol):
    """The connection that a request came by."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """What is written to; None if the caller is gone."""

    @property
    def may_stay(self) -> bool:
        """True if another request may follow."""

    @property
    def socket(self) -> PeerSocket:
        """What the kernel knows of the caller."""

    @property
    def outflow(self) -> Outflow:
        """What is written and has not left yet."""

    def date(self) -> str:
        """Return the time, as a Date field has it."""

    def begin_answer(self) -> int:
        """Note that an answer leaves; return for how many seconds the connection stays open."""


class Request:
    """One request: its head, and its body if it has one.

    Answer it once: by `answer` or `respond`; or by `begin`, `send` for each part, and `finish`; by
    `abort` if an answer cannot be finished. All but `abort` raise ConnectionError if the caller is
    gone.
    """

    __slots__ = (
        "_caller",
        "_head",
        "_sent",
        "body",
        "headers",
        "is_answered",
        "is_chunked",
        "is_late",
        "method",
        "peer",
        "raw_headers",
        "stays",
        "target",
        "version",
    )

    def __init__(self, message: RawRequestMessage, caller: Caller | None, peer: str) -> None:
        self.method = message.method
        self.target = message.path
        self.version = message.version
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self.is_chunked = message.chunked
        self.stays = not message.should_close
        self.peer = peer
        self.body: IncomingBody | None = None
        self.is_late = False  # the body had its time
        self.is_answered = False
        self._caller = caller
        self._head: Head | None = None
        self._sent = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        """The caller's connection; None if it is gone."""
        return None if self._caller is None else self._caller.transport

    def is_present(self) -> bool:
        """True if the caller is still there, even if the event loop has not noticed that it left.

        A caller that half-closes counts as gone.
        """
        return self._caller is not None and self._caller.socket.is_present()

    @property
    def is_whole(self) -> bool:
        """True if the body has come whole, or there is none."""
        return self.body is None or self.body.is_complete

    @property
    def is_begun(self) -> bool:
        """True if some of an answer has left."""
        return self._head is not None

    @property
    def waits_for_go_ahead(self) -> bool:
        """True if the caller waits for 100 Continue before its body (not in HTTP/1.0)."""
        return "Expect" in self.headers and self.version >= HttpVersion11

    def go_ahead(self) -> None:
        """Tell the caller to send its body."""
        transport = self.transport
        if transport is not None:
            transport.write(_GO_AHEAD)

    def answer(self, answer: OwnAnswer) -> None:
        """Give an answer of our own."""
        fields = [*answer.fields, ("Content-Length", str(len(answer.body)))]
        self.respond(answer.status, answer.reason, fields, answer.body, close=answer.close)

    def respond(
        self, status: int, reason: str, fields: Sequence[Field], body: bytes, *, close: bool = False
    ) -> None:
        """Answer, head and body in one piece."""
        transport = self._open_transport()
        head = self._frame(status, reason, fields, close=close)
        if head.ending == "nothing":
            body = b""
        elif head.ending == "last chunk":
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else _LAST_CHUNK
        elif head.ending == "length" and len(body) != head.length:
            raise ValueError("another length than announced")
        if len(body) <= _ONE_PIECE:
            transport.write(head.data + body)
        else:
            transport.writelines((head.data, body))
        self.is_answered = True

    def begin(self, status: int, reason: str, fields: Sequence[Field]) -> None:
        """Write the head of an answer whose body follows in parts."""
        self._open_transport().write(self._frame(status, reason, fields, close=False).data)

    async def send(self, data: bytes) -> None:
        """Write a part of the body, and wait while the caller takes less than is written."""
        transport, head = self._open_transport(), self._head
        if not data or head is None or head.ending == "nothing":
            return
        self._sent += len(data)
        if head.ending == "last chunk":
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif head.ending == "length" and self._sent > head.length:
            raise ValueError("more than announced")
        else:
            transport.write(data)
        if self._caller is not None and self._caller.outflow.is_full:
            await self._caller.outflow.drained()

    def finish(self) -> None:
        """End the body of an answer."""
        transport, head = self._open_transport(), self._head
        if head is None or (head.ending == "length" and self._sent != head.length):
            raise ValueError("less than announced")
        if head.ending == "last chunk":
            transport.write(_LAST_CHUNK)
        self.is_answered = True

    async def flushed(self) -> None:
        """Wait until the whole answer has left for the caller."""
        if self._caller is not None:
            await self._caller.outflow.flushed()

    def abort(self) -> None:
        """Close the connection so that the caller sees that the answer is not complete."""
        transport = self.transport
        if transport is None:
            return
        if self._head is not None and self._head.ending == "close":
            # There an orderly close is the end of a body.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def _frame(self, status: int, reason: str, fields: Sequence[Field], *, close: bool) -> Head:
        """Frame the answer; if it leaves before the request has come whole, it is the last."""
        caller = self._caller
        assert caller is not None  # noqa: S101 -- for the type checker
        self.stays = self.stays and not close and self.is_whole and caller.may_stay
        is_1_1 = self.version >= HttpVersion11
        asked = Asked(
            self.method, knows_chunks=is_1_1, stays=self.stays, idle_seconds=caller.begin_answer()
        )
        head = frame(asked, status, reason, fields, caller.date())
        self.stays = not head.closes
        self._head = head
        return head

    def _open_transport(self) -> asyncio.Transport:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller is gone")
        return transport
