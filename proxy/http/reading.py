"""Reading one answer: from the bytes of a connection to a head, a body, and what follows them.

Theory of operation. The library's parser reads the bytes; this module knows where an answer ends.
It gives the parser a head up to its empty line and no further, and a body up to its last byte and
no further. So an answer has one outcome wherever the network cuts the bytes, and bytes that follow
it cannot become part of the next one.

Memory is bounded: `Limits` bounds heads, and every run of bytes without body data (trailers, chunk
extensions); the parser's flow control bounds an unread body.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage

from proxy.rules.headers import content_length

_READ_AHEAD: Final = 65_536  # bytes of a body for its reader; at twice as many reading pauses
_MIN_FIELD: Final = 65_536  # bytes of a field that every answer may have
_MAX_FIELDS: Final = 1024  # of an answer; common servers stop at 100, and the bytes bound them too
_HEAD_ENDS: Final = (b"\n\r\n", b"\n\n")  # the parser takes a bare LF for the end of a line
_HEAD_END: Final = re.compile(rb"\n\r?\n")  # the same
_SWITCHING: Final = 101


@dataclass(frozen=True, slots=True)
class Limits:
    """What one answer may cost: seconds between two reads, and bytes of one field."""

    seconds: float
    max_field: int = _MIN_FIELD

    @classmethod
    def of(cls, seconds: float, max_header: int) -> "Limits":
        """Allow a field as long as `max_header`, which bounds a caller's head, and 64 kB always."""
        return cls(seconds, max(max_header, _MIN_FIELD))

    @property
    def max_head(self) -> int:
        """Bytes of a whole head: one field of the greatest length, and as much again."""
        return 2 * self.max_field


class AnswerReader:
    """Takes the bytes of one answer; `message` and `content` are set once its head has come.

    The body asks `flow` to pause and resume reading. `is_followed` says that bytes follow the
    answer.
    """

    __slots__ = (
        "_body_left",
        "_is_chunked",
        "_last",
        "_max_idle",
        "_parser",
        "_without_progress",
        "content",
        "has_received",
        "is_followed",
        "message",
    )

    def __init__(
        self, flow: Any, loop: asyncio.AbstractEventLoop, limits: Limits, *, has_body: bool
    ) -> None:
        self._parser = HttpResponseParser(
            flow,
            loop,
            _READ_AHEAD,
            max_line_size=limits.max_field,
            max_field_size=limits.max_field,
            max_headers=_MAX_FIELDS,
            response_with_body=has_body,
            read_until_eof=True,
            auto_decompress=False,
        )
        self._max_idle = limits.max_head
        self._without_progress = 0
        self._body_left = -1  # bytes; below 0 if the head does not say
        self._is_chunked = False
        self._last = b""  # what may be the first part of an empty line
        self.message: RawResponseMessage | None = None
        self.content: aiohttp.StreamReader | None = None
        self.has_received = False
        self.is_followed = False

    @property
    def is_whole(self) -> bool:
        """True if the answer has come to its end."""
        content = self.content
        return content is not None and content.is_eof() and content.exception() is None

    @property
    def ends_by_close(self) -> bool:
        """True if a body is under way that ends with its connection."""
        content = self.content
        return (
            content is not None
            and not content.is_eof()
            and not self._is_chunked
            and self._body_left < 0
        )

    def feed(self, data: bytes) -> None:
        """Take received bytes; raises HttpProcessingError if they are not a valid answer."""
        self.has_received = True
        while data and self.content is None:
            data = self._read_head(data)
        content = self.content
        if not data or content is None:
            return
        if content.is_eof():
            self.is_followed = True
        elif self._is_chunked:
            self._read_chunks(content, data)
        elif self._body_left < 0:
            self._parser.feed_data(data)
        else:
            self.is_followed = len(data) > self._body_left
            data = data[: self._body_left]
            self._body_left -= len(data)
            self._parser.feed_data(data)

    def fail(self, error: BaseException) -> None:
        """Fail the reader of a body that has not come whole."""
        content = self.content
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(error)

    def _read_head(self, data: bytes) -> bytes:
        """Parse up to the next empty line; return what follows it."""
        end = _head_end(self._last, data)
        head, rest = data[:end], data[end:]
        self._last = (self._last + head)[-2:]
        self._spend(len(head))
        messages, _, _ = self._parser.feed_data(head)
        for message, content in messages:
            self._last = b""
            # Interim answers (RFC 9110 section 15.2) are dropped.
            if not 100 <= message.code <= 199 or message.code == _SWITCHING:  # noqa: PLR2004 -- as named
                self._begin(message, content)
        return rest

    def _begin(self, message: RawResponseMessage, content: aiohttp.StreamReader) -> None:
        """Take the final head."""
        self.message, self.content = message, content
        self._without_progress = 0
        self._is_chunked = message.chunked
        length = message.headers.get("Content-Length")
        if length is not None and not message.chunked:
            try:
                self._body_left = content_length(length)
            except ValueError as error:
                raise HttpProcessingError(message=str(error)) from None

    def _read_chunks(self, content: aiohttp.StreamReader, data: bytes) -> None:
        """Parse chunks; the parser must not see more, and only it knows where they end.

        If the body ends before the last byte is given, bytes follow it.
        """
        before = content.total_bytes
        for piece in (data[:-1], data[-1:]):
            if content.is_eof():
                self.is_followed = True
            elif piece:
                self._parser.feed_data(piece)
        if content.total_bytes == before:
            self._spend(len(data))
        else:
            self._without_progress = 0

    def _spend(self, count: int) -> None:
        """Count bytes that hold no body data."""
        self._without_progress += count
        if self._without_progress > self._max_idle:
            raise HttpProcessingError(message="too long")


def _head_end(last: bytes, data: bytes) -> int:
    """Return how many bytes of `data` belong to the head they continue; `last` came before them."""
    if not last:  # a head begins here; nearly always all of it is here
        found = _HEAD_END.search(data)
        return len(data) if found is None else found.end()
    window = last + data
    ends = [
        at + len(end)
        for end in _HEAD_ENDS
        if (at := window.find(end, max(0, len(last) + 1 - len(end)))) >= 0
    ]
    return min(ends, default=len(window)) - len(last)
