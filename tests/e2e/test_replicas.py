"""Three proxies, one Redis, one API: one pace, whatever happens to any of them.

Each replica is a process of its own. What counts is what the API saw arrive.
"""

import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.simulator.ledger import furthest_ahead
from tests.kit.client import RawConnection, Response, parse_response
from tests.kit.listener import HOST
from tests.kit.logins import log_in
from tests.kit.process import Process, document_for, serving, until
from tests.kit.redis import RedisServer, redis_server
from tests.kit.replicas import STORE_TIMEOUT
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply

pytestmark = pytest.mark.timed

INTERVAL = 0.25
REPLICAS = 3
TOLERANCE = 0.020  # of stamps at the API
EXPORTS = "/api/v2/recordings/exports"
BODY = b'{"channel": "voice"}'
DEFAULT_TIMEOUT = 0.2
PASSWORD = "the-password-of-the-store"
CLOCK = SystemClock()


def export(token: str, caller: str, path: str = EXPORTS) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: proxy.example",
        f"Authorization: Bearer {token}",
        f"X-Caller: {caller}",
        f"Content-Length: {len(BODY)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + BODY


@dataclass(frozen=True, slots=True)
class Arrival:
    """One export at the API: when, of which account, by which replica, from which caller."""

    at: float
    account: str
    replica: int
    caller: str


class Api(RawUpstream):
    """Takes every export, except that callers named in `refuses` get a 429 the first time."""

    def __init__(self) -> None:
        super().__init__(self._reply)
        self.refuses: dict[str, int] = {}

    def _reply(self, request: RecordedRequest) -> Reply:
        if request.target == b"/oauth/token":
            client = re.findall(rb"client_id=([^&]+)", request.body)[0].decode()
            grant = {"access_token": f"token-of-{client}", "expires_in": 3600}
            return Reply(200, [("Content-Type", "application/json")], json.dumps(grant).encode())
        seconds = self.refuses.pop(caller_of(request), None)
        if seconds is not None:
            return Reply(429, [("Retry-After", str(seconds))])
        return Reply(202)

    def arrivals(self, account: str | None = None) -> list[Arrival]:
        return [
            Arrival(
                at=request.arrived_at,
                account=request.values("Authorization")[0].decode().rpartition("-")[2],
                replica=int(caller_of(request).partition(".")[0]),
                caller=caller_of(request),
            )
            for request in self.requests
            if request.target != b"/oauth/token"
            and (
                account is None
                or request.values("Authorization")[0].decode().endswith(f"-{account}")
            )
        ]

    def times(self, account: str | None = None, since: float = 0.0) -> list[float]:
        return [one.at for one in self.arrivals(account) if one.at >= since]

    def by_replica(self, since: float) -> list[list[float]]:
        arrivals = [one for one in self.arrivals() if one.at >= since]
        return [[one.at for one in arrivals if one.replica == n] for n in range(REPLICAS)]


def caller_of(request: RecordedRequest) -> str:
    return request.values("X-Caller")[0].decode()


class Cluster:
    """Replicas in front of an API, on one Redis."""

    def __init__(self, api: Api, redis: RedisServer, replicas: Sequence[Process]) -> None:
        self.api = api
        self.redis = redis
        self.replicas = replicas

    async def log_in(self, account: str, *, at: int = 0) -> None:
        assert (await log_in(self.replicas[at].port, account)).status == 200

    async def export(
        self,
        account: str,
        caller: str,
        path: str = EXPORTS,
        *,
        timeout: float = 60,  # noqa: ASYNC109 -- of the whole exchange
    ) -> Response:
        """Export by the replica whose number the caller's name begins with."""
        port = self.replicas[int(caller.partition(".")[0])].port
        return await _ask(port, export(f"token-of-{account}", caller, path), timeout=timeout)

    async def metric(self, replica: int, name: str) -> float:
        body = (await self.replicas[replica].ask("/metrics")).body.decode()
        found = re.findall(rf"^export_proxy_{name}(?:\{{[^}}]*\}})? (\S+)$", body, re.MULTILINE)
        return sum(map(float, found))

    async def stores_are(self, *, up: bool) -> None:
        async def question() -> bool:
            ups = [await self.metric(n, "store_up") for n in range(len(self.replicas))]
            return ups == [float(up)] * len(self.replicas)

        await until(question)


async def _ask(port: int, request: bytes, *, timeout: float) -> Response:  # noqa: ASYNC109
    async with await RawConnection.open(HOST, port) as connection:
        await connection.send(request)
        return parse_response(await connection.read_raw("POST", timeout=timeout))


@asynccontextmanager
async def cluster(
    folder: Path, *, replicas: int = REPLICAS, **sections: Any
) -> AsyncIterator[Cluster]:
    async with (
        redis_server(folder, password=PASSWORD) as redis,
        Api() as api,
        AsyncExitStack() as stack,
    ):
        store = {
            "url": redis.url,
            "replicas": replicas,
            "timeout": STORE_TIMEOUT,
            **sections.pop("store", {}),
        }
        document = document_for(
            api.url, pacing={"interval": INTERVAL, "max_wait": 60}, store=store, **sections
        )
        homes = [folder / str(number) for number in range(replicas)]
        for home in homes:
            home.mkdir()
        running = [stack.enter_async_context(serving(home, document)) for home in homes]
        cluster = Cluster(api, redis, await asyncio.gather(*running))
        yield cluster
        for process in cluster.replicas:
            assert PASSWORD not in process.stderr
            assert PASSWORD not in (await process.ask("/status.json")).body.decode()
            assert PASSWORD not in (await process.ask("/metrics")).body.decode()
        await asyncio.gather(*(process.stop() for process in cluster.replicas))


def is_paced(times: Sequence[float], *, stalled: float) -> bool:
    """Whether none of several arrivals ran ahead of the pace by more than the tolerance."""
    ahead = furthest_ahead(times, INTERVAL)
    return ahead is not None and ahead <= TOLERANCE + stalled


def early(times: Sequence[float], interval: float = INTERVAL, *, stalled: float) -> int:
    """How many came before their time, each by its own gap."""
    least = interval - TOLERANCE - stalled
    return sum(later - earlier < least for earlier, later in pairwise(sorted(times)))


def each_was_sent_once(api: Api) -> bool:
    return set(Counter(one.caller for one in api.arrivals()).values()) == {1}


async def test_three_replicas_keep_one_pace_and_share_it_fairly(tmp_path: Path) -> None:
    """4 accounts x 30 exports, round-robin; who logged in at one replica is known to all."""
    accounts = ["london", "paris", "oslo", "rome"]
    async with noting_stalls() as stalls, cluster(tmp_path) as running:
        for number, account in enumerate(accounts):
            await running.log_in(account, at=number % REPLICAS)
        names = [
            (account, f"{number % REPLICAS}.{account}.{number}")
            for number in range(30)
            for account in accounts
        ]
        # The first of each comes alone, so that its stamp is not late for the rush of the others.
        answers = [await running.export(*name) for name in names[:4]]
        answers += await asyncio.gather(*(running.export(*name) for name in names[4:]))
        assert [answer.status for answer in answers] == [202] * 120
        assert each_was_sent_once(running.api)
        for account in accounts:
            arrivals = running.api.arrivals(account)
            times = [one.at for one in arrivals]
            assert len(times) == 30
            assert is_paced(times, stalled=stalls.longest)
            assert times[-1] - times[0] <= 29 * INTERVAL * 1.05 + stalls.total
            half = Counter(one.replica for one in arrivals[:15])
            assert all(0.20 <= half[number] / 15 <= 0.47 for number in range(REPLICAS))
        early_sends = [await running.metric(n, "early_sends_total") for n in range(REPLICAS)]
        assert early_sends == [0, 0, 0]


async def test_callers_that_hang_up_cost_no_slot(tmp_path: Path) -> None:
    async with (
        noting_stalls() as stalls,
        cluster(tmp_path) as running,
        AsyncExitStack() as stack,
    ):
        await running.log_in("london")
        connections = []
        for number in range(33):
            replica = number % REPLICAS
            opened = await RawConnection.open(HOST, running.replicas[replica].port)
            connections.append(await stack.enter_async_context(opened))
            await opened.send(export("token-of-london", f"{replica}.{number}"))
        await running.api.received(1 + 3, within=10)  # the login is one
        leaving = [number for number in range(9, 33) if number // REPLICAS % 3 != 0]
        for number in leaving:
            (connections[number].reset if number % 2 else connections[number].close)()
        staying = [number for number in range(33) if number not in leaving]
        answers = await asyncio.gather(
            *(connections[number].read_response("POST", timeout=20) for number in staying)
        )
        assert len(staying) == 18
        assert [answer.status for answer in answers] == [202] * 18
        times = running.api.times()
        assert len(times) == 18
        assert is_paced(times, stalled=stalls.longest)
        assert times[-1] - times[0] <= 17 * INTERVAL * 1.05 + stalls.total


async def test_refusal_that_one_replica_sees_holds_all(tmp_path: Path) -> None:
    """On routes that are not paced, too, and at a replica that comes later."""
    hold = 3
    async with noting_stalls() as stalls, cluster(tmp_path) as running:
        await running.log_in("london")
        api = running.api
        api.refuses["0.refused"] = hold
        calls = [running.export("london", "0.refused")]
        calls += [running.export("london", f"{n % REPLICAS}.{n}") for n in range(9)]
        exports = [asyncio.ensure_future(call) for call in calls]
        await until_true(lambda: not api.refuses)
        refused_at = next(one.at for one in api.arrivals() if one.caller == "0.refused")
        await until(lambda: _are_on_hold(running.replicas))
        for number in range(REPLICAS):
            call = running.export("london", f"{number}.free", "/api/v2/users/me")
            exports.append(asyncio.ensure_future(call))
        answers = await asyncio.gather(*exports)
        assert {answer.status for answer in answers} == {202}
        assert len(api.times()) == len(exports) + 1
        # What was under way when the API said so is stamped as late as the machine stood still.
        after = api.times(since=refused_at + TOLERANCE + stalls.longest)
        assert min(after) >= refused_at + hold
        assert min(after) <= refused_at + hold + 0.1 + stalls.total


async def _are_on_hold(replicas: Sequence[Process]) -> bool:
    accounts = [account for one in replicas for account in (await one.accounts()).values()]
    return all(account["hold_remaining_seconds"] > 0 for account in accounts)


async def until_true(question: Any) -> None:
    async def ask() -> bool:
        return bool(question())

    await until(ask)


async def test_outage_is_a_slower_pace_and_ends_without_a_burst(tmp_path: Path) -> None:
    """Redis is killed and comes back empty; then it stands still for a while."""
    async with (
        noting_stalls() as stalls,
        cluster(tmp_path, store={"timeout": DEFAULT_TIMEOUT}) as running,
    ):
        api, redis = running.api, running.redis
        await running.log_in("london")
        exports = [
            asyncio.ensure_future(running.export("london", f"{n % REPLICAS}.{n}"))
            for n in range(51)
        ]
        await api.received(1 + 3, within=10)
        for begin, end in ((redis.kill, redis.start), (_freeze(redis), _thaw(redis))):
            began = CLOCK.monotonic()
            await begin()
            await running.stores_are(up=False)
            alone = CLOCK.monotonic()
            assert alone - began <= 1 + stalls.total
            await until_true(lambda since=alone: min(map(len, api.by_replica(since))) >= 2)
            assert [await replica.is_ready() for replica in running.replicas] == [True] * REPLICAS
            for times in api.by_replica(alone + stalls.longest):
                assert early(times, INTERVAL * REPLICAS, stalled=stalls.longest) == 0
            await end()
            ended = CLOCK.monotonic()
            await running.stores_are(up=True)
            back = CLOCK.monotonic()
            assert back - ended <= 2 + stalls.total
            await until_true(lambda since=back: len(api.times(since=since)) >= 4)
            after = api.times(since=back + stalls.longest)
            assert early(after, stalled=stalls.longest) == 0
            sent, passed = len(api.times(since=began)), CLOCK.monotonic() - began
            assert sent <= (passed + stalls.longest) / INTERVAL + REPLICAS
        for number in range(REPLICAS):
            assert await running.metric(number, "store_degraded_decisions_total") >= 3
        answers = await asyncio.gather(*exports)
        assert {answer.status for answer in answers} == {202}
        assert each_was_sent_once(api)
        for process in running.replicas:
            assert (
                2 <= len(process.logged("the store is down")) <= 2 + stalls.total / DEFAULT_TIMEOUT
            )


def _freeze(redis: RedisServer) -> Any:
    async def freeze() -> None:
        redis.freeze()

    return freeze


def _thaw(redis: RedisServer) -> Any:
    async def thaw() -> None:
        redis.thaw()

    return thaw


async def test_replica_that_stood_still_does_not_use_a_lease_it_lost(tmp_path: Path) -> None:
    """SIGSTOP, for longer than a lease lasts; the others go on meanwhile."""
    async with noting_stalls() as stalls, cluster(tmp_path) as running:
        api = running.api
        await running.log_in("london")
        exports = [
            asyncio.ensure_future(running.export("london", f"{n % REPLICAS}.{n}"))
            for n in range(15)
        ]
        await api.received(1 + 3, within=10)
        running.replicas[0].signal(signal.SIGSTOP)
        stopped = CLOCK.monotonic()
        await asyncio.sleep(3.5)
        running.replicas[0].signal(signal.SIGCONT)
        resumed = CLOCK.monotonic()
        answers = await asyncio.gather(*exports)
        assert {answer.status for answer in answers} == {202}
        assert early(api.times(), stalled=stalls.longest) == 0
        others = [one.at for one in api.arrivals() if one.replica != 0]
        assert len([at for at in others if stopped <= at <= resumed]) >= 2
        assert each_was_sent_once(api)


async def test_replica_that_ends_leaves_its_leases_to_the_others(tmp_path: Path) -> None:
    async with noting_stalls() as stalls, cluster(tmp_path) as running:
        api = running.api
        await running.log_in("london")
        exports = [
            asyncio.ensure_future(running.export("london", f"{n % REPLICAS}.{n}"))
            for n in range(15)
        ]
        await api.received(1 + 3, within=10)
        await running.replicas[0].stop()
        ended = CLOCK.monotonic()
        answers = await asyncio.gather(*exports)
        drained = [answer for answer in answers if answer.status == 503]
        assert all(b"draining" in answer.body for answer in drained)
        rest = [at for at in api.times() if at >= ended]
        assert is_paced(api.times(), stalled=stalls.longest)
        assert rest[-1] - ended <= len(rest) * INTERVAL * 1.1 + stalls.total
        running.replicas = running.replicas[1:]


async def test_outage_is_a_refusal_where_that_is_configured(tmp_path: Path) -> None:
    async with cluster(tmp_path, replicas=2, store={"on_failure": "reject"}) as running:
        await running.log_in("london")
        assert (await running.export("london", "0.before")).status == 202
        await running.redis.kill()
        await running.stores_are(up=False)
        answer = await running.export("london", "0.without")
        assert answer.status == 503
        assert json.loads(answer.body)["type"] == "urn:export-proxy:store-unavailable"
        assert answer.values("Retry-After") == [b"1"]
        free = await running.export("london", "0.free", "/api/v2/users/me")
        assert free.status == 202
        assert await running.replicas[0].is_ready()
        assert [one.caller for one in running.api.arrivals()] == ["0.before", "0.free"]
        await running.redis.start()
        await running.stores_are(up=True)
        assert (await running.export("london", "0.after")).status == 202


async def test_replica_starts_without_the_store_and_joins_it_later(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis, Api() as api:
        await redis.kill()
        document = document_for(
            api.url,
            pacing={"interval": INTERVAL},
            store={"url": redis.url, "replicas": 2, "timeout": STORE_TIMEOUT},
        )
        async with serving(tmp_path, document) as process:
            running = Cluster(api, redis, [process])
            assert (await running.export("nobody", "0.1")).status == 202
            assert await running.metric(0, "store_up") == 0
            process.configure({**document, "identity": {"unidentified": "reject", "whoami": None}})
            assert (await process.reload()).status == 200
            unsure = await running.export("nobody", "0.2")
            assert unsure.status == 503  # another replica may know the token
            assert json.loads(unsure.body)["type"] == "urn:export-proxy:store-unavailable"
            await redis.start()
            await running.stores_are(up=True)
            assert (await running.export("nobody", "0.3")).status == 401
            process.configure(document)
            assert (await process.reload()).status == 200
            assert (await running.export("nobody", "0.4")).status == 202


async def test_token_is_known_to_all_again_soon_after_a_flush(tmp_path: Path) -> None:
    """Although the replica that issued it is idle, and another was asked about it too early."""
    reject = {"unidentified": "reject"}
    async with (
        noting_stalls() as stalls,
        cluster(tmp_path, replicas=2, identity=reject) as running,
    ):
        await running.log_in("london")
        await running.redis.flush()
        flushed = CLOCK.monotonic()
        early_answer = await running.export("london", "1.early")
        assert early_answer.status == 401 or stalls.longest > TOLERANCE

        async def is_known() -> bool:
            return (await running.export("london", "1.later")).status == 202

        await until(is_known)
        assert CLOCK.monotonic() - flushed <= 3 + stalls.total


async def test_reload_changes_what_may_change_and_refuses_another_store(tmp_path: Path) -> None:
    async with cluster(tmp_path, replicas=1) as running:
        (process,) = running.replicas
        document = document_for(
            running.api.url,
            pacing={"interval": INTERVAL, "max_wait": 60},
            store={
                "url": running.redis.url,
                "replicas": 5,
                "on_failure": "reject",
                "timeout": STORE_TIMEOUT,
            },
        )
        process.configure(document)
        assert (await process.reload()).status == 200
        await running.redis.kill()
        await running.stores_are(up=False)
        assert (await running.export("nobody", "0.1")).status == 503
        document["store"]["url"] = "redis://127.0.0.1:1/0"
        process.configure(document)
        refused = await process.reload()
        assert refused.status == 422
        assert b"store.url" in refused.body
        assert PASSWORD.encode() not in refused.body
