"""A loopback TCP server that ends cleanly: no connection left open, no failure left unseen."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Self

HOST = "127.0.0.1"
READ_LIMIT = 2**20


class Listener:
    """Serves each connection in a task of its own and closes it when `serve` returns.

    A peer that goes away is not a failure. Anything else that `serve` raises, a script's own
    assertion included, is raised again when the listener ends.
    """

    def __init__(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]],
        *,
        port: int = 0,
    ) -> None:
        self.port = port
        self.connections = 0
        self._serve = serve
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, HOST, self.port, limit=READ_LIMIT, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self._run(reader, writer, self.connections)
        self._tasks.append(asyncio.get_running_loop().create_task(connection))

    async def _run(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        try:
            await self._serve(reader, writer, number)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass
        finally:
            await abort(writer)


async def abort(writer: asyncio.StreamWriter) -> None:
    """Drop the connection with whatever is unsent, and see its socket closed."""
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def reset_on_close(sock: socket.socket) -> None:
    """Make the socket's close a reset (RST) in place of an orderly end (FIN)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # closed already
        reset_on_close(writer.get_extra_info("socket"))
    writer.transport.abort()
