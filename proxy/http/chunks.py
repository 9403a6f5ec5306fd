"""The chunked coding of a request's body (RFC 9112 section 7.1), decoded as it comes.

Only the data is kept: sizes and extensions are read and dropped, a line of the trailer section is
kept until its end, and the section has a limit in bytes. Malformed input is refused at the first
wrong byte, so the outcome does not depend on how the bytes were cut.
"""

import re
from enum import Enum, auto
from typing import Final

_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_HEX: Final = re.compile(rb"[0-9A-Fa-f]*")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
_QUOTED: Final = re.compile(rb"[\t !\x23-\x5b\x5d-\x7e\x80-\xff]*")
_QUOTABLE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]")
_TRAILER: Final = re.compile(
    rb"(?!(?i:content-length|transfer-encoding)[:])"  # framing has no place behind the body
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n"
)
_LARGEST: Final = 2**64 - 1


class _Fault(Exception):
    """What ends a body early; `before` are the bytes of the body that came just before it."""

    before = b""


class BadChunks(_Fault):
    """The body is not in the chunked coding."""


class TrailerTooLong(_Fault):
    """The trailer section is too long."""


class _State(Enum):
    SIZE = auto()
    EXTENSION = auto()  # its first byte
    NAME = auto()
    VALUE = auto()
    QUOTED = auto()
    QUOTED_PAIR = auto()
    QUOTED_END = auto()
    SIZE_LF = auto()
    DATA = auto()
    DATA_CR = auto()
    DATA_LF = auto()
    TRAILER = auto()
    COMPLETE = auto()


# A chunk extension: a run of such bytes, then one byte that says what is next.
_LINE: Final = {
    _State.EXTENSION: (None, {}),
    _State.NAME: (
        _TOKEN,
        {b"=": _State.VALUE, b";": _State.EXTENSION, b"\r": _State.SIZE_LF},
    ),
    _State.VALUE: (
        _TOKEN,
        {b'"': _State.QUOTED, b";": _State.EXTENSION, b"\r": _State.SIZE_LF},
    ),
    _State.QUOTED: (_QUOTED, {b'"': _State.QUOTED_END, b"\\": _State.QUOTED_PAIR}),
    _State.QUOTED_END: (None, {b";": _State.EXTENSION, b"\r": _State.SIZE_LF}),
}


class Chunks:
    """Decodes one body; `max_trailer` is how many bytes its trailer section may have."""

    __slots__ = ("_left", "_line", "_max_trailer", "_size", "_state", "_trailer")

    def __init__(self, max_trailer: int) -> None:
        self._max_trailer = max_trailer
        self._state = _State.SIZE
        self._size = -1  # of the chunk whose first line is being read; below 0: no digit has come
        self._left = 0  # bytes of the chunk that are still to come
        self._trailer = 0  # bytes of the trailer section so far
        self._line = b""  # of the trailer section, so far

    @property
    def is_complete(self) -> bool:
        """True if the whole body has come."""
        return self._state is _State.COMPLETE

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the body's bytes among these, and the bytes behind the body.

        Raises BadChunks or TrailerTooLong.
        """
        pieces: list[bytes] = []
        try:
            position = self._read(data, pieces)
        except _Fault as fault:
            fault.before = b"".join(pieces)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), data[position:]

    def _read(self, data: bytes, pieces: list[bytes]) -> int:
        """Add the body's bytes to `pieces`; return the index of the first byte behind the body."""
        position, end = 0, len(data)
        while position < end:
            match self._state:
                case _State.DATA:
                    piece = data[position : position + self._left]
                    position += len(piece)
                    self._left -= len(piece)
                    pieces.append(piece)
                    if not self._left:
                        self._state = _State.DATA_CR
                case _State.TRAILER:
                    position = self._read_trailer(data, position)
                case _State.COMPLETE:
                    break
                case _State.SIZE if self._size < 0 and (chunk := _CHUNK.match(data, position)):
                    position = self._read_chunk(data, chunk, pieces)
                case _:  # around the data of a chunk
                    position = self._read_line(data, position)
        return position

    def _read_chunk(self, data: bytes, first_line: re.Match[bytes], pieces: list[bytes]) -> int:
        """Read a plain chunk as far as it has come; fast, since there may be very many."""
        begin = first_line.end()
        size = int(first_line[1], 16)
        end = begin + size
        if size and data[end : end + 2] == b"\r\n":
            pieces.append(data[begin:end])
            return end + 2
        self._left = size
        self._state = _State.DATA if size else _State.TRAILER
        return begin

    def _read_line(self, data: bytes, position: int) -> int:
        """Read a line around the data of chunks; return the index at which to go on."""
        byte = data[position : position + 1]
        match self._state:
            case _State.SIZE:
                return self._read_size(data, position)
            case _State.EXTENSION if byte not in {b" ", b"\r"}:
                self._state = _State.NAME
                return position
            case _State.QUOTED_PAIR if _QUOTABLE.match(byte):
                self._state = _State.QUOTED
            case _State.SIZE_LF if byte == b"\n":
                self._state = _State.DATA if self._size else _State.TRAILER
                self._left, self._size = self._size, -1
            case _State.DATA_CR if byte == b"\r":
                self._state = _State.DATA_LF
            case _State.DATA_LF if byte == b"\n":
                self._state = _State.SIZE
            case state if state in _LINE:
                return self._read_extension(data, position)
            case _:  # a byte that the state does not allow
                raise BadChunks
        return position + 1

    def _read_size(self, data: bytes, position: int) -> int:
        digits = _HEX.match(data, position)
        assert digits is not None  # noqa: S101 -- for the type checker: it matches nothing, too
        if digits[0]:
            self._size = (max(0, self._size) << 4 * len(digits[0])) + int(digits[0], 16)
            if self._size > _LARGEST:
                raise BadChunks
            return digits.end()
        if self._size < 0:
            raise BadChunks
        match data[position : position + 1]:
            case b"\r":
                self._state = _State.SIZE_LF
            case b";":
                self._state = _State.EXTENSION
            case _:
                raise BadChunks
        return position + 1

    def _read_extension(self, data: bytes, position: int) -> int:
        run, follow = _LINE[self._state]
        if run is not None:
            found = run.match(data, position)
            assert found is not None  # noqa: S101 -- for the type checker: it matches nothing, too
            position = found.end()
            if position == len(data):
                return position
        state = follow.get(data[position : position + 1])
        if state is None:
            raise BadChunks
        self._state = state
        return position + 1

    def _read_trailer(self, data: bytes, position: int) -> int:
        line_end = data.find(b"\n", position) + 1
        part = data[position : line_end or len(data)]
        self._trailer += len(part)
        if self._trailer > self._max_trailer:
            raise TrailerTooLong
        self._line += part
        if line_end:
            if self._line == b"\r\n":
                self._state = _State.COMPLETE
            elif _TRAILER.fullmatch(self._line) is None:
                raise BadChunks
            self._line = b""
        return position + len(part)
