"""Bytes that a caller sends behind a request, before its answer has left."""

import asyncio

from proxy.http.room import Room


class EarlyBytes:
    """Keeps them for their turn, counted in `room` under the caller's address.

    Once more than `max_header` of them are kept, nothing more is read from the connection. Without
    room for them they are dropped: then `is_dropping` is True, and no other request can follow.
    """

    __slots__ = ("_data", "_peer", "_room", "is_dropping", "is_paused")

    def __init__(self, room: Room, peer: str) -> None:
        self._room = room
        self._peer = peer
        self._data = bytearray()
        self.is_paused = False
        self.is_dropping = False

    def __repr__(self) -> str:
        return f"<EarlyBytes {len(self._data)}>"

    def __bool__(self) -> bool:
        return bool(self._data)

    def keep(self, data: bytes, transport: asyncio.Transport | None) -> None:
        """Keep bytes, if there is room; stop reading once there are enough."""
        if self.is_dropping:
            return
        if not self._room.take(self._peer, len(data)):
            self.drop()
            self.is_dropping = True
            return
        self._data += data
        if len(self._data) > self._room.limits.max_header and transport is not None:
            self.is_paused = True
            transport.pause_reading()

    def take(self, transport: asyncio.Transport | None) -> bytes:
        """Return the kept bytes, and resume reading."""
        data = bytes(self._data)
        self.drop()
        if self.is_paused and transport is not None:
            self.is_paused = False
            transport.resume_reading()
        return data

    def drop(self) -> None:
        """Drop the kept bytes."""
        if self._data:
            self._room.give_back(self._peer, len(self._data))
            self._data.clear()
