"""The wire to the store: replies are read the same however they are cut, and each is given once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.store.wire import WINDOW, ErrorReply, Incomplete, Reply, StoreDown, Wire, pack, parse
from tests.kit.listener import HOST, Listener
from tests.kit.process import until
from tests.kit.replicas import pause

REPLIES: list[tuple[bytes, Reply]] = [
    (b"+OK\r\n", b"OK"),
    (b"-NOSCRIPT No matching script\r\n", ErrorReply("NOSCRIPT")),
    (b":12\r\n", 12),
    (b":-1\r\n", -1),
    (b"$3\r\na\r\n\r\n", b"a\r\n"),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n:1\r\n$1\r\nx\r\n*1\r\n$-1\r\n", [1, b"x", [None]]),
]


@pytest.mark.parametrize(("text", "reply"), REPLIES)
def test_reply_is_read_whole_and_nothing_behind_it(text: bytes, reply: Reply) -> None:
    assert parse(text + b":9\r\n") == (reply, len(text))
    for cut in range(len(text)):
        with pytest.raises(Incomplete):
            parse(text[:cut])


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n",
        b":x\r\n",
        b":\r\n",
        b":" + b"1" * 5000 + b"\r\n",
        b"$x\r\n",
        b"$1\r\nab\r\n",
        b"$9999999\r\n",
        b"*1\r\n" * 9 + b":1\r\n",
    ],
)
def test_what_is_no_reply_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- whatever it says
        parse(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_incomplete_or_refused(data: bytes) -> None:
    try:
        _, end = parse(data)
    except (Incomplete, ValueError):
        return
    assert 0 < end <= len(data)


def test_command_is_written_with_the_length_of_each_word_in_bytes() -> None:
    assert pack(("SET", "ä", 12, b"\r\n")) == (
        b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$2\r\n12\r\n$2\r\n\r\n\r\n"
    )


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def wire_to(serve: Serve, *, seconds: float = 20.0) -> AsyncIterator[tuple[Wire, list[str]]]:
    """A wire to a server of the test, and why it was lost."""
    lost: list[str] = []
    async with Listener(serve) as server:
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(timeout=lambda: seconds, lost=lambda down: lost.append(str(down))),
            HOST,
            server.port,
        )
        yield wire, lost
        wire.close(StoreDown("closed"))


async def _has(what: Sequence[object], count: int) -> bool:
    return len(what) >= count


async def test_commands_are_answered_in_order_however_the_answers_are_cut() -> None:
    answers = b"".join(text for text, _ in REPLIES)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        for at in range(len(answers)):
            writer.write(answers[at : at + 1])
            await writer.drain()

    got: list[Reply | StoreDown] = []
    async with wire_to(serve) as (wire, lost):
        for _ in REPLIES:
            wire.send(("GET", "x"), got.append)
        await until(lambda: _has(got, len(REPLIES)))
        await until(lambda: _has(lost, 1))
    assert got == [reply for _, reply in REPLIES]
    assert len(lost) == 1


async def test_lost_wire_answers_every_command_once_with_an_outage() -> None:
    """Those under way, those that wait here, and those that come later."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await reader.readuntil(b"GET")
        writer.write(b":1\r\n")

    got: list[Reply | StoreDown] = []
    async with wire_to(serve) as (wire, lost):
        for _ in range(WINDOW + 5):
            wire.send(("GET", "x"), got.append)
        await until(lambda: _has(lost, 1))
        assert len(got) == WINDOW + 5
        wire.send(("GET", "x"), got.append)
    assert got[0] == 1
    assert all(isinstance(reply, StoreDown) for reply in got[1:])
    assert len(got) == WINDOW + 6
    assert lost == ["the connection was lost"]


@pytest.mark.parametrize("text", [b"nonsense\r\n", b":1\r\n:2\r\n"])
async def test_server_that_speaks_another_language_or_too_much_is_an_outage(text: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await reader.readuntil(b"GET")
        writer.write(text)
        await reader.read()

    async with wire_to(serve) as (wire, lost):
        wire.send(("GET", "x"), lambda _: None)
        await until(lambda: _has(lost, 1))
        assert lost == ["the answer is not usable"]


async def test_time_of_a_command_counts_from_when_it_was_written() -> None:
    """Behind a full window a command waits here, which the server is not blamed for."""

    async def serve(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        assert number == 1
        for _ in range(3 * WINDOW + 1):
            await reader.readuntil(b"GET")
            await pause(0.02)
            writer.write(b":1\r\n")

    async with wire_to(serve, seconds=0.02 * WINDOW + 0.5) as (wire, lost):
        got: list[Reply | StoreDown] = []
        for _ in range(3 * WINDOW):  # takes longer than the time one of them has
            wire.send(("GET", "x"), got.append)
        assert await wire.run("GET", "x") == 1
        assert got == [1] * (3 * WINDOW)
        assert not lost


async def test_server_that_does_not_answer_in_time_is_an_outage() -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter, __: int) -> None:
        await reader.read()

    async with wire_to(serve, seconds=0.05) as (wire, lost):
        with pytest.raises(StoreDown, match="no answer in time"):
            await wire.run("GET", "x")
        assert lost == ["no answer in time"]
