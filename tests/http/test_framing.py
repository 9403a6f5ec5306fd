"""How answers are framed (RFC 9112 section 6), and their heads as bytes."""

import pytest

from proxy.http.framing import Asked, Ending, frame
from proxy.rules.headers import Field

GET = Asked("GET", knows_chunks=True, stays=True, idle_seconds=9)
HEAD = Asked("HEAD", knows_chunks=True, stays=True, idle_seconds=9)
OLD = Asked("GET", knows_chunks=False, stays=True, idle_seconds=9)
LENGTH = ("Content-Length", "3")
STAYS = b"Connection: keep-alive\r\nKeep-Alive: timeout=9\r\n"


@pytest.mark.parametrize(
    ("asked", "status", "fields", "ending", "added"),
    [
        (GET, 200, [LENGTH], "length", STAYS),
        (GET, 200, [], "last chunk", b"Transfer-Encoding: chunked\r\n" + STAYS),
        (GET, 204, [LENGTH], "nothing", STAYS),
        (GET, 304, [LENGTH], "nothing", STAYS),
        (HEAD, 200, [LENGTH], "nothing", STAYS),
        (HEAD, 200, [], "nothing", STAYS),
        (OLD, 200, [LENGTH], "length", STAYS),
        (OLD, 200, [], "close", b"Connection: close\r\n"),
    ],
)
def test_a_body_ends_in_one_way(
    asked: Asked, status: int, fields: list[Field], ending: Ending, added: bytes
) -> None:
    head = frame(asked, status, "Fine", fields, "now")
    length = b"Content-Length: 3\r\n" if fields and status != 204 else b""
    line = b"HTTP/1.1 %d Fine\r\n" % status
    assert head.data == line + length + b"Date: now\r\n" + added + b"\r\n"
    assert (head.ending, head.closes) == (ending, ending == "close")


def test_a_length_keeps_the_zeros_in_front() -> None:
    """Any number of them; Python by itself reads no number of more than 4,300 digits."""
    padded = "3".zfill(5000)
    head = frame(GET, 200, "", [("Content-Length", padded), ("content-length", "3")], "now")
    assert (head.ending, head.length) == ("length", 3)
    assert f"Content-Length: {padded}\r\n".encode() in head.data


def test_a_date_is_added_only_where_there_is_none() -> None:
    assert frame(GET, 200, "", [LENGTH, ("date", "then")], "now").data.count(b"now") == 0


def test_a_missing_phrase_is_the_registered_one() -> None:
    assert frame(GET, 404, "", [LENGTH], "now").data.startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_bytes_that_are_not_utf_8_are_written_as_they_were_read() -> None:
    value = b"x\xe9 \xc3\xa9"
    fields = [("X-Name", value.decode("utf-8", "surrogateescape"))]
    assert b"X-Name: " + value + b"\r\n" in frame(GET, 200, "", fields, "now").data


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("", [("A", "b\r\nC: d")]),
        ("", [("A", "b\nC: d")]),
        ("", [("A\r", "b")]),
        ("OK\r\nA: b", []),
        ("", [LENGTH, ("content-length", "4")]),
        ("", [("Content-Length", "3, 3")]),
    ],
)
def test_no_field_ends_its_line_and_no_length_has_a_rival(reason: str, fields: list[Field]) -> None:
    with pytest.raises(ValueError, match=r"length|line end"):
        frame(GET, 200, reason, fields, "now")
