"""Start, reload, drain and death of the program itself: nothing is lost, doubled or sent early.

What the upstream saw is the measure. The rules of a refused request are in test_refused.py, the
answers to faults of the wire in test_outcomes.py; a login server that is down at the start, and a
secret file that changes without a reload, in test_managed.py.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Self

import pytest

from proxy.rules.digests import account_id
from tests.kit.client import RawConnection, Response, exchange, parse_response
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.logins import log_in
from tests.kit.process import SERVE, Process, document_for, serving, until
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import Hang, RawUpstream, RecordedRequest, Reply, Step, free_port

EXPORTS = "/api/v2/recordings/exports"
UNPACED = "/api/v2/users/me"
ACCEPTED = Reply(202, body=b'{"state": "PENDING"}')
TOLERANCE = 0.05  # the API stamps in the loop of the test, which a busy machine keeps waiting
KEY = "a-key-of-a-caller"
LONDON = {
    "name": "london",
    "client_id": "london-id",
    "client_secret": "first-secret",
    "keys": [f"sha256:{sha256(KEY.encode()).hexdigest()}"],
}


def export(key: str, token: str, *fields: str) -> bytes:
    body = b'{"mediaType": "voice"}'
    head = [
        f"POST {EXPORTS} HTTP/1.1",
        "Host: proxy",
        f"Authorization: Bearer {token}",
        f"X-Export-Key: {key}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def post(process: Process, key: str = "1", token: str = "t", *fields: str) -> Response:
    data = export(key, token, *fields)
    return parse_response(await exchange(HOST, process.port, data, timeout=40), "POST")


def posts(process: Process, count: int, token: str = "t") -> "asyncio.Future[list[Response]]":
    return asyncio.gather(*(post(process, str(n), token) for n in range(count)))


def problem(response: Response) -> tuple[int, str]:
    assert response.values("content-type") == [b"application/problem+json"]
    return response.status, json.loads(response.body)["type"].removeprefix("urn:export-proxy:")


def check_drained(response: Response) -> None:
    """Nothing was sent, the connection ends, and coming back makes sense."""
    assert problem(response) == (503, "draining")
    assert response.values("connection") == [b"close"]
    (retry_after,) = response.values("retry-after")
    assert int(retry_after) >= 1


def exports_of(upstream: RawUpstream) -> list[RecordedRequest]:
    return [request for request in upstream.requests if request.target == EXPORTS.encode()]


def sends_per_key(upstream: RawUpstream) -> Counter[str]:
    return Counter(request.values("x-export-key")[0].decode() for request in exports_of(upstream))


def keeps_pace(times: Sequence[float], interval: float, *, stalled: float) -> bool:
    """True if any k sends after another take at least k intervals."""
    return all(
        times[k] - times[j] >= (k - j) * interval - TOLERANCE - stalled
        for j, k in combinations(range(len(times)), 2)
    )


def issuing(*tokens: str, seconds: int = 3600) -> Callable[[RecordedRequest], Step]:
    """An API that accepts every export, and a login server that issues these tokens in turn."""
    left = iter(tokens)

    def choose(request: RecordedRequest) -> Step:
        if request.target != b"/oauth/token":
            return ACCEPTED
        token = {"access_token": next(left), "token_type": "bearer", "expires_in": seconds}
        return Reply(
            headers=[("Content-Type", "application/json")], body=json.dumps(token).encode()
        )

    return choose


# Drain


async def test_a_drain_delivers_what_was_sent_and_refuses_what_was_not(tmp_path: Path) -> None:
    """One in flight and forty in the queue: a 202, forty refusals, and not one more send."""
    clock, pacing = FakeClock(), {"max_wait": 60, "max_in_flight": 1}
    async with (
        RawUpstream(default=Reply(202, delay=1), clock=clock) as upstream,
        serving(tmp_path, document_for(upstream.url, pacing=pacing)) as process,
    ):
        in_flight = asyncio.ensure_future(post(process, "in flight"))
        await upstream.received()
        waiting = posts(process, 40)
        await process.has_waiting(40)
        process.signal(signal.SIGTERM)
        for response in await waiting:
            check_drained(response)
        assert not in_flight.done()
        await clock.advance(1)
        assert (await in_flight).status == 202
        assert await process.ended() == 0
    assert len(upstream.requests) == 1
    codes = Counter(line["code"] for line in process.logged("request"))
    assert codes == {202: 1, 503: 40}
    assert [line["event"] for line in process.log if line["event"] != "request"] == [
        *("serving", "draining", "stopped"),
    ]


@pytest.mark.timed
async def test_what_is_not_answered_in_time_is_given_up_and_told_so(tmp_path: Path) -> None:
    """Two seconds before the end: 504, and nobody is told to come back."""
    async with (
        noting_stalls() as stalls,
        RawUpstream(default=Hang()) as upstream,
        serving(tmp_path, document_for(upstream.url, limits={"drain_timeout": 3.5})) as process,
    ):
        in_flight = asyncio.ensure_future(post(process))
        await upstream.received()
        begun = time.monotonic()
        process.signal(signal.SIGTERM)
        response = await in_flight
        answered = time.monotonic() - begun
        assert await process.ended() == 0
        ended = time.monotonic() - begun
    assert problem(response) == (504, "outcome-unknown")
    assert response.values("retry-after") == []
    assert 1.5 <= answered < 2.5 + stalls.total
    assert ended < 3.5 + stalls.total
    assert len(upstream.requests) == 1


async def test_readiness_fails_before_the_listener_closes(tmp_path: Path) -> None:
    """A load balancer has `drain_delay` seconds to notice; nobody is refused who can be served."""
    limits, pacing = {"drain_delay": 6}, {"interval": 4, "max_wait": 60}
    async with (
        RawUpstream(default=ACCEPTED) as upstream,
        serving(tmp_path, document_for(upstream.url, limits=limits, pacing=pacing)) as process,
    ):
        assert (await post(process, "before")).status == 202
        waiting = posts(process, 2)  # their slots are due after 4 and 8 s
        await process.has_waiting(2)
        begun = time.monotonic()
        process.signal(signal.SIGTERM)

        async def is_unready() -> bool:
            return (await process.ask("/readyz")).status == 503

        await until(is_unready)
        health = await process.ask("/healthz")
        check_drained(await post(process, "too late"))
        assert (await post(process, "a newcomer", "another")).status == 202
        answers = await waiting
        assert await process.ended() == 0
        with pytest.raises(ConnectionRefusedError):
            await post(process)
    assert health.status == 200
    assert sorted(answer.status for answer in answers) == [202, 503]
    for answer in answers:
        if answer.status == 503:
            check_drained(answer)
    assert time.monotonic() - begun >= 6
    assert len(upstream.requests) == 3


@pytest.mark.timed
async def test_a_drain_ends_every_wait_that_comes_before_a_send(tmp_path: Path) -> None:
    """For a token, for a body, for another try: refused at once, and not when the wait is over."""

    def never_issue(request: RecordedRequest) -> Step:
        return Hang() if request.target == b"/oauth/token" else ACCEPTED

    async with (
        RawUpstream(never_issue) as login,
        RawConnections() as connections,
        serving(
            tmp_path,
            document_for(
                f"http://{HOST}:{free_port()}",
                upstream={"login_url": login.url},
                accounts=[LONDON],
                retry={"initial_backoff": 8},
            ),
        ) as process,
    ):
        for data in (
            export("token", KEY),
            export("body", "t")[:-1],
            export("another try", "other"),
            b"POST /oauth/token HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
        ):
            await connections.open(process.port, data)
        await login.received()

        async def has_tried() -> bool:
            accounts = await process.accounts()
            return "other" in accounts and accounts["other"]["in_flight"] == 0

        await until(has_tried)
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        process.signal(signal.SIGTERM)
        *responses, login_response = await connections.responses()
        took = time.monotonic() - begun
        assert await process.ended() == 0
    for response in responses:
        check_drained(response)
    assert login_response.status == 503
    assert json.loads(login_response.body)["error"] == "temporarily_unavailable"
    assert took < 3  # the shortest of the waits is 4 s


class RawConnections:
    """Callers that may leave a request unfinished."""

    def __init__(self) -> None:
        self._open: list[RawConnection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._open:
            connection.close()

    async def open(self, port: int, data: bytes) -> None:
        connection = await RawConnection.open(HOST, port)
        self._open.append(connection)
        await connection.send(data)

    async def responses(self) -> list[Response]:
        return await asyncio.gather(*(one.read_response("POST") for one in self._open))

    async def closes(self) -> list[bytes]:
        """Read until all connections are closed."""
        return await asyncio.gather(*(one.read_to_close() for one in self._open))


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    """No traceback, and nothing is sent again on the way out."""
    async with (
        RawUpstream(default=Hang()) as upstream,
        serving(tmp_path, document_for(upstream.url)) as process,
        await RawConnection.open(HOST, process.port) as caller,
    ):
        await caller.send(export("1", "t"))
        await upstream.received()
        process.signal(signal.SIGTERM)

        async def is_draining() -> bool:
            return bool(process.logged("draining"))

        await until(is_draining)
        process.signal(second)
        assert await process.ended() == 128 + second  # the drain would take 23 s
        assert await caller.read_to_close() == b""
    assert "Traceback" not in process.stderr
    assert len(upstream.requests) == 1


# Death


@pytest.mark.timed
async def test_killed_with_waiters_and_started_again(tmp_path: Path) -> None:
    """Callers see a close; after the start nothing is early, and only what they repeat is sent."""
    interval = 0.5
    document = document_for("", pacing={"interval": interval, "max_wait": 60, "max_in_flight": 1})
    async with noting_stalls() as stalls, RawUpstream(default=ACCEPTED) as upstream:
        document["upstream"] = {"api_url": upstream.url, "login_url": upstream.url}
        async with serving(tmp_path, document) as process, RawConnections() as connections:
            for number in range(20):
                await connections.open(process.port, export(str(number), "t"))
            await upstream.received(2)
            await process.kill()
            killed_at = time.monotonic()
            closed = await connections.closes()
        answered = {str(n) for n, data in enumerate(closed) if b" 202 " in data}
        sent = set(sends_per_key(upstream))
        assert answered <= sent
        assert len(sent - answered) <= 1  # the one in flight, whose caller cannot know
        async with serving(tmp_path, document) as process:
            again = [str(n) for n in range(20) if str(n) not in sent][:5]
            responses = await asyncio.gather(*(post(process, key) for key in again))
    assert [response.status for response in responses] == [202] * 5
    assert set(sends_per_key(upstream).values()) == {1}
    assert sends_per_key(upstream).keys() == sent | set(again)
    after = [request.arrived_at for request in upstream.requests if request.arrived_at > killed_at]
    assert after[0] - killed_at >= interval
    assert keeps_pace(after, interval, stalled=stalls.longest)
    assert len(after) == 5


# Reload


@pytest.mark.timed
async def test_the_pace_changes_and_changes_back_while_fifty_wait(tmp_path: Path) -> None:
    """Order kept, nobody dropped, and each gap is that of the rule in force at its end."""
    slow, fast, margin = 0.2, 0.1, 0.03
    document = document_for("", pacing={"interval": fast, "max_wait": 60})
    async with noting_stalls() as stalls, RawUpstream(default=ACCEPTED) as upstream:
        document["upstream"] = {"api_url": upstream.url, "login_url": upstream.url}
        async with serving(tmp_path, document) as process:
            calls = []
            for number in range(50):  # one after the other, so that the order is known
                calls.append(asyncio.ensure_future(post(process, str(number))))
                await until(_has_come(process, upstream, len(calls)))
            changes = []
            for more, interval in ((5, slow), (15, fast)):
                await upstream.received(len(upstream.requests) + more)
                document["pacing"] = {"interval": interval, "max_wait": 60}
                process.configure(document)
                asked_at = time.monotonic()
                assert (await process.reload()).body == b"reloaded\n"
                changes.append((asked_at, time.monotonic()))
            responses = await asyncio.gather(*calls)
            assert await process.early_sends() == 0
    assert {response.status for response in responses} == {202}
    keys = [int(request.values("x-export-key")[0]) for request in upstream.requests]
    assert keys == list(range(50))
    (slower_asked, slower_done), (faster_asked, _) = changes
    times = [request.arrived_at for request in upstream.requests]
    in_force = [
        slow if slower_done + margin < later < faster_asked else fast
        for earlier, later in pairwise(times)
    ]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    slack = TOLERANCE + stalls.longest
    assert all(gap >= least - slack for gap, least in zip(gaps, in_force, strict=True))
    assert in_force.count(slow) >= 12 - stalls.longest / slow
    assert sum(in_force) - stalls.longest <= times[-1] - times[0]
    assert times[-1] - times[0] < sum(in_force) + 2 * slow + 2 * stalls.total
    assert slower_asked < faster_asked


def _has_come(process: Process, upstream: RawUpstream, count: int) -> Callable[[], Awaitable[bool]]:
    async def question() -> bool:
        return len(upstream.requests) + await process.waiting() >= count

    return question


RESTART = "cannot be changed by a reload; restart instead"
MISSING = {"cert_file": "/nowhere", "key_file": "/nowhere"}
BAD: list[tuple[dict[str, dict[str, Any]], list[str]]] = [
    ({"retry": {"budget": 2}}, ["retry.budget: must be less than or equal to 1"]),
    ({"listen": {"port": 1}}, [f"listen.port: {RESTART}"]),
    (
        {"listen": {"host": "localhost"}, "admin": {"port": 1}},
        [f"listen.host: {RESTART}", f"admin: {RESTART}"],
    ),
    ({"store": {"url": "redis://h:1/0"}}, [f"store.url: {RESTART}"]),
    (
        {"upstream": {"ca_file": "/nowhere"}},
        ["upstream.ca_file: cannot be used: No such file or directory"],
    ),
    (
        {"listen": {"tls": MISSING}},
        [f"listen.tls: {RESTART}", "listen.tls: cannot be used: No such file or directory"],
    ),
]


async def test_a_bad_reload_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """Whatever else the file says: the old one stays, as a whole."""
    other: dict[str, dict[str, Any]] = {"pacing": {"interval": 9}, "log": {"level": "error"}}
    async with RawUpstream(default=ACCEPTED) as upstream:
        document = document_for(upstream.url, pacing={"interval": 0.1})
        async with serving(tmp_path, document) as process:
            await post(process)
            for number, (sections, complaints) in enumerate(BAD, start=1):
                bad = document_for(upstream.url, **other)
                for name, section in sections.items():
                    bad[name] = {**bad.get(name, {}), **section}
                process.configure(bad)
                refused = await process.reload()
                assert refused.status == 422
                assert refused.body.decode().splitlines() == complaints
                process.signal(signal.SIGHUP)
                await until(_has_refused(process, number))
                assert _refusals(process)[-1]["problems"] == complaints
                (state,) = (await process.accounts()).values()
                assert [line["interval"] for line in state["routes"]] == [0.1]
                assert (await post(process)).status == 202
            process.config.write_text("pacing: {")
            assert (await process.reload()).status == 422
            process.configure(document)
            assert (await process.reload()).status == 200
    assert len(process.logged("reloaded")) == 1


def _refusals(process: Process) -> list[dict[str, Any]]:
    return process.logged("reload refused, the old configuration stays")


def _has_refused(process: Process, count: int) -> Callable[[], Awaitable[bool]]:
    async def question() -> bool:
        return len(_refusals(process)) == count

    return question


async def hang_up(process: Process) -> None:
    """Reload by signal, and wait until it is done."""
    count = len(process.logged("reloaded"))
    process.signal(signal.SIGHUP)

    async def question() -> bool:
        return len(process.logged("reloaded")) > count

    await until(question)


@pytest.mark.timed
async def test_an_account_goes_on_where_it_was_whatever_it_is_called(tmp_path: Path) -> None:
    """Known by a token, configured, renamed, given a pace and removed: one queue all the while."""
    unnamed = f"client:{account_id('id')[:8]}"
    slow, own, login = 1.2, 0.4, {"access_token": "T", "token_type": "bearer", "expires_in": 3600}
    issue = Reply(body=json.dumps(login).encode())
    async with (
        noting_stalls() as stalls,
        RawUpstream(lambda got: issue if got.target == b"/oauth/token" else ACCEPTED) as api,
    ):
        document = document_for(api.url, pacing={"interval": slow})
        steps: list[tuple[list[dict[str, Any]], str, float]] = [
            ([{"name": "paris", "client_id": "id"}], "paris", slow),
            ([{"name": "rome", "client_id": "id"}], "rome", slow),
            ([{"name": "rome", "client_id": "id", "interval": own}], "rome", own),
            ([{"name": "rome", "client_id": "another"}], unnamed, slow),
            ([], unnamed, slow),
        ]
        async with serving(tmp_path, document) as process:
            assert (await log_in(process.port, "id", "any")).status == 200
            assert (await post(process, "first", "T")).status == 202
            for accounts, name, _ in steps:
                process.configure({**document, "accounts": accounts})
                await hang_up(process)
                assert (await post(process, name, "T")).status == 202
        labels = [line["account"] for line in process.logged("request")]
        times = [request.arrived_at for request in exports_of(api)]
    assert labels[2:] == [name for _, name, _ in steps]
    for gap, (_, _, interval) in zip(
        [later - earlier for earlier, later in pairwise(times)], steps, strict=True
    ):
        assert interval - TOLERANCE - stalls.longest <= gap < interval + 0.7 + stalls.total


@pytest.mark.timed
async def test_a_hold_outlives_a_reload(tmp_path: Path) -> None:
    """The account is renamed while it is on hold, and stays on hold."""
    refused = Reply(429, [("Retry-After", "3")])
    async with noting_stalls() as stalls, RawUpstream([refused], default=ACCEPTED) as api:
        issue = {"access_token": "T", "token_type": "bearer", "expires_in": 3600}
        async with (
            RawUpstream(default=Reply(body=json.dumps(issue).encode())) as login,
            serving(
                tmp_path,
                document := document_for(
                    api.url,
                    upstream={"login_url": login.url},
                    pacing={"interval": 0.1},
                    accounts=[LONDON],
                ),
            ) as process,
        ):
            waiting = asyncio.ensure_future(post(process, "1", KEY))
            await api.received()
            process.configure({**document, "accounts": [{**LONDON, "name": "rome"}]})
            await hang_up(process)
            rome = (await process.accounts())["rome"]
            assert 0 < rome["hold_remaining_seconds"] <= 3
            assert rome["token"]["expires_in"] > 3500
            assert (await waiting).status == 202
    first, second = (request.arrived_at for request in api.requests)
    assert second - first >= 3 - TOLERANCE - stalls.longest
    assert len(login.requests) == 1


@pytest.mark.timed
async def test_a_changed_secret_is_used_and_the_old_one_proves_nothing(tmp_path: Path) -> None:
    """The token in use serves until the new one has come; what the old secret taught is gone."""
    async with noting_stalls() as stalls, RawUpstream(issuing("first", "second", "third")) as api:
        document = document_for(
            api.url,
            accounts=[LONDON],
            pacing={"interval": 0.02},
            tokens={"min_refresh_interval": 3},
            identity={"unidentified": "reject"},
        )
        async with serving(tmp_path, document) as process:
            issued = json.loads((await log_in(process.port, "london-id", "first-secret")).body)
            assert issued["access_token"] == "first"
            assert (await post(process, "1", "first")).status == 202
            process.configure({**document, "accounts": [{**LONDON, "client_secret": "second-one"}]})
            await hang_up(process)
            assert (await post(process, "2", KEY)).status == 202
            assert problem(await post(process, "3", "first")) == (401, "unauthenticated")
            assert (await log_in(process.port, "london-id", "first-secret")).status == 401

            async def has_new_token() -> bool:
                answer = await log_in(process.port, "london-id", "second-one")
                return bool(json.loads(answer.body)["access_token"] == "second")

            await until(has_new_token)
            assert (await post(process, "4", "second")).status == 202
            await hang_up(process)  # changes nothing, and costs no token
            assert (await post(process, "5", "second")).status == 202
    tokens = [request.values("authorization")[0] for request in exports_of(api)]
    assert tokens == [b"Bearer first", b"Bearer first", b"Bearer second", b"Bearer second"]
    logins = [request for request in api.requests if request.target == b"/oauth/token"]
    assert len(logins) == 2
    assert logins[1].arrived_at - logins[0].arrived_at >= 3 - TOLERANCE - stalls.longest


async def test_a_removed_account_serves_its_waiters(tmp_path: Path) -> None:
    """Those who wait for a token that is on its way, too."""
    token = {"access_token": "T", "token_type": "bearer", "expires_in": 3600}

    def issue_late(request: RecordedRequest) -> Step:
        if request.target == b"/oauth/token":
            return Reply(body=json.dumps(token).encode(), delay=1)
        return ACCEPTED

    async with RawUpstream(issue_late) as api:
        document = document_for(api.url, pacing={"interval": 0.2}, accounts=[LONDON])
        async with serving(tmp_path, document) as process:
            waiting = posts(process, 3, KEY)
            await api.received()
            await asyncio.sleep(0.2)
            process.configure({**document, "accounts": []})
            await hang_up(process)
            assert {response.status for response in await waiting} == {202}
            assert (await post(process, "9", KEY)).status == 202  # a stranger's token now
    tokens = [request.values("authorization")[0] for request in exports_of(api)]
    assert tokens == [b"Bearer T"] * 3 + [f"Bearer {KEY}".encode()]


# The service manager


class ServiceManager:
    """What the program tells its service manager: the datagrams, in order, and when they came."""

    def __init__(self, path: Path) -> None:
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self.said: list[str] = []
        self.fed_at: list[float] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)  # noqa: FBT003 - the socket module's own signature

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["ServiceManager"]:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._receive)
        try:
            yield self
        finally:
            loop.remove_reader(self._socket)
            self._socket.close()

    def _receive(self) -> None:
        state = self._socket.recv(4096).decode()
        if state == "WATCHDOG=1":
            self.fed_at.append(time.monotonic())
        else:
            self.said.append(state)


@pytest.mark.timed
async def test_the_service_manager_is_told(tmp_path: Path) -> None:
    """Ready, reloading and ready again, stopping; and fed all the while, the drain included."""
    manager = ServiceManager(tmp_path / "notify")
    limits = {"drain_delay": 1.5}
    async with (
        noting_stalls() as stalls,
        manager.listening(),
        RawUpstream(default=ACCEPTED) as upstream,
        serving(
            tmp_path,
            document_for(upstream.url, limits=limits),
            environ={**manager.environ, "WATCHDOG_USEC": "1000000"},
        ) as process,
    ):
        assert manager.said == ["READY=1"]
        before = time.monotonic()
        await hang_up(process)
        process.config.write_text("pacing: {")
        assert (await process.reload()).status == 422
        after = time.monotonic()
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        ended = time.monotonic()
    ready, *reloads, stopping = manager.said
    assert (ready, stopping) == ("READY=1", "STOPPING=1")
    assert [state.partition("\n")[0] for state in reloads] == ["RELOADING=1", "READY=1"] * 2
    stamps = [int(reloads[at].partition("MONOTONIC_USEC=")[2]) / 1e6 for at in (0, 2)]
    assert before <= stamps[0] < stamps[1] <= after
    fed_at = [*manager.fed_at, ended]
    assert max(later - earlier for earlier, later in pairwise(fed_at)) < 1 + stalls.longest


async def test_a_watchdog_of_another_process_is_not_fed(tmp_path: Path) -> None:
    manager = ServiceManager(tmp_path / "notify")
    environ = {**manager.environ, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    async with (
        manager.listening(),
        RawUpstream() as upstream,
        serving(tmp_path, document_for(upstream.url), environ=environ),
    ):
        await asyncio.sleep(0.3)
    assert manager.said == ["READY=1", "STOPPING=1"]
    assert manager.fed_at == []


# The program with a clock that forgets to call the queues back while SIGUSR1 says so.
FORGETFUL = """
import signal, sys
from proxy.cli import commands
from proxy.cli.commands import main
from proxy.clock import SystemClock

class Forgetful(SystemClock):
    is_forgetting = False

    def call_at(self, when, callback):
        if Forgetful.is_forgetting and getattr(callback, "__name__", "") == "pump":
            callback = lambda: None
        return super().call_at(when, callback)

def toggle(*_):
    Forgetful.is_forgetting = not Forgetful.is_forgetting
    print('{"event": "toggled"}', file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, toggle)
commands.SystemClock = Forgetful
sys.argv[0] = "export-proxy"
main()
"""


async def toggle(process: Process) -> None:
    count = len(process.logged("toggled"))
    process.signal(signal.SIGUSR1)

    async def is_done() -> bool:
        return len(process.logged("toggled")) > count

    await until(is_done)


async def test_pacing_that_offers_no_slot_is_stalled(tmp_path: Path) -> None:
    """Not ready, and the watchdog starves; until the queue moves again."""
    manager = ServiceManager(tmp_path / "notify")
    async with (
        manager.listening(),
        RawUpstream(default=ACCEPTED) as upstream,
        serving(
            tmp_path,
            document_for(upstream.url, pacing={"interval": 2}),
            environ={**manager.environ, "WATCHDOG_USEC": "400000"},
            command=(sys.executable, "-c", FORGETFUL, *SERVE[3:]),
        ) as process,
    ):
        assert (await post(process)).status == 202
        await toggle(process)
        forgotten = asyncio.ensure_future(post(process, "forgotten"))

        async def is_stalled() -> bool:
            return (await process.ask("/readyz")).body == b"stalled\n"

        await until(is_stalled)
        assert (await process.ask("/readyz")).status == 503
        assert (await process.ask("/healthz")).status == 200
        await asyncio.sleep(0.3)
        fed = len(manager.fed_at)
        await asyncio.sleep(0.6)
        assert len(manager.fed_at) == fed
        await toggle(process)
        assert (await post(process, "next")).status == 202
        assert (await forgotten).status == 202
        await until(process.is_ready)

        async def is_fed() -> bool:
            return len(manager.fed_at) > fed

        await until(is_fed)


# A start that fails


async def test_what_cannot_be_served_is_told_in_a_line(tmp_path: Path) -> None:
    """A file that is missing, a value out of bounds: no traceback, exit code 2."""
    async with RawUpstream() as upstream:
        faults: dict[str, dict[str, Any]] = {
            "upstream.ca_file: cannot be used: No such": {"upstream": {"ca_file": "/nowhere"}},
            "listen.tls: cannot be used: No such": {"listen": {"tls": MISSING}},
            "retry.budget: must be less": {"retry": {"budget": 2}},
        }

        async def start(number: int, sections: dict[str, Any]) -> tuple[int | None, str]:
            file = tmp_path / f"{number}.yaml"
            file.write_text(json.dumps(document_for(upstream.url, **sections)))
            child = await asyncio.create_subprocess_exec(
                *SERVE, str(file), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await child.communicate()
            return child.returncode, said.decode()

        outcomes = await asyncio.gather(
            *(start(number, sections) for number, sections in enumerate(faults.values()))
        )
    for complaint, (code, said) in zip(faults, outcomes, strict=True):
        assert code == 2
        assert said.startswith(complaint), said
        assert len(said.splitlines()) == 1
