"""Raw HTTP clients: any bytes out, and every byte back checked by h11, a parser the proxy lacks.

A reset ends the answer as a close does: what came before it is returned. `was_reset` tells them
apart. All timeouts are real seconds and raise TimeoutError.
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import h11

from tests.kit.listener import reset_on_close

READ_SIZE = 2**16
MAX_HEAD = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    """In the order and the spelling of the wire."""
    body: bytes
    complete: bool
    """False if the bytes end before the body does."""
    interim: list[int]
    """The statuses of 1xx responses before it."""
    rest: bytes
    """What follows it on the connection."""

    def values(self, name: str) -> list[bytes]:
        """All values of one header field, in order."""
        wanted = name.lower().encode()
        return [value for field, value in self.headers if field.lower() == wanted]


class _Parser:
    """One response as it arrives. Raises h11.RemoteProtocolError for what is not HTTP."""

    def __init__(self, request_method: str) -> None:
        self._wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        # Only HEAD changes how an answer reads, and h11 would refuse to send what a test may.
        method = "HEAD" if request_method == "HEAD" else "GET"
        self._wire.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        self._wire.send(h11.EndOfMessage())
        self._head: h11.Response | None = None
        self._interim: list[int] = []
        self._body = bytearray()
        self.is_complete = False

    def feed(self, data: bytes) -> None:
        """Take what came next; b"" is the end of the connection."""
        self._wire.receive_data(data)
        while not self.is_complete:
            match self._wire.next_event():
                case h11.InformationalResponse() as interim:
                    self._interim.append(interim.status_code)
                case h11.Response() as head:
                    self._head = head
                case h11.Data(data=part):
                    self._body += part
                case h11.EndOfMessage():
                    self.is_complete = True
                case _:  # nothing more before the next bytes, or ever
                    return

    def response(self) -> Response:
        if self._head is None:
            raise h11.RemoteProtocolError("the connection ended before a response head")
        return Response(
            status=self._head.status_code,
            reason=self._head.reason,
            headers=self._head.headers.raw_items(),
            body=bytes(self._body),
            complete=self.is_complete,
            interim=self._interim,
            rest=self._wire.trailing_data[0] if self.is_complete else b"",
        )


def parse_response(raw: bytes, request_method: str = "GET") -> Response:
    """Read the first response in bytes after which the connection ended.

    Raises h11.RemoteProtocolError for malformed bytes and for bytes without a whole head; a body
    cut short is no error but `complete=False`.
    """
    parser = _Parser(request_method)
    if raw:
        parser.feed(raw)
    if not parser.is_complete:
        with contextlib.suppress(h11.RemoteProtocolError):  # h11's way to say: cut short
            parser.feed(b"")
    return parser.response()


class RawConnection:
    """One connection for any number of requests: `async with await RawConnection.open(...)`."""

    def __init__(self, sock: socket.socket) -> None:
        self.was_reset = False
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._unread = b""

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connect; ConnectionRefusedError where nobody listens."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        """Send; a peer that closed already is found out by reading, where its answer may wait."""
        with contextlib.suppress(ConnectionError):
            await self._loop.sock_sendall(self._socket, data)

    def half_close(self) -> None:
        """Say that no more will be sent, and go on reading."""
        with contextlib.suppress(OSError):  # the peer went first
            self._socket.shutdown(socket.SHUT_WR)

    async def read_response(
        self,
        method: str = "GET",
        *,
        timeout: float = 20,  # noqa: ASYNC109 - part of the helper
    ) -> Response:
        """Read the next response, the answer to a request of this method."""
        response = parse_response(await self.read_raw(method, timeout=timeout), method)
        self._unread = response.rest
        return response

    async def read_raw(
        self,
        method: str = "GET",
        *,
        timeout: float = 20,  # noqa: ASYNC109 - likewise
    ) -> bytes:
        """Read until a response is complete, or to the close where it never is or is not HTTP."""
        parser = _Parser(method)
        raw, self._unread = self._unread, b""
        part = raw
        async with asyncio.timeout(timeout):
            try:
                if part:
                    parser.feed(part)
                while not parser.is_complete and (part := await self._receive()):
                    raw += part
                    parser.feed(part)
            except h11.RemoteProtocolError:
                return raw + await self._receive_to_close()
        return raw

    async def read_some(self, *, timeout: float = 20) -> bytes:  # noqa: ASYNC109 - likewise
        """Read whatever comes next; b"" is the close."""
        raw, self._unread = self._unread, b""
        async with asyncio.timeout(timeout):
            return raw or await self._receive()

    async def read_to_close(self, *, timeout: float = 20) -> bytes:  # noqa: ASYNC109 - likewise
        """Read whatever comes until the peer closes."""
        raw, self._unread = self._unread, b""
        async with asyncio.timeout(timeout):
            return raw + await self._receive_to_close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        reset_on_close(self._socket)
        self._socket.close()

    async def _receive_to_close(self) -> bytes:
        parts = bytearray()
        while part := await self._receive():
            parts += part
        return bytes(parts)

    async def _receive(self) -> bytes:
        try:
            return await self._loop.sock_recv(self._socket, READ_SIZE)
        except ConnectionResetError:
            self.was_reset = True
            return b""


def port_of(url: str) -> int:
    """The port that a server's URL names."""
    port = urlsplit(url).port
    assert port is not None
    return port


async def exchange(
    host: str,
    port: int,
    data: bytes,
    *,
    timeout: float = 20,  # noqa: ASYNC109 - likewise
    half_close: bool = False,
) -> bytes:
    """Send bytes on a fresh connection; return the answer to the first request in them, raw.

    Reads while it sends, so an answer that comes early is seen, and stops where `read_raw` does.
    """
    method = data.split(b" ", 1)[0].decode("latin-1")
    async with await RawConnection.open(host, port) as connection:

        async def send() -> None:
            await connection.send(data)
            if half_close:
                connection.half_close()

        sending = asyncio.get_running_loop().create_task(send())
        try:
            return await connection.read_raw(method, timeout=timeout)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
