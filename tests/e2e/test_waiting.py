"""Who may wait, for how long, and what the others are told; overload is the hard case."""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import pytest

from proxy.service.lifecycle import Running
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.logins import token_from
from tests.kit.process import until
from tests.kit.proxy import proxy_for
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply, Step

pytestmark = pytest.mark.timed

EXPORTS = "/api/v2/recordings/exports"
UNPACED = "/api/v2/users/me"
ACCEPTED = Reply(202, body=b'{"state": "PENDING"}')
TOLERANCE = 0.020
SLACK = 0.3  # beside what the machine was seen to stand still


@dataclass(frozen=True, slots=True)
class Call:
    """An answer, and the seconds it took."""

    response: Response
    seconds: float

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def retry_after(self) -> int:
        (value,) = self.response.values("retry-after")
        return int(value)

    @property
    def problem(self) -> str:
        assert self.response.values("content-type") == [b"application/problem+json"]
        name = json.loads(self.response.body)["type"]
        assert isinstance(name, str)
        return name.removeprefix("urn:export-proxy:")

    @property
    def predicted_wait(self) -> float:
        return float(json.loads(self.response.body)["predicted_wait"])

    @property
    def timing(self) -> dict[str, float]:
        """Server-Timing, in seconds."""
        (value,) = self.response.values("server-timing")
        parts = re.findall(r"(\w+);dur=([0-9.]+)", value.decode())
        return {name: float(milliseconds) / 1000 for name, milliseconds in parts}


async def post(proxy: Running, *fields: str, token: str = "a", path: str = EXPORTS) -> Call:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: proxy",
        f"Authorization: Bearer {token}",
        "Content-Length: 2",
        *fields,
    ]
    data = "\r\n".join([*lines, "", "{}"]).encode()
    begun = time.monotonic()
    raw = await exchange(HOST, port_of(proxy.url), data, timeout=30)
    return Call(parse_response(raw, "POST"), time.monotonic() - begun)


async def queue(proxy: Running, count: int, *fields: str) -> list[asyncio.Task[Call]]:
    """Let so many callers enter the queue, the first of whom is served at once."""
    await post(proxy)
    calls = [asyncio.ensure_future(post(proxy, *fields)) for _ in range(count)]
    await until(lambda: _has_queue(proxy, count))
    return calls


async def _has_queue(proxy: Running, count: int) -> bool:
    states = proxy.accounts.states()
    return sum(queue.queue_depth for state in states for queue in state.routes) >= count


# Limits


async def test_a_request_that_waits_too_long_for_a_connection_is_refused() -> None:
    """A slot came at once, but nothing to send with before the time was over."""
    async with (
        RawUpstream(default=Reply(delay=2.5)) as upstream,
        proxy_for(upstream.url, upstream={"max_connections": 1}) as proxy,
    ):
        busy = asyncio.ensure_future(post(proxy, token="a"))
        await upstream.received()
        late = await post(proxy, "Prefer: wait=1", token="b")
        assert (late.status, late.problem) == (429, "wait-expired")
        assert (await busy).status == 200
        assert len(upstream.requests) == 1


async def test_prefer_wait_is_the_callers_own_limit() -> None:
    """Who would wait longer than that is told so at once, and to come back when it would fit."""
    interval = 1.2
    async with (
        noting_stalls() as stalls,
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": interval}) as proxy,
    ):
        calls = await queue(proxy, 4)
        now = await post(proxy, "Prefer: wait=0")
        soon = await post(proxy, "Prefer: respond-async, wait=1")
        broken = asyncio.ensure_future(post(proxy, "Prefer: wait=-1"))  # as if absent
        waited = await asyncio.gather(*calls, broken)
        await asyncio.sleep(interval)
        free = await post(proxy, "Prefer: wait=0")
        patient = await post(proxy, "Prefer: wait=2")

    for call, limit in ((now, 0), (soon, 1)):
        assert call.status == 429
        assert call.problem == "queue-full"
        assert call.seconds < SLACK + stalls.total
        assert 5 * interval - SLACK - stalls.total < call.predicted_wait <= 5 * interval
        excess = ceil(call.predicted_wait - limit)
        assert excess <= call.retry_after <= excess + 3 * interval  # the refused are told apart
    assert [call.status for call in (*waited, free, patient)] == [202] * 7
    assert free.seconds < SLACK + stalls.total
    assert interval - SLACK - stalls.total < patient.seconds <= 2 + stalls.total
    assert len(upstream.requests) == 1 + 4 + 1 + 1 + 1


async def test_prefer_wait_cannot_exceed_max_wait() -> None:
    """The proxy's own limit stands."""
    async with (
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": 2, "max_wait": 2.5}) as proxy,
    ):
        calls = await queue(proxy, 1)
        refused = await post(proxy, "Prefer: wait=3600")
        (waited,) = await asyncio.gather(*calls)
    assert (refused.status, refused.problem) == (429, "queue-full")
    assert waited.status == 202
    assert len(upstream.requests) == 2


async def test_the_queue_has_a_length() -> None:
    """`max_queue` per account and route; present waiters are not disturbed."""
    interval = 1.2
    async with (
        noting_stalls() as stalls,
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": interval, "max_queue": 3}) as proxy,
    ):
        calls = await queue(proxy, 3)
        refused = await post(proxy)
        elsewhere = await asyncio.gather(post(proxy, token="b"), post(proxy, path=UNPACED))
        waited = await asyncio.gather(*calls)
    assert (refused.status, refused.problem) == (429, "queue-full")
    assert 4 * interval - SLACK - stalls.total < refused.predicted_wait <= 4 * interval
    assert 1 <= refused.retry_after <= 1.25 * ceil(interval) + 1
    assert refused.seconds < SLACK + stalls.total
    assert [call.status for call in (*waited, *elsewhere)] == [202] * 5
    times = [r.arrived_at for r in upstream.requests if r.target == EXPORTS.encode()]
    assert len(times) == 1 + 3 + 1


async def test_so_many_in_flight_and_no_more() -> None:
    """`max_in_flight` covers all routes of an account, and no other account."""

    def slow(request: RecordedRequest) -> Step:
        return (
            Reply(202, delay=0.4) if request.values("authorization") == [b"Bearer a"] else ACCEPTED
        )

    async with (
        noting_stalls() as stalls,
        RawUpstream(slow) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.05, "max_in_flight": 3}) as proxy,
    ):
        calls = [
            asyncio.ensure_future(post(proxy, path=path))
            for path in (EXPORTS, UNPACED, EXPORTS, UNPACED, UNPACED, EXPORTS, UNPACED)
        ]
        await upstream.received(3)
        other = await post(proxy, token="b")
        results = await asyncio.gather(*calls)

    assert {call.status for call in results} == {202}
    assert other.seconds < SLACK + stalls.total
    times = [r.arrived_at for r in upstream.requests if r.values("authorization") == [b"Bearer a"]]
    for later, earlier in zip(times[3:], times, strict=False):  # each waits for an answer
        assert later - earlier >= 0.4 - TOLERANCE
    assert times[-1] - times[0] < 0.8 + SLACK + stalls.total


async def test_a_wait_that_grows_expires() -> None:
    """No slot within the limit: nothing was sent, and the caller hears when to return."""
    async with (
        noting_stalls() as stalls,
        RawUpstream([Reply(202, delay=2.5)], default=ACCEPTED) as upstream,
        proxy_for(
            upstream.url, pacing={"interval": 0.05, "max_in_flight": 1, "max_wait": 0.4}
        ) as proxy,
    ):
        first = asyncio.ensure_future(post(proxy))
        await upstream.received()
        expired = await post(proxy)
        assert len(upstream.requests) == 1
        assert (await first).status == 202
    assert (expired.status, expired.problem) == (429, "wait-expired")
    assert 0.4 <= expired.seconds < 0.4 + SLACK + stalls.total
    assert 1 <= expired.retry_after <= 2


async def test_an_account_may_have_an_interval_of_its_own() -> None:
    """By its name in the configuration, with any of its tokens."""

    def api(request: RecordedRequest) -> Step:
        if request.target == b"/oauth/token":
            return Reply(
                200, body=b'{"access_token": "t", "token_type": "bearer", "expires_in": 9}'
            )
        return ACCEPTED

    accounts = [{"name": "slow", "client_id": "slow-id", "interval": 0.4}]
    async with (
        noting_stalls() as stalls,
        RawUpstream(api) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.1}, accounts=accounts) as proxy,
    ):
        assert await token_from(port_of(proxy.url), "slow-id") == "t"
        await asyncio.gather(*(post(proxy, token=token) for _ in range(4) for token in ("t", "u")))

    for token, interval in ((b"Bearer t", 0.4), (b"Bearer u", 0.1)):
        times = [
            r.arrived_at
            for r in upstream.requests
            if r.target == EXPORTS.encode() and r.values("authorization") == [token]
        ]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(gaps) == 3
        least, most = interval - TOLERANCE - stalls.longest, interval + 0.15 + stalls.total
        assert all(least <= gap < most for gap in gaps)


# Where the time went


async def test_server_timing_sums_to_the_elapsed_time() -> None:
    """Line, hold and API, in ms."""
    slow = Reply(202, delay=0.3)
    script = [slow, Reply(429, [("Retry-After", "1")], delay=0.2), slow, slow]
    async with (
        noting_stalls() as stalls,
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.5}) as proxy,
    ):
        first = await post(proxy)
        held, queued = await asyncio.gather(post(proxy), post(proxy))

    slack = SLACK + stalls.total
    for call in (first, held, queued):
        assert list(call.timing) == ["queue", "hold", "token", "upstream"]
        assert call.seconds - 0.1 - stalls.total < sum(call.timing.values()) <= call.seconds + 0.001
        assert call.timing["token"] == 0
    assert first.timing["hold"] == 0
    assert 0.3 <= first.timing["upstream"] < 0.3 + slack
    assert 0.99 <= held.timing["hold"] < 1 + slack
    assert 0.5 <= held.timing["upstream"] < 0.5 + slack  # both sends
    assert 0.99 <= queued.timing["hold"] < 1.3 + slack  # the probe's answer included
    assert queued.timing["queue"] > 0.1
    assert 0.3 <= queued.timing["upstream"] < 0.3 + slack


# Overload

INTERVAL, MAX_WAIT = 0.25, 3.0
OVERLOAD = 11.0  # seconds at three times the pace
RECOVERY = MAX_WAIT / (1 - 1 / 4)  # until a full queue is gone while a quarter of the pace comes


async def test_overload_leaves_no_waiter_behind() -> None:
    """Three times the pace, then a quarter of it: every slot is used, and the queue recovers.

    Those refused at the worst moment do as Retry-After says.
    """
    async with (
        noting_stalls() as stalls,
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": INTERVAL, "max_wait": MAX_WAIT}) as proxy,
    ):
        begun = time.monotonic()
        flood = asyncio.ensure_future(steadily(proxy, every=INTERVAL / 3, seconds=OVERLOAD))
        await asyncio.sleep(OVERLOAD - 0.5)
        obedient = asyncio.gather(*(come_back_when_told(proxy) for _ in range(2)))
        await asyncio.sleep(0.5)
        after = await steadily(proxy, every=4 * INTERVAL, seconds=RECOVERY + 3)
        offered = await flood
        returns = await obedient

    slack = SLACK + stalls.total
    times = [request.arrived_at - begun for request in upstream.requests]
    for start in range(1, int(OVERLOAD) - 4):  # goodput, in any five seconds of the overload
        sends = sum(start <= at < start + 5 for at in times)
        assert sends >= 0.95 * (5 - stalls.total) / INTERVAL, start
    # Two of three are refused, and each is told to come an interval after the one before.
    longest = 2 * OVERLOAD + 2
    admitted = expired = 0
    for call in (*offered, *after):
        assert call.seconds <= MAX_WAIT + slack
        admitted += call.status == 202
        if call.status != 202:
            assert 1 <= call.retry_after <= longest
            expired += call.problem == "wait-expired"  # slots come late by some ms, and add up
            assert call.problem == "wait-expired" or call.seconds < slack
    assert expired <= 0.1 * admitted + 3 * stalls.total / INTERVAL
    assert max(returns) <= longest + 1 + stalls.total
    assert max(returns) >= 1  # the overload was one for them, too
    assert {call.status for call in after[1 + ceil(stalls.longest) :]} == {202}
    assert max(call.seconds for call in after[-2:]) < slack


async def steadily(proxy: Running, *, every: float, seconds: float) -> list[Call]:
    """Call at a steady rate, whatever becomes of the calls."""
    begun = time.monotonic()
    calls = []
    for n in range(round(seconds / every)):
        await asyncio.sleep(max(0, begun + n * every - time.monotonic()))
        calls.append(asyncio.ensure_future(post(proxy)))
    return await asyncio.gather(*calls)


async def come_back_when_told(proxy: Running) -> int:
    """How often a caller had to return."""
    for returns in range(10):
        call = await post(proxy)
        if call.status == 202:
            return returns
        await asyncio.sleep(call.retry_after)
    raise AssertionError("refused ten times")
