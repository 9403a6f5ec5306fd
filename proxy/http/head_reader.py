"""Reading the head of a request from a caller's bytes.

It uses the HTTP library's parser for heads. Each head goes to its own parser, up to its empty line
and no further: so the result does not depend on how the bytes were cut.

If the parser refuses a head, the answer never repeats the refused line, which may hold a token, and
nothing is logged.
"""

import asyncio
from typing import Any, Final

from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage

from proxy.problems import Problem

_MAX_FIELDS: Final = 128
_HEAD_END: Final = b"\r\n\r\n"


class _Nobody:
    """Stands for the protocol that the parser would tell about the end of a body (CONNECT)."""

    def resume_reading(self, *_: object, **__: object) -> None:
        pass


_NOBODY: Final[Any] = _Nobody()


class HeadReader:
    """Reads one head after another; between two of them the connection reads the body."""

    __slots__ = ("_end", "_parser", "_size")

    def __init__(self) -> None:
        self._parser: HttpRequestParser | None = None
        self._size = 0
        self._end = b""  # the last bytes of a head that has not ended

    def __repr__(self) -> str:
        return f"<HeadReader {self._size}>"

    def feed(self, data: bytes, limit: int) -> tuple[RawRequestMessage, bytes] | Problem | None:
        """Return a complete head, and the bytes behind it; None while more must come.

        Returns a Problem if it is not a valid head; after that nothing more may be fed.
        """
        parser = self._parser
        if parser is None:
            data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2
            if not data:
                return None
            parser = self._parser = _parser(limit)
        size = self._size
        end = _end_of_head(self._end, data)
        head = data if end is None else data[:end]
        try:
            messages, _, _ = parser.feed_data(head[: limit - size])
        except (HttpProcessingError, ValueError):
            return _malformed()
        if size + len(head) > limit:
            return Problem("too-large", "The head is too long.", status=431, close=True)
        if end is None and not messages:
            self._size = size + len(head)
            self._end = (self._end + head[-3:])[-3:]
            return None
        if end is None or len(messages) != 1:
            return _malformed()
        self._parser, self._size, self._end = None, 0, b""
        return messages[0][0], data[end:]


def _parser(limit: int) -> HttpRequestParser:
    return HttpRequestParser(
        _NOBODY,
        asyncio.get_running_loop(),
        limit,
        max_line_size=limit,
        max_field_size=limit,
        max_headers=_MAX_FIELDS,
        auto_decompress=False,
    )


def _end_of_head(before: bytes, data: bytes) -> int | None:
    """Return where in `data` a head ends; `before` are the last three bytes that came before."""
    if before:
        end = (before + data[:3]).find(_HEAD_END)
        if end >= 0:
            return end + len(_HEAD_END) - len(before)
    end = data.find(_HEAD_END)
    return None if end < 0 else end + len(_HEAD_END)


def _malformed() -> Problem:
    return Problem("bad-request", "The request is not valid HTTP.", close=True)
