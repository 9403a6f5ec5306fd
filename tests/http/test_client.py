"""The HTTP client towards the API, on connections at whose other end the test itself sits."""

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from proxy.clock import SystemClock
from proxy.http.client import Client
from proxy.http.messages import BadAnswer, OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.http.pool import Pool
from proxy.http.received import Response
from proxy.settings import Upstream as UpstreamSettings
from tests.kit.certificates import Authority
from tests.kit.listener import HOST, Listener, reset
from tests.kit.upstream import free_port

GET = Outgoing("GET", "/", "", [], b"")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LIMIT = 5.0  # seconds; what takes longer hangs


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_done = asyncio.Event()

    async def request(self) -> bytes:
        """Return the head of the next request."""
        async with asyncio.timeout(LIMIT):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Return what comes until the client closes, or resets with something unread."""
        try:
            async with asyncio.timeout(LIMIT):
                return await self._reader.read()
        except ConnectionResetError:
            return b""

    def say(self, data: bytes) -> None:
        """Write, which over loopback the other end can read at once."""
        self._writer.write(data)

    def reset(self) -> None:
        reset(self._writer)

    def close(self) -> None:
        self.is_done.set()


class Server:
    """Accepts connections and leaves them to the test."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._came: asyncio.Queue[Peer] = asyncio.Queue()
        self._listener = Listener(self._serve)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._listener.port}"

    async def peer(self) -> Peer:
        """Return the next connection's end."""
        async with asyncio.timeout(LIMIT):
            return await self._came.get()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["Server"]:
        async with self._listener:
            yield self
            for peer in self.peers:
                peer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int
    ) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self._came.put_nowait(peer)
        await peer.is_done.wait()


def settings_of(server: Server, **others: float) -> UpstreamSettings:
    urls = {"api_url": server.url, "login_url": server.url}
    return UpstreamSettings.model_validate({**urls, "response_timeout": 30, **others})


@asynccontextmanager
async def upstream_for(server: Server, **others: float) -> AsyncIterator[Client]:
    upstream = Client(settings_of(server, **others), server.url, clock=SystemClock())
    try:
        yield upstream
    finally:
        await upstream.close()


@asynccontextmanager
async def meeting(**others: float) -> AsyncIterator[tuple[Server, Client]]:
    async with Server().serve() as server, upstream_for(server, **others) as upstream:
        yield server, upstream


def start(upstream: Client, request: Outgoing = GET) -> "asyncio.Task[Response]":
    return asyncio.get_running_loop().create_task(upstream.send(request))


async def ask(server: Server, upstream: Client, answer: bytes = OK) -> tuple[Peer, Response]:
    """Send on a new connection, and return it with what was answered."""
    sending = start(upstream)
    peer = await server.peer()
    await peer.request()
    peer.say(answer)
    return peer, await sending


async def outcome_of(waiting: "asyncio.Task[object]") -> BaseException | None:
    """Return what ended it; one that does not end fails the test."""
    _, hung = await asyncio.wait([waiting], timeout=LIMIT)
    for task in hung:
        task.cancel()
    assert not hung, "it hangs"
    return waiting.exception()


async def let_the_loop_read() -> None:
    """What has come over loopback is in the event loop's hands afterwards."""
    for _ in range(3):
        await asyncio.sleep(0)  # noqa: TID251 -- yields, and waits for no clock


# Bodies that break off

BY_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
BY_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TO_THE_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
PART = {BY_LENGTH: b"half", BY_CHUNKS: b"4\r\nhalf\r\n", TO_THE_CLOSE: b"half"}


@pytest.mark.parametrize("is_awaited", [True, False], ids=["awaited", "later"])
@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (BY_CHUNKS, "bad chunk"),
        *((head, fault) for head in PART for fault in ("reset", "given up")),
    ],
    ids=["chunks, a bad one"]
    + [
        f"{framing}, {end}" for framing in ("length", "chunks", "close") for end in ("reset", "end")
    ],
)
async def test_a_body_that_breaks_off_is_known_to(
    head: bytes, fault: str, *, is_awaited: bool
) -> None:
    """Whether its reader waits for more just then or comes back later; no connection is kept."""
    async with meeting() as (server, upstream):
        peer, answer = await ask(server, upstream, head + PART[head])
        assert await upstream.next_chunk(answer) == b"half"
        reading = asyncio.get_running_loop().create_task(upstream.next_chunk(answer))
        if is_awaited:
            await let_the_loop_read()
        else:
            reading.cancel()
        match fault:
            case "bad chunk":
                peer.say(b"zz\r\n")
            case "reset":
                peer.reset()
            case _:
                await upstream.give_up()
        await let_the_loop_read()
        if not is_awaited:
            reading = asyncio.get_running_loop().create_task(upstream.next_chunk(answer))
        error = await outcome_of(reading)
        assert isinstance(error, OutcomeUnknown)
        assert error.timed_out is (fault == "given up")
        assert upstream.connections() == (0, 0)


async def test_a_body_that_broke_off_before_it_was_looked_at_is_not_complete() -> None:
    async with meeting() as (server, upstream):
        peer, answer = await ask(server, upstream, TO_THE_CLOSE + b"half")
        peer.reset()
        await let_the_loop_read()
        assert not answer.is_complete
        with pytest.raises(OutcomeUnknown):
            await upstream.read(answer, 100)


async def test_a_close_is_the_end_of_a_body_without_length() -> None:
    async with meeting() as (server, upstream):
        peer, answer = await ask(server, upstream, TO_THE_CLOSE + b"all")
        peer.close()
        assert (await upstream.read(answer, 100)).body == b"all"


async def test_what_was_read_of_a_long_body_comes_again() -> None:
    async with meeting() as (server, upstream):
        head = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n"
        peer, answer = await ask(server, upstream, head + b"12345")
        assert await upstream.read_short(answer, 4) is None
        peer.say(b"6789")
        with pytest.raises(BadAnswer):
            await upstream.read(answer, 8)
        assert upstream.connections() == (0, 1)


# The time to the head


@pytest.mark.parametrize("first", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 O", b""])
async def test_silence_before_the_final_head_ends_in_time(first: bytes) -> None:
    async with meeting(response_timeout=1.5) as (server, upstream):
        sending = start(upstream)
        peer = await server.peer()
        await peer.request()
        peer.say(first)
        error = await outcome_of(sending)
        assert isinstance(error, OutcomeUnknown)
        assert error.timed_out


async def test_a_dripping_head_does_not_prolong_the_time() -> None:
    async with meeting(response_timeout=1.5) as (server, upstream):
        sending = start(upstream)
        peer = await server.peer()
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(200):
            done, _ = await asyncio.wait([sending], timeout=0.02)
            if done:
                break
            peer.say(b"x")
        assert sending.done()
        assert isinstance(await outcome_of(sending), OutcomeUnknown)
        assert await peer.rest() == b""


async def test_a_body_may_take_longer_than_the_head_as_long_as_it_comes() -> None:
    async with meeting(response_timeout=1.5) as (server, upstream):
        peer, answer = await ask(server, upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        reading = asyncio.get_running_loop().create_task(upstream.read(answer, 100))
        for _ in range(6):
            await asyncio.wait([reading], timeout=0.3)
            peer.say(b"x")
        assert await outcome_of(reading) is None


# Whether it may still leave


async def test_what_may_no_longer_leave_is_not_sent_and_its_connection_is_kept() -> None:
    async with meeting() as (server, upstream):
        with pytest.raises(Withheld):
            await upstream.send(GET, may_leave=lambda: False)
        assert upstream.connections() == (0, 1)
        peer, _ = await ask(server, upstream)
        assert server.peers == [peer]


async def test_it_is_asked_after_the_wait_for_a_connection() -> None:
    """A connection of the pool counts as a wait, too."""
    said: list[str] = []
    async with meeting(max_connections=1) as (server, upstream):
        first = start(upstream)
        peer = await server.peer()
        await peer.request()

        def may_leave() -> bool:
            said.append("asked")
            return True

        second = asyncio.get_running_loop().create_task(upstream.send(GET, may_leave=may_leave))
        await let_the_loop_read()
        assert said == []
        peer.say(OK)
        await first
        await peer.request()
        assert said == ["asked"]
        peer.say(OK)
        await second


async def test_a_waiter_that_leaves_as_a_connection_comes_free_passes_it_on() -> None:
    """The pool wakes one of those who wait, and one alone."""
    async with meeting(max_connections=1) as (server, upstream):
        _, first = await ask(server, upstream, BY_LENGTH)
        leaving, staying = start(upstream), start(upstream)
        await let_the_loop_read()
        first.release()
        leaving.cancel()
        peer = await server.peer()
        await peer.request()
        peer.say(OK)
        assert (await staying).status == 200
        assert leaving.cancelled()


# Connections that are used again


@pytest.mark.parametrize("is_read", [True, False], ids=["in our hands", "on its way"])
async def test_an_answer_nobody_asked_for_is_not_given_to_the_next(*, is_read: bool) -> None:
    """Whether the event loop has read it already or not."""
    async with meeting() as (server, upstream):
        peer, first = await ask(server, upstream)
        assert (await upstream.read(first, 10)).body == b"ok"
        peer.say(OK.replace(b"ok", b"no"))
        if is_read:
            await let_the_loop_read()
        _, second = await ask(server, upstream, OK.replace(b"ok", b"2."))
        assert (await upstream.read(second, 10)).body == b"2."
        assert await peer.rest() == b""


async def test_session_tickets_are_no_answers(tmp_path: Path) -> None:
    """Over TLS 1.3 they come unasked: to a fresh connection, which is used, and used again."""
    authority = Authority(tmp_path)
    pair = authority.issue("api")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pair.cert_file, pair.key_file)
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK)
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0, ssl=context) as server:
        url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"
        settings = UpstreamSettings(api_url=url, login_url=url, ca_file=authority.file)
        upstream = Client(settings, url, clock=SystemClock())
        for _ in range(3):
            assert (await upstream.read(await upstream.send(GET), 10)).body == b"ok"
        assert connections == 1
        await upstream.close()


async def test_after_any_number_of_useless_connections_comes_a_fresh_one() -> None:
    async with meeting() as (server, upstream):
        sendings = [start(upstream) for _ in range(6)]
        peers = [await server.peer() for _ in sendings]
        for peer in peers:
            await peer.request()
            peer.say(OK)
        for answer in await asyncio.gather(*sendings):
            await upstream.read(answer, 10)
        assert upstream.connections() == (0, 6)
        for peer in peers:
            peer.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        _, answer = await ask(server, upstream)
        assert (await upstream.read(answer, 10)).body == b"ok"
        assert upstream.connections() == (0, 1)


# A pooled connection that the server closes just then


async def warm(server: Server, client: Client) -> Peer:
    """Return the other end of a connection that was used once and waits for more."""
    peer, answer = await ask(server, client)
    await client.read(answer, 10)
    return peer


def end(peer: Peer, way: str) -> None:
    if way == "reset":
        peer.reset()
    else:
        peer.close()


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_safe_request_that_meets_a_close_is_sent_once_more(method: str, way: str) -> None:
    """On a new connection."""
    async with meeting() as (server, client):
        peer = await warm(server, client)
        sending = start(client, Outgoing(method, "/", "", [], b""))
        first = await peer.request()
        end(peer, way)
        fresh = await server.peer()
        assert await fresh.request() == first
        fresh.say(OK.removesuffix(b"ok") if method == "HEAD" else OK)
        assert (await sending).status == 200
        assert server.peers == [peer, fresh]


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_an_unsafe_request_is_never_sent_again(method: str, way: str) -> None:
    async with meeting() as (server, client):
        peer = await warm(server, client)
        sending = start(client, Outgoing(method, "/", "", [], b"body"))
        await peer.request()
        end(peer, way)
        error = await outcome_of(sending)
        assert isinstance(error, OutcomeUnknown)
        assert not error.may_repeat
        assert server.peers == [peer]


async def test_a_safe_request_is_sent_twice_at_most() -> None:
    async with meeting() as (server, client):
        peer = await warm(server, client)
        sending = start(client)
        await peer.request()
        peer.reset()
        fresh = await server.peer()
        await fresh.request()
        fresh.reset()
        error = await outcome_of(sending)
        assert isinstance(error, OutcomeUnknown)
        assert not error.may_repeat
        assert server.peers == [peer, fresh]


@pytest.mark.parametrize("heard", [b"", b"H", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_safe_request_whose_answer_has_begun_is_not_sent_again(heard: bytes) -> None:
    """An answer has begun, or (with nothing heard) the connection was a new one."""
    async with meeting() as (server, client):
        peer = await warm(server, client) if heard else None
        sending = start(client)
        if peer is None:
            peer = await server.peer()
        await peer.request()
        peer.say(heard)
        await let_the_loop_read()
        peer.close()
        assert isinstance(await outcome_of(sending), OutcomeUnknown)
        assert server.peers == [peer]


async def test_a_request_that_may_no_longer_leave_is_not_sent_again() -> None:
    """Its sender decides: in its turn it may."""
    allowed = iter([True, False])
    async with meeting() as (server, client):
        peer = await warm(server, client)
        sending = asyncio.get_running_loop().create_task(
            client.send(GET, may_leave=lambda: next(allowed))
        )
        await peer.request()
        peer.reset()
        error = await outcome_of(sending)
        assert isinstance(error, OutcomeUnknown)
        assert error.may_repeat
        assert server.peers == [peer]


async def test_a_connection_whose_request_is_not_read_whole_is_not_used_again() -> None:
    """The answer came early, and the rest of the request is still on its way."""
    async with meeting() as (server, client):
        sending = start(client, Outgoing("POST", "/", "", [], b"x" * 20_000_000))
        peer = await server.peer()
        await peer.request()
        peer.say(OK)
        assert (await client.read(await sending, 10)).body == b"ok"
        assert client.connections() == (0, 0)


async def test_an_idle_connection_is_closed_in_time() -> None:
    async with meeting(idle_timeout=0.2) as (server, client):
        peer = await warm(server, client)
        assert client.connections() == (0, 1)
        assert await peer.rest() == b""
        await let_the_loop_read()
        assert client.connections() == (0, 0)


# The pool


async def test_connections_are_bounded_and_given_in_order_of_arrival() -> None:
    async with meeting(max_connections=2) as (server, client):
        requests = [Outgoing("GET", f"/{number}", "", [], b"") for number in range(8)]
        sendings = [start(client, request) for request in requests]
        peers = [await server.peer(), await server.peer()]
        order = []
        for turn in range(4):
            for peer in peers:
                order.append((await peer.request()).split()[1])
                peer.say(OK)
            await asyncio.gather(*sendings[2 * turn : 2 * turn + 2])
        assert sorted(order) == [b"/%d" % number for number in range(8)]
        assert [set(order[at : at + 2]) for at in (0, 2, 4, 6)] == [
            {b"/%d" % at, b"/%d" % (at + 1)} for at in (0, 2, 4, 6)
        ]
        assert server.peers == peers


async def test_a_newcomer_does_not_overtake_a_waiter() -> None:
    async with meeting(max_connections=1) as (server, client):
        peer, first = await ask(server, client, BY_LENGTH.replace(b"99", b"2"))
        waiting = start(client, Outgoing("GET", "/waiting", "", [], b""))
        await let_the_loop_read()
        peer.say(b"ok")
        await client.read(first, 10)
        newcomer = start(client, Outgoing("GET", "/newcomer", "", [], b""))
        assert (await peer.request()).startswith(b"GET /waiting ")
        peer.say(OK)
        await waiting
        assert (await peer.request()).startswith(b"GET /newcomer ")
        peer.say(OK)
        await newcomer


async def test_a_request_that_leaves_while_connecting_gives_the_place_back() -> None:
    async with Server().serve() as server:
        settings = settings_of(server, max_connections=1)
        client = Client(settings, "http://192.0.2.1:9", clock=SystemClock())
        for _ in range(3):
            leaving = start(client)
            await let_the_loop_read()
            leaving.cancel()
            await asyncio.wait([leaving])
        client.apply(settings, server.url)
        assert client.connections() == (0, 0)
        _, answer = await ask(server, client)
        assert answer.status == 200
        await client.close()


async def test_the_wait_for_a_connection_has_its_time() -> None:
    async with meeting(max_connections=1, connect_timeout=2) as (server, client):
        await ask(server, client, BY_LENGTH)
        assert isinstance(await outcome_of(start(client)), Unsent)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (f"http://{HOST}:{free_port()}", "the server refuses connections"),
        ("http://nowhere.invalid", "the name of the server has no address"),
    ],
    ids=["refused", "no address"],
)
async def test_why_nothing_was_sent_is_a_sentence(base: str, reason: str) -> None:
    settings = UpstreamSettings(api_url=base, login_url=base)
    client = Client(settings, base, clock=SystemClock())
    error = await outcome_of(start(client))
    assert isinstance(error, Unsent)
    assert str(error) == reason
    await client.close()


# Bytes


async def test_every_byte_of_a_field_is_sent_as_it_came() -> None:
    fields = [("X-Name", "na\u00efve \udcff\udc80"), ("x-NAME", "")]
    async with meeting() as (server, client):
        sending = start(client, Outgoing("GET", "/", "a=%41", fields, b""))
        peer = await server.peer()
        assert await peer.request() == (
            b"GET /?a=%41 HTTP/1.1\r\nHost: "
            + server.url.removeprefix("http://").encode()
            + b"\r\nX-Name: na\xc3\xafve \xff\x80\r\nx-NAME: \r\n\r\n"
        )
        peer.say(OK)
        await sending


@pytest.mark.parametrize("value", ["a\r\nX-B: b", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("place", ["name", "value", "path", "query", "method"])
async def test_nothing_can_break_a_line_of_a_request(place: str, value: str) -> None:
    """Whatever was forgotten further up."""
    name = value if place == "name" else "X-A"
    text = value if place == "value" else "a"
    request = Outgoing(
        value if place == "method" else "GET",
        f"/{value if place == 'path' else ''}",
        value if place == "query" else "",
        [(name, text)],
        b"",
    )
    async with meeting() as (server, client):
        with pytest.raises(ValueError, match="line break"):
            await client.send(request)
        assert server.peers == []


@pytest.mark.parametrize(
    "loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_an_answer_that_is_abandoned_over_tls_is_read_no_further(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    """At the end of a message a close may wait for the peer's; in the middle it may not."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(abandon_over_tls(tmp_path))


async def abandon_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("api")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert_file, pair.key_file)
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(BY_CHUNKS)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await writer.drain()
        ended.set()

    async with await asyncio.start_server(answer, HOST, 0, ssl=context) as server:
        url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"
        settings = UpstreamSettings(api_url=url, login_url=url, ca_file=authority.file)
        client = Client(settings, url, clock=SystemClock())
        response = await client.send(GET)
        await client.next_chunk(response)
        response.release()
        async with asyncio.timeout(10):  # a close that waits for the peer takes 30 s
            await ended.wait()
        assert client.connections() == (0, 0)
        await client.close()


# The end


async def test_a_request_that_is_given_up_on_is_told_what_became_of_it() -> None:
    """The one that was sent timed out; the one that waited for a connection never left."""
    async with meeting(max_connections=1) as (server, upstream):
        sent = start(upstream)
        await (await server.peer()).request()
        waiting = start(upstream)
        await let_the_loop_read()
        await upstream.give_up()
        error = await outcome_of(sent)
        assert isinstance(error, OutcomeUnknown)
        assert error.timed_out
        assert isinstance(await outcome_of(waiting), Unsent)
        assert isinstance(await outcome_of(start(upstream)), Unsent)


async def test_a_caller_that_is_cancelled_as_the_pool_ends_is_cancelled() -> None:
    async with meeting(max_connections=1) as (server, upstream):
        sent = start(upstream)
        await (await server.peer()).request()
        waiting = start(upstream)
        await let_the_loop_read()
        waiting.cancel()
        await upstream.give_up()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await outcome_of(sent)


async def test_a_server_that_no_longer_reads_does_not_delay_the_end() -> None:
    async with meeting() as (server, upstream):
        sending = start(upstream, Outgoing("POST", "/", "", [], b"x" * 50_000_000))
        await (await server.peer()).request()
        async with asyncio.timeout(LIMIT):
            await upstream.give_up()
        assert isinstance(await outcome_of(sending), OutcomeUnknown)


# Another server


async def test_a_request_that_waits_for_a_connection_goes_where_it_was_meant_to_go() -> None:
    """A reload meanwhile changes neither the server nor the name it is called by."""
    async with meeting(max_connections=1) as (old, upstream), Server().serve() as new:
        first = start(upstream)
        peer = await old.peer()
        await peer.request()
        waiting = start(upstream)
        await let_the_loop_read()
        upstream.apply(settings_of(new), new.url)
        peer.say(OK)
        await first
        assert f"\r\nHost: {old.url.removeprefix('http://')}\r\n".encode() in await peer.request()
        peer.say(OK)
        await waiting
        _, answer = await ask(new, upstream)
        assert answer.status == 200


async def test_pools_that_are_out_of_use_are_forgotten() -> None:
    def pools() -> int:
        gc.collect()
        return sum(isinstance(thing, Pool) for thing in gc.get_objects())

    async with meeting() as (server, upstream):
        before = pools()
        for seconds in range(1, 10):
            upstream.apply(settings_of(server, response_timeout=seconds), server.url)
        assert pools() == before
        peer, answer = await ask(server, upstream, BY_LENGTH)
        upstream.apply(settings_of(server), server.url)
        assert upstream.connections() == (1, 0)  # until its answer is over
        peer.say(b"x" * 99)
        assert len((await upstream.read(answer, 99)).body) == 99
        assert upstream.connections() == (0, 0)
