"""Bodies that a server coded come out plain, or not at all; never larger than allowed."""

import gzip
import sys
import zlib

import pytest

from proxy.rules.codings import coded_fields, decoded, readable_codings

TEXT = b'{"access_token": "t"}' * 3


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize(
    ("body", "codings"),
    [
        (TEXT, []),
        (TEXT, ["identity"]),
        (gzip.compress(TEXT), ["gzip"]),
        (gzip.compress(TEXT), ["GZip "]),
        (gzip.compress(TEXT), ["x-gzip"]),
        (gzip.compress(TEXT[:10]) + gzip.compress(TEXT[10:]), ["gzip"]),
        (zlib.compress(TEXT), ["deflate"]),
        (raw_deflate(TEXT), ["deflate"]),
        (gzip.compress(zlib.compress(TEXT)), ["deflate, gzip"]),
        (gzip.compress(zlib.compress(TEXT)), ["deflate", "gzip"]),
    ],
    ids=range(10),
)
def test_coded_body_reads_as_it_was(body: bytes, codings: list[str]) -> None:
    assert decoded(body, codings, limit=1000) == TEXT


@pytest.mark.parametrize(
    ("body", "codings"),
    [
        (TEXT, ["gzip"]),
        (gzip.compress(TEXT)[:-1], ["gzip"]),
        (gzip.compress(TEXT) + b"x", ["gzip"]),
        (zlib.compress(TEXT)[:-1], ["deflate"]),
        (TEXT, ["unknown"]),
        (TEXT, ["identity, identity, gzip, gzip, gzip, gzip"]),
        (TEXT, ["br"]),
        (TEXT, ["zstd"]),
    ],
    ids=range(8),
)
def test_body_that_cannot_be_read_is_none(body: bytes, codings: list[str]) -> None:
    assert decoded(body, codings, limit=1000) is None


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_bomb_is_none(name: str) -> None:
    plain = bytes(10_000_000)
    body = gzip.compress(plain) if name == "gzip" else zlib.compress(plain)
    assert decoded(body, [name], limit=65_536) is None
    assert decoded(body, [name], limit=len(plain)) == plain


def test_plain_body_has_the_same_limit() -> None:
    assert decoded(TEXT, [], limit=len(TEXT)) == TEXT
    assert decoded(TEXT, [], limit=len(TEXT) - 1) is None


class _Brotli:
    """A library of the same shape, whose coding is deflate."""

    error = zlib.error

    class Decompressor:
        def __init__(self) -> None:
            self._coder = zlib.decompressobj()

        def process(self, data: bytes, *, output_buffer_limit: int) -> bytes:
            return self._coder.decompress(data, output_buffer_limit)

        def is_finished(self) -> bool:
            return self._coder.eof


def test_brotli_is_read_where_its_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", _Brotli)
    assert decoded(zlib.compress(TEXT), ["br"], limit=1000) == TEXT
    assert decoded(zlib.compress(TEXT)[:-1], ["br"], limit=1000) is None
    assert decoded(zlib.compress(bytes(100_000)), ["br"], limit=1000) is None
    assert decoded(TEXT, ["br"], limit=1000) is None


class _Zstd:
    """A library of the same shape, whose coding is deflate."""

    ZstdError = zlib.error

    class ZstdDecompressor:
        def __init__(self) -> None:
            self._coder = zlib.decompressobj()

        def decompress(self, data: bytes, max_length: int) -> bytes:
            return self._coder.decompress(data, max_length)

        @property
        def eof(self) -> bool:
            return self._coder.eof


@pytest.mark.parametrize(
    ("coding", "module", "library"),
    [
        ("br", "brotli", _Brotli),
        ("br", "brotlicffi", _Brotli),
        ("zstd", "compression.zstd", _Zstd),
        ("zstd", "backports.zstd", _Zstd),
    ],
)
def test_a_coding_is_read_to_its_limit_by_any_library(
    coding: str, module: str, library: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("brotli", "brotlicffi", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported
    body = zlib.compress(TEXT)
    assert decoded(body, [coding], limit=1000) is None
    monkeypatch.setitem(sys.modules, module, library)
    assert decoded(body, [coding], limit=len(TEXT)) == TEXT
    assert decoded(body, [coding], limit=len(TEXT) - 1) is None
    assert decoded(body[:-1], [coding], limit=1000) is None
    assert decoded(TEXT, [coding], limit=1000) is None


@pytest.mark.parametrize(
    ("wishes", "asked"),
    [
        ([], "identity"),
        ([""], "identity"),
        (["br"], "identity"),
        (["br, zstd", "gzip;q=0.5 , Deflate"], "gzip;q=0.5, Deflate"),
        (["x-gzip"], "x-gzip"),
        (["\xa0gzip"], "identity"),
        (["X-GZip"], "X-GZip"),
        (["*"], "gzip, deflate"),
        (["*; q=0.5, gzip"], "deflate; q=0.5, gzip"),
        (["gzip;q=0, *"], "gzip;q=0, deflate"),
        (["br, *;q=0"], "*;q=0"),
        (["br, identity;q=0"], "identity;q=0"),
        (["gzip;q=1.0, *; Q=0.00"], "gzip;q=1.0, *; Q=0.00"),
    ],
)
def test_codings_asked_for_can_be_read_here_and_by_the_caller(
    wishes: list[str], asked: str
) -> None:
    assert readable_codings(wishes) == asked


def test_codings_are_those_of_the_content_encoding_fields_in_their_order() -> None:
    fields = [("Content-Encoding", "gzip"), ("Content-Type", "br"), ("content-encoding", "br")]
    assert coded_fields(fields) == ["gzip", "br"]


def test_three_codings_are_read_and_four_are_not() -> None:
    body = TEXT
    for _ in range(3):
        body = gzip.compress(body)
    assert decoded(body, ["gzip, gzip, gzip"], limit=1000) == TEXT
    assert decoded(gzip.compress(body), ["gzip, gzip, gzip, gzip"], limit=1000) is None


@pytest.mark.parametrize("name", ["\xa0gzip", "Xgzip"])
def test_another_character_belongs_to_the_name_of_a_coding(name: str) -> None:
    assert decoded(gzip.compress(TEXT), [name], limit=1000) is None
