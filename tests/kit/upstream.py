"""A scripted upstream on a raw socket: it does what a test says and keeps every byte it was sent.

It is no HTTP server. It knows just enough of RFC 9112 to find where a request ends, trusts the
framing it is given, and sends what the script holds, right or wrong. Every whole request is also
read by h11, which shares no code with the proxy; one that h11 refuses fails the test.
"""

import asyncio
import contextlib
import http
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, assert_never

import h11

from proxy.clock import Clock, SystemClock
from tests.kit.listener import HOST, Listener, reset

REAL_TIME = SystemClock()
LAST_CHUNK = b"0\r\n\r\n"
NOT_HANDED_OUT = range(10_000, 32_000)  # Linux hands out 32768 and above
_CHANCE = random.SystemRandom()  # no test seeds it


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    head: bytes
    """Exact bytes, the empty line included; the next three are read from it."""
    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    raw_body: bytes
    """As it came: chunk sizes and trailers included."""
    body: bytes
    """Without its framing; of a chunked one cut short, the whole chunks."""
    is_complete: bool
    """False if the connection ended before the body did."""
    arrived_at: float
    """When the head was complete, on the upstream's monotonic clock."""
    connection: int
    """Which connection brought it, from 1."""
    number: int
    """Which request of that connection it is, from 1."""

    def values(self, name: str) -> list[bytes]:
        """All values of one header field, in order."""
        return _values(self.headers, name)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. It is framed by Content-Length unless its headers or its status say otherwise."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    raw: bytes | None = None
    """Exactly these bytes in place of all of the above."""
    delay: float = 0
    chunked: bool = False
    close_after: bool = False

    def encode(self, method: bytes) -> bytes:
        if self.raw is not None:
            return self.raw
        head = _head(self.status, [*self.headers, *self._framing()])
        if method == b"HEAD" or _is_bodiless(self.status):
            return head
        return head + (_chunk(self.body) + LAST_CHUNK if self.chunked else self.body)

    def _framing(self) -> list[tuple[str, str]]:
        names = {name.lower() for name, _ in self.headers}
        if _is_bodiless(self.status) or names & {"content-length", "transfer-encoding"}:
            return []
        if self.chunked:
            return [("Transfer-Encoding", "chunked")]
        return [("Content-Length", str(len(self.body)))]


@dataclass(frozen=True, slots=True)
class ReadThenReset:
    """No answer but an RST."""


@dataclass(frozen=True, slots=True)
class ReadThenClose:
    """No answer but an orderly close."""


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer at all, until the client goes away."""


@dataclass(frozen=True, slots=True)
class HalfBody:
    """An answer that dies: a good head, the first half of the body, an orderly close."""

    body: bytes = b"0123456789"
    chunked: bool = False

    def encode(self) -> bytes:
        half = self.body[: len(self.body) // 2]
        if self.chunked:
            return _head(200, [("Transfer-Encoding", "chunked")]) + _chunk(half)
        return _head(200, [("Content-Length", str(len(self.body)))]) + half


@dataclass(frozen=True, slots=True)
class Garbage:
    """Any bytes, then a close."""

    data: bytes


Step = Reply | ReadThenReset | ReadThenClose | Hang | HalfBody | Garbage
Script = Sequence[Step] | Callable[[RecordedRequest], Step]


class RawUpstream:
    """Answers by its script: a function of the request, or one step per request, then `default`.

    `close_idle_after` closes a connection on which no request head came for that many seconds, with
    no regard for one on its way. `accept_delay` lets a new connection wait before it is read. A
    `port` from `free_port` lets a test find the upstream down first and enter it later.
    """

    def __init__(  # noqa: PLR0913 - one keyword per fault
        self,
        script: Script = (),
        *,
        default: Step = Reply(),
        port: int = 0,
        close_idle_after: float | None = None,
        accept_delay: float = 0,
        clock: Clock = REAL_TIME,
    ) -> None:
        self.requests: list[RecordedRequest] = []
        self.stray: list[bytes] = []
        """What came in place of a whole request head, or after a request left to hang."""
        self.violations: list[str] = []
        """What h11 has against the requests; none may be left at the end."""
        self._choose = script if callable(script) else _in_order(iter(script), default)
        self._close_idle_after = close_idle_after
        self._accept_delay = accept_delay
        self._clock = clock
        self._recorded = asyncio.Condition()
        self._listener = Listener(self._serve, port=port)

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        return self

    async def __aexit__(self, error: type[BaseException] | None, *_: object) -> None:
        await self._listener.__aexit__()
        if error is None:
            assert self.violations == []

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many were accepted, open or not."""
        return self._listener.connections

    @property
    def requests_per_connection(self) -> Counter[int]:
        return Counter(request.connection for request in self.requests)

    async def received(self, count: int = 1, *, within: float = 20) -> list[RecordedRequest]:
        """Wait until `count` requests were recorded; TimeoutError after `within` real seconds."""
        async with asyncio.timeout(within), self._recorded:
            await self._recorded.wait_for(lambda: len(self.requests) >= count)
        return self.requests[:count]

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> None:
        await self._pause(self._accept_delay)
        number = 0
        is_open = True
        while is_open:
            with self._closing_when_idle(writer):
                head = await self._read_head(reader)
            if not head:
                return
            number += 1
            arrived_at = self._clock.monotonic()
            request = await _read_request(
                reader, head, arrived_at=arrived_at, connection=connection, number=number
            )
            if request.is_complete:
                self.violations += _violations(request)
            async with self._recorded:
                self.requests.append(request)
                self._recorded.notify_all()
            is_open = request.is_complete and await self._play(request, reader, writer)

    async def _read_head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            self._keep_stray(error.partial)
            return b""

    async def _play(
        self, request: RecordedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer; True if the connection lives on."""
        step = self._choose(request)
        match step:
            case Reply():
                await self._pause(step.delay)
                writer.write(step.encode(request.method))
                await writer.drain()
                return not (step.close_after or b"close" in request.values("connection"))
            case HalfBody():
                writer.write(step.encode())
            case Garbage(data):
                writer.write(data)
            case ReadThenReset():
                reset(writer)
            case ReadThenClose():
                pass
            case Hang():
                self._keep_stray(await reader.read())
            case _:
                assert_never(step)
        return False

    def _keep_stray(self, data: bytes) -> None:
        if data:
            self.stray.append(data)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            await self._clock.sleep_until(self._clock.monotonic() + seconds)

    @contextlib.contextmanager
    def _closing_when_idle(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        if self._close_idle_after is None:
            yield
            return
        closes_at = self._clock.monotonic() + self._close_idle_after
        timer = self._clock.call_at(closes_at, writer.close)
        try:
            yield
        finally:
            timer.cancel()


def _violations(request: RecordedRequest) -> list[str]:
    """Return what h11 has against a request, which it is to read as one and no more."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    server.receive_data(request.head + request.raw_body)
    body = b""
    try:
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.Request):
                return [f"no whole request: {event!r}"]
    except h11.RemoteProtocolError as error:
        return [str(error)]
    is_all = server.trailing_data[0] == b"" and body == request.body
    return [] if is_all else ["the body is another one"]


def free_port() -> int:
    """A port on which nothing listens: connections to it are refused.

    The kernel gives it to nobody in the meantime: it is below those that it hands out by itself.
    """
    for port in _CHANCE.sample(NOT_HANDED_OUT, k=100):
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise AssertionError("a hundred ports are taken")


def _in_order(steps: Iterator[Step], default: Step) -> Callable[[RecordedRequest], Step]:
    return lambda _: next(steps, default)


async def _read_request(
    reader: asyncio.StreamReader, head: bytes, *, arrived_at: float, connection: int, number: int
) -> RecordedRequest:
    request_line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, _ = request_line.split(b" ", 2)
    fields = [line.partition(b":") for line in lines]
    headers = tuple((name, value.strip(b" \t")) for name, _, value in fields)
    raw_body, body, is_complete = await _read_body(reader, headers)
    return RecordedRequest(
        head=head,
        method=method,
        target=target,
        headers=headers,
        raw_body=raw_body,
        body=body,
        is_complete=is_complete,
        arrived_at=arrived_at,
        connection=connection,
        number=number,
    )


async def _read_body(
    reader: asyncio.StreamReader, headers: tuple[tuple[bytes, bytes], ...]
) -> tuple[bytes, bytes, bool]:
    """The body as it came, the body without its framing, and whether it came whole."""
    raw = bytearray()
    body = bytearray()
    is_chunked = bool(_values(headers, "transfer-encoding"))
    is_complete = False
    try:
        if is_chunked:
            await _read_chunks(reader, raw, body)
        elif lengths := _values(headers, "content-length"):
            raw += await reader.readexactly(int(lengths[0]))
        is_complete = True
    except asyncio.IncompleteReadError as error:
        raw += error.partial
    except ConnectionError:
        pass
    return bytes(raw), bytes(body if is_chunked else raw), is_complete


async def _read_chunks(reader: asyncio.StreamReader, raw: bytearray, body: bytearray) -> None:
    size = -1
    while size != 0:
        size_line = await reader.readuntil(b"\r\n")
        raw += size_line
        size = int(size_line.partition(b";")[0], 16)
        if size:
            chunk = await reader.readexactly(size + 2)
            raw += chunk
            body += chunk[:-2]
    trailer = b""
    while trailer != b"\r\n":
        trailer = await reader.readuntil(b"\r\n")
        raw += trailer


def _values(headers: Sequence[tuple[bytes, bytes]], name: str) -> list[bytes]:
    wanted = name.lower().encode()
    return [value for field, value in headers if field.lower() == wanted]


def _head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:  # a script may send any number
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _is_bodiless(status: int) -> bool:
    return status < http.HTTPStatus.OK or status in (204, 304)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty one would be the last
