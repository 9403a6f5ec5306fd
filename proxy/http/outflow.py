"""Bytes that are written to a caller and have not left yet."""

import asyncio


class Outflow:
    """Knows whether the caller reads slower than we write, and waits until it has read enough."""

    __slots__ = ("_drained", "_transport", "is_full")

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self.is_full = False
        self._drained: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Outflow {'full' if self.is_full else 'free'}>"

    def resume(self) -> None:
        """Note that the caller has taken enough."""
        self.is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def lose(self) -> None:
        """Note that the caller is gone."""
        self._transport = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError("the caller is gone"))

    async def drained(self) -> None:
        """Wait until the caller has taken enough."""
        while self.is_full and self._transport is not None:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    async def flushed(self) -> None:
        """Wait until all that is written has left. Raises ConnectionError if the caller is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller is gone")
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=1, low=0)
            try:
                await self.drained()
            finally:
                if not transport.is_closing():
                    transport.set_write_buffer_limits()
        if self._transport is None:
            raise ConnectionResetError("the caller is gone")
