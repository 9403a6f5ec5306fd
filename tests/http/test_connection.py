"""One connection to a server: what it makes of an answer does not depend on how the bytes come."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fuzz.answers import Outcome, outcome_of
from tests.e2e.hostile import answers

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"
)
TRAILERS = CHUNKS[:-2] + b"X-A: 1\r\nX-B: 2\r\n\r\n"
TO_THE_CLOSE = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nhello"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n" + LENGTH
BARE_LF = LENGTH.replace(b"\r\n", b"\n")
WHOLE = {
    "length": LENGTH,
    "chunks": CHUNKS,
    "trailers": TRAILERS,
    "no content": NO_CONTENT,
    "interim": INTERIM,
    "bare LF": BARE_LF,
    "not kept": LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
}
SENT = {
    **WHOLE,
    "to the close": TO_THE_CLOSE,
    **{
        f"{table}: {name}": row.sent
        for table, rows in answers.TABLES.items()
        for name, row in rows.items()
        if len(row.sent) < 2000
    },
}


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """Every way to make two pieces of it, and one byte at a time."""
    yield from ([data[:at], data[at:]] for at in range(1, len(data)))
    yield [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "open"])
@pytest.mark.parametrize("has_body", [True, False], ids=["GET", "HEAD"])
@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
async def test_an_answer_has_one_outcome_wherever_it_is_cut(
    sent: bytes, *, has_body: bool, is_closed: bool
) -> None:
    whole = await outcome_of([sent], has_body=has_body, is_closed=is_closed)
    for pieces in cuts(sent):
        assert await outcome_of(pieces, has_body=has_body, is_closed=is_closed) == whole, pieces


async def test_a_length_may_begin_with_any_number_of_zeros() -> None:
    """Python by itself reads no number of more than 4,300 digits."""
    padded = LENGTH.replace(b"5", b"5".rjust(5000, b"0"))
    plain = await outcome_of([LENGTH], has_body=True, is_closed=False)
    padded_outcome = await outcome_of([padded], has_body=True, is_closed=False)
    assert replace(padded_outcome, fields=plain.fields) == plain


@pytest.mark.parametrize("sent", WHOLE.values(), ids=WHOLE)
async def test_what_follows_an_answer_spoils_it_and_its_connection(sent: bytes) -> None:
    """Whether it is a whole answer or the first byte of one."""
    alone = await outcome_of([sent], has_body=True, is_closed=False)
    assert alone.heard == "whole"
    assert alone.may_be_used_again == (b"close" not in sent)
    for more in (b"H", LENGTH, b"\r\n", b"\0"):
        for pieces in ([sent + more], [sent, more], *cuts(sent + more)):
            assert await outcome_of(pieces, has_body=True, is_closed=False) == Outcome("not HTTP")


@pytest.mark.parametrize("sent", [LENGTH, CHUNKS, TRAILERS], ids=["length", "chunks", "trailers"])
async def test_what_ends_too_early_is_never_whole(sent: bytes) -> None:
    for count in range(len(sent)):
        outcome = await outcome_of([sent[:count]], has_body=True, is_closed=True)
        assert outcome.heard in {"lost", "broken"}
        assert not outcome.may_be_used_again


BEHIND_A_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
ENDLESS = {
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a phrase": (b"HTTP/1.1 200 ", b"x" * 1000),
    "a field": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1000),
    "fields": (b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"),
    "long fields": (b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 60_000 + b"\r\n"),
    "a trailer": (BEHIND_A_CHUNK + b"0\r\nX: ", b"x" * 1000),
    "trailers": (BEHIND_A_CHUNK + b"0\r\n", b"X: x\r\n"),
    "long trailers": (BEHIND_A_CHUNK + b"0\r\n", b"X: " + b"x" * 60_000 + b"\r\n"),
    "a chunk extension": (BEHIND_A_CHUNK + b"1;", b"x" * 1000),
    "a chunk size": (BEHIND_A_CHUNK, b"0" * 1000),
}


@pytest.mark.parametrize(("first", "again"), ENDLESS.values(), ids=ENDLESS)
async def test_what_never_ends_is_ended(first: bytes, again: bytes) -> None:
    """After some hundred kilobytes that bring nothing of a body."""
    pieces = [first, *[again] * (300_000 // len(again))]
    outcome = await outcome_of(pieces, has_body=True, is_closed=False)
    assert outcome.heard in {"not HTTP", "broken"}
