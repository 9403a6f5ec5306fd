"""The chunked coding, byte by byte and in one piece (RFC 9112 section 7.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http.chunks import BadChunks, Chunks, TrailerTooLong

MAX_TRAILER = 100


def decoded(data: bytes, size: int) -> tuple[bytes, bytes, bool] | type[Exception]:
    """Body, what is behind it, and whether it is complete; or the refusal."""
    chunks = Chunks(MAX_TRAILER)
    body, behind = b"", b""
    try:
        for begin in range(0, len(data), size):
            piece, rest = chunks.feed(data[begin : begin + size])
            body += piece
            behind += rest
    except (BadChunks, TrailerTooLong) as error:
        return type(error)
    return body, behind, chunks.is_complete


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"0\r\n\r\n", (b"", b"", True)),
        (b"3\r\nabc\r\n0\r\n\r\nGET", (b"abc", b"GET", True)),
        (b"A\r\n0123456789\r\n00\r\n\r\n", (b"0123456789", b"", True)),
        (b'1;a;b=c;d="\\"x y"\r\nz\r\n0\r\nX: y\r\n\r\n', (b"z", b"", True)),
        (b"3\r\nab", (b"ab", b"", False)),
        (b"3\r\nabcd\r\n", BadChunks),
        (b"\r\n", BadChunks),
        (b"3;\r\nabc\r\n", BadChunks),
        (b"3; a\r\nabc\r\n", BadChunks),
        (b"3 \r\nabc\r\n", BadChunks),
        (b"3\nabc\r\n", BadChunks),
        (b'3;a="\r\nabc\r\n', BadChunks),
        (b"10000000000000000\r\n", BadChunks),
        (b"0\r\nContent-Length: 3\r\n\r\n", BadChunks),
        (b"0\r\ntransfer-encoding: chunked\r\n\r\n", BadChunks),
        (b"0\r\nX: y\n\r\n", BadChunks),
        (b"0\r\nX : y\r\n\r\n", BadChunks),
        (b"0\r\n" + b"X: " + b"y" * 93 + b"\r\n\r\n", (b"", b"", True)),
        (b"0\r\n" + b"X: " + b"y" * 94 + b"\r\n\r\n", TrailerTooLong),
    ],
)
def test_chunks(data: bytes, outcome: object, size: int) -> None:
    assert decoded(data, size) == outcome


ATOMS = st.sampled_from(
    [b"0", b"3", b"a", b"\r\n", b"\r", b"\n", b";", b"=", b'"', b"\\", b" ", b"abc", b"X: y\r\n"]
)


@given(st.lists(ATOMS, max_size=12).map(b"".join), st.integers(1, 7))
def test_the_outcome_does_not_depend_on_the_cut(data: bytes, size: int) -> None:
    assert decoded(data, size) == decoded(data, max(1, len(data)))
