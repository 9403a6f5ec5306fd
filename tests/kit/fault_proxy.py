"""A TCP proxy on loopback that breaks connections the way networks and servers do."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Self

from proxy.clock import Clock, SystemClock
from tests.kit.listener import HOST, Listener, abort, reset

REAL_TIME = SystemClock()
READ_SIZE = 2**16


@dataclass(frozen=True, slots=True)
class Pass:
    """Bytes, closes and resets go through as they come."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Each piece waits so long, in either direction."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ResetOnConnect:
    """A new connection is accepted and reset."""


@dataclass(frozen=True, slots=True)
class ResetAfter:
    """The client gets so many bytes, then a reset."""

    count: int


@dataclass(frozen=True, slots=True)
class TruncateAfter:
    """The client gets so many bytes, then an orderly close."""

    count: int


@dataclass(frozen=True, slots=True)
class HalfClose:
    """The client reads the end of a new connection at once; what it sends still arrives."""


@dataclass(frozen=True, slots=True)
class BlackHole:
    """Whatever is sent is swallowed, in either direction; the server never sees a new client."""


Mode = Pass | Delay | ResetOnConnect | ResetAfter | TruncateAfter | HalfClose | BlackHole


class FaultProxy:
    """Stands before `port`. Set `mode` at any time: open connections obey from their next bytes.

    Counts of bytes are per connection, from its beginning.
    """

    def __init__(self, port: int, mode: Mode = Pass(), *, clock: Clock = REAL_TIME) -> None:
        self.mode = mode
        self._server_port = port
        self._clock = clock
        self._open: set[asyncio.StreamWriter] = set()
        self._listener = Listener(self._serve)

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listener.__aexit__()

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def connections(self) -> int:
        """How many were accepted, open or not."""
        return self._listener.connections

    def reset_all(self) -> None:
        """Reset every open connection, on both sides."""
        for writer in self._open:
            reset(writer)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int
    ) -> None:
        match self.mode:
            case ResetOnConnect():
                reset(writer)
            case BlackHole():
                await _swallow(reader)
            case _:
                await self._join(reader, writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
        except OSError:
            reset(writer)
            return
        ends = {writer, server_writer}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._to_server(reader, server_writer))
                pumps.create_task(self._to_client(server_reader, writer))
            server_writer.close()
            await server_writer.wait_closed()
        except* _CutShort:
            pass
        except* ConnectionError:
            for end in ends:
                reset(end)
        finally:
            self._open -= ends
            await abort(server_writer)

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_SIZE):
            await self._pass_on(data, writer)
        self._end(writer)

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self.mode, HalfClose):
            writer.write_eof()
            await _swallow(reader)
            return
        passed = 0
        while data := await reader.read(READ_SIZE):
            passed += len(data)
            match self.mode:
                case (ResetAfter(count) | TruncateAfter(count)) as mode if passed >= count:
                    writer.write(data[: max(0, len(data) - (passed - count))])
                    await writer.drain()
                    raise ConnectionResetError if isinstance(mode, ResetAfter) else _CutShort
                case _:
                    await self._pass_on(data, writer)
        self._end(writer)

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        match self.mode:
            case BlackHole():
                return
            case Delay(seconds):
                await self._clock.sleep_until(self._clock.monotonic() + seconds)
            case _:
                pass
        writer.write(data)
        await writer.drain()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if not isinstance(self.mode, BlackHole):
            with contextlib.suppress(
                OSError, RuntimeError
            ):  # it went first; the latter is uvloop's
                writer.write_eof()


class _CutShort(Exception):
    """The client was given all it gets."""


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(READ_SIZE):
        pass
