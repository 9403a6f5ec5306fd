"""Content codings: the plain text of a body that a server coded without being asked to.

The proxy passes bodies on unchanged. It decodes only what it reads itself, and never into more than
`limit` bytes: a hundred bytes can stand for gigabytes.

Obeys RFC 9110 section 8.4.1 (gzip, deflate), RFC 7932 (br) and RFC 8878 (zstd). br and zstd are
read if a library for them is installed: `brotli` from 1.2, which can bound its output, and
`compression.zstd` of Python 3.14 or `backports.zstd`.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Final

_MAX_CODINGS: Final = 3  # one on top of the other; no honest client uses two
_GZIP: Final = 16 + zlib.MAX_WBITS


class _Unreadable(Exception):
    """The body is not in that coding, is cut short, or is too long."""


def decoded(body: bytes, codings: Iterable[str], *, limit: int) -> bytes | None:
    """Return the body without its codings.

    `codings` holds the values of the `Content-Encoding` fields. None if one of them is unknown, the
    body is not in it, or it would be longer than `limit` bytes.
    """
    names = [name for value in codings for part in value.split(",") if (name := _name(part))]
    if len(names) > _MAX_CODINGS:
        return None
    try:
        for name in reversed(names):  # the last one was put on last
            body = _DECODERS[name](body, limit)
    except (_Unreadable, KeyError):
        return None
    return body if len(body) <= limit else None


def _name(part: str) -> str:
    name = part.strip(" \t").lower()
    return "" if name == "identity" else name.removeprefix("x-")


def _gunzip(body: bytes, limit: int) -> bytes:
    """Decode gzip, of which several members may follow each other (RFC 1952 section 2.2)."""
    text = b""
    while body:
        member = zlib.decompressobj(_GZIP)
        text += _inflated(member, body, limit - len(text))
        body = member.unused_data
    return text


def _inflate(body: bytes, limit: int) -> bytes:
    """Decode deflate: with the header it has by RFC 9110, or without, as many servers send it."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return _inflated(zlib.decompressobj(window), body, limit)
        except _Unreadable:
            continue
    raise _Unreadable


def _inflated(member: Any, body: bytes, limit: int) -> bytes:
    try:
        text: bytes = member.decompress(body, limit + 1)
    except zlib.error:
        raise _Unreadable from None
    if len(text) > limit or not member.eof:
        raise _Unreadable
    return text


def _library(*names: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _unbrotli(body: bytes, limit: int) -> bytes:
    library = _library("brotli", "brotlicffi")
    if library is None:
        raise _Unreadable
    decoder = library.Decompressor()
    try:
        text: bytes = decoder.process(body, output_buffer_limit=limit + 1)
    except (TypeError, library.error):  # TypeError: of a version that cannot bound its output
        raise _Unreadable from None
    if len(text) > limit or not decoder.is_finished():
        raise _Unreadable
    return text


def _unzstd(body: bytes, limit: int) -> bytes:
    library = _library("compression.zstd", "backports.zstd")
    if library is None:
        raise _Unreadable
    decoder = library.ZstdDecompressor()
    try:
        text: bytes = decoder.decompress(body, limit + 1)
    except (library.ZstdError, EOFError):
        raise _Unreadable from None
    if len(text) > limit or not decoder.eof:
        raise _Unreadable
    return text


_DECODERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}


_READABLE: Final = ("gzip", "deflate")  # without a library
_NOT_AT_ALL: Final = re.compile(r"q\s*=\s*0(?:\.0*)?", re.IGNORECASE)


def readable_codings(wishes: Iterable[str]) -> str:
    """Return what a request asks for so that its answer can be read here too.

    `wishes` holds the values of the caller's `Accept-Encoding` fields. The result contains no
    coding that they exclude (RFC 9110 section 12.5.3). Without such a field the caller accepts any
    coding; then the proxy asks for plain text.
    """
    items = [item.strip(" \t") for value in wishes for item in value.split(",")]
    named = {_name(item.partition(";")[0]) for item in items}
    kept: list[str] = []
    for item in items:
        coding, _, weight = item.partition(";")
        coding = coding.strip(" \t").lower()
        if coding == "*" and _NOT_AT_ALL.fullmatch(weight.strip(" \t")) is None:
            suffix = f";{weight}" if weight else ""
            kept += [f"{name}{suffix}" for name in _READABLE if name not in named]
        elif coding in {"*", "identity"} or _name(coding) in _READABLE:
            kept.append(item)
    return ", ".join(kept) or "identity"


def coded_fields(fields: Sequence[tuple[str, str]]) -> list[str]:
    """Return the values of the `Content-Encoding` fields."""
    return [value for name, value in fields if name.lower() == "content-encoding"]
