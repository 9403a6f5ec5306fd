"""One connection to the store: commands out, answers in, in the same order (RESP2).

A command of redis-py takes half a millisecond of the event loop, more than the round trip to the
store. A send waits for an answer, so this module writes commands itself, in the step that asks and
without a task, and passes the answer on in the step that reads it.

Theory of operation: commands are pipelined. At most `WINDOW` are under way and the others wait
here, so that a command's time counts from its write. Only the oldest one is timed, since answers
come in order. Before a timeout counts, our own loop gets some passes to read answers that came
while it was busy.

Invariants: each command is answered exactly once, by its reply or by `StoreDown`; after the first
`StoreDown` the wire is closed and answers nothing else. A command is never sent again.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from proxy.deadlines import PASS_SECONDS, PASSES

WINDOW: Final = 32  # commands under way; the server runs as many within a few milliseconds
_MAX_REPLY: Final = 1_048_576  # bytes; the largest that we ask for has less than a thousand
_MAX_DEPTH: Final = 4  # of arrays in arrays; ours have one


class StoreDown(Exception):
    """The store gave no usable answer in time; the text says why, and quotes no peer."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The server refused a command; `code` is the first word, as NOSCRIPT."""

    code: str

    def as_down(self) -> StoreDown:
        """Return this refusal as StoreDown."""
        return StoreDown(f"the server refuses a command: {self.code}")


_REASONS: Final = (  # the first that fits
    (TimeoutError, "no answer in time"),
    (socket.gaierror, "the name of the server has no address"),
    (ssl.SSLCertVerificationError, "the certificate of the server is not trusted"),
    (ssl.SSLError, "TLS with the server failed"),
    (ConnectionRefusedError, "the server refuses connections"),
    (OSError, "the connection was lost"),
)


def why_failed(error: BaseException) -> str:
    """Return why a connection failed, in words that quote no peer."""
    fitting = (words for kind, words in _REASONS if isinstance(error, kind))
    return next(fitting, "the connection failed")


Reply = int | bytes | None | ErrorReply | list["Reply"]
Answered = Callable[[Reply | StoreDown], None]
Word = str | bytes | int


class Incomplete(Exception):
    """The reply is not complete yet."""


class Wire(asyncio.Protocol):
    """A connection that runs commands; `lost` is called once, when it has failed."""

    def __init__(self, *, timeout: Callable[[], float], lost: Callable[[StoreDown], None]) -> None:
        self._timeout = timeout
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._under_way: deque[tuple[Answered, float]] = deque()
        self._waiting: deque[tuple[bytes, Answered]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._down: StoreDown | None = None

    def __repr__(self) -> str:
        return f"<Wire {len(self._under_way)} under way, {len(self._waiting)} waiting>"

    def send(self, words: tuple[Word, ...], answered: Answered) -> None:
        """Run a command, and pass its answer to `answered`."""
        if self._down is not None:
            answered(self._down)
        elif len(self._under_way) < WINDOW:
            self._write(pack(words), answered)
        else:
            self._waiting.append((pack(words), answered))

    async def run(self, *words: Word) -> Reply:
        """Run a command. Raises StoreDown, also if the server refuses it."""
        return await answer_of(lambda answered: self.send(words, answered))

    def close(self, down: StoreDown) -> None:
        """Close the connection; what is under way is answered with `down`."""
        if self._down is not None:
            return
        self._down = down
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._lost(down)
        pending = [answered for answered, _ in self._under_way]
        pending += [answered for _, answered in self._waiting]
        self._under_way.clear()
        self._waiting.clear()
        for answered in pending:
            answered(down)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.WriteTransport", transport)
        if self._down is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it, or the network did."""
        self.close(StoreDown("the connection was lost" if exc is None else why_failed(exc)))

    def data_received(self, data: bytes) -> None:
        """Pass on every complete answer."""
        self._buffer += data
        at = 0
        try:
            while self._under_way and self._down is None:
                reply, at = parse(self._buffer, at)
                answered, _ = self._under_way.popleft()
                if self._waiting:
                    self._write(*self._waiting.popleft())
                answered(reply)
        except Incomplete:
            pass
        except ValueError:
            self.close(StoreDown("the answer is not usable"))
            return
        del self._buffer[:at]
        if len(self._buffer) > _MAX_REPLY or (self._buffer and not self._under_way):
            self.close(StoreDown("the answer is not usable"))

    def _write(self, command: bytes, answered: Answered) -> None:
        if self._transport is None:
            answered(StoreDown("the connection was lost"))
            return
        self._under_way.append((answered, self._loop.time()))
        if self._timer is None:
            self._look_after(self._timeout())
        self._transport.write(command)

    def _look_after(self, seconds: float, passes_left: int = PASSES) -> None:
        self._timer = self._loop.call_later(seconds, self._look, passes_left)

    def _look(self, passes_left: int) -> None:
        """Time the oldest command under way, if there is one."""
        self._timer = None
        if not self._under_way:
            return
        left = self._under_way[0][1] + self._timeout() - self._loop.time()
        if left > 0:
            self._look_after(left)
        elif passes_left:
            self._look_after(PASS_SECONDS, passes_left - 1)
        else:
            self.close(StoreDown("no answer in time"))


async def answer_of(send: Callable[[Answered], None]) -> Reply:
    """Return the answer to a command. Raises StoreDown, also if the server refuses it.

    A cancelled caller leaves nothing behind: the answer is dropped.
    """
    result: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def answered(reply: Reply | StoreDown) -> None:
        if result.done():
            return
        if isinstance(reply, ErrorReply):
            reply = reply.as_down()
        if isinstance(reply, StoreDown):
            result.set_exception(reply)
        else:
            result.set_result(reply)

    send(answered)
    return await result


def pack(words: tuple[Word, ...]) -> bytes:
    """Return a command as it is written."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def parse(buffer: bytes | bytearray, at: int = 0, depth: int = _MAX_DEPTH) -> tuple[Reply, int]:
    """Return the reply that begins there, and where the next one begins.

    Raises Incomplete if the reply has not come whole, and ValueError if it is none.
    """
    end = buffer.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, line, after = buffer[at : at + 1], bytes(buffer[at + 1 : end]), end + 2
    match bytes(kind):
        case b"+":
            return line, after
        case b"-":
            return ErrorReply(line.split(b" ")[0].decode("ascii", "replace")), after
        case b":":
            return _number(line), after
        case b"$":
            return _bulk(buffer, after, _number(line))
        case b"*" if depth:
            count = _number(line)
            if count < 0:
                return None, after
            values: list[Reply] = []
            for _ in range(count):
                value, after = parse(buffer, after, depth - 1)
                values.append(value)
            return values, after
    raise ValueError


def _bulk(buffer: bytes | bytearray, at: int, size: int) -> tuple[Reply, int]:
    if size < 0:
        return None, at
    end = at + size
    if size > _MAX_REPLY:
        raise ValueError
    if len(buffer) < end + 2:
        raise Incomplete
    if buffer[end : end + 2] != b"\r\n":
        raise ValueError
    return bytes(buffer[at:end]), end + 2


def _number(line: bytes) -> int:
    if len(line) > len(str(-(2**63))):  # a long one takes long to convert
        raise ValueError
    return int(line)
