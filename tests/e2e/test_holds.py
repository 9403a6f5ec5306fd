"""What a 429 says of its limit, and what the API announces of its quota."""

import asyncio
import gzip
import json
import time

import pytest

from tests.e2e.test_refused import (
    ACCEPTED,
    EXPORTS,
    UNPACED,
    arrivals,
    by_token,
    get,
    hold_shown,
    post,
    problem,
    refusal,
    retry_after,
)
from tests.kit.proxy import proxy_for
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply, Step

pytestmark = pytest.mark.timed


def limited(seconds: str, *, key: str, namespace: str, coded: bool = False) -> Reply:
    """Return a 429 whose body names its limit."""
    body = json.dumps({"status": 429, "limit": {"key": key, "namespace": namespace}}).encode()
    headers = [("Retry-After", seconds), ("Content-Type", "application/json")]
    if coded:
        body, headers = gzip.compress(body), [*headers, ("Content-Encoding", "gzip")]
    return Reply(429, headers, body)


@pytest.mark.parametrize("coded", [False, True])
async def test_limit_of_a_service_holds_its_route_only(coded: bool) -> None:  # noqa: FBT001
    """Exports go on, and every later caller of that route is told what is left of the wait."""
    refused = limited("41000", key="flow.rate", namespace="flows", coded=coded)

    def script(request: RecordedRequest) -> Step:
        return refused if request.target.startswith(UNPACED.encode()) else ACCEPTED

    async with RawUpstream(script) as upstream, proxy_for(upstream.url) as proxy:
        begun = time.monotonic()
        first = await get(proxy, "a")
        exports = await asyncio.gather(*(post(proxy, "a") for _ in range(3)))
        later = await get(proxy, "a")
        passed = time.monotonic() - begun

    assert [answer.status for answer in exports] == [202] * 3
    assert (first.status, retry_after(first)) == (429, 41000)
    assert first.body == refused.body
    assert problem(later) == "queue-full"
    assert 41000 - passed - 1 <= retry_after(later) <= 41000
    assert len(arrivals(upstream, "a", UNPACED)) == 1
    assert len(arrivals(upstream, "a", EXPORTS)) == 3


async def test_limit_of_the_platform_holds_the_account() -> None:
    script = by_token({"a": [limited("2", key="token.rate", namespace="platform.api")]})
    async with RawUpstream(script) as upstream, proxy_for(upstream.url) as proxy:
        refused_one = asyncio.create_task(get(proxy, "a"))
        await asyncio.sleep(0.3)
        answers = [await post(proxy, "a"), await refused_one]
    assert [answer.status for answer in answers] == [202, 202]
    refused, *later = [request.arrived_at for request in upstream.requests]
    assert min(later) - refused >= 2


async def test_hold_begins_with_the_head_of_a_refusal_whose_body_never_comes() -> None:
    """What it covers is known a second later at the most; until then nothing leaves."""
    head = b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 10\r\n\r\n"
    async with (
        RawUpstream(by_token({"a": [Reply(raw=head)]})) as upstream,
        proxy_for(upstream.url) as proxy,
    ):
        refused = asyncio.create_task(get(proxy, "a"))
        await upstream.received(1)
        await asyncio.sleep(0.1)
        await asyncio.gather(*(get(proxy, "a") for _ in range(3)))
        refused.cancel()
    first, *others = arrivals(upstream, "a")
    assert len(others) == 3
    assert min(others) - first >= 3


async def test_refusal_whose_caller_leaves_holds_all_the_same() -> None:
    async with (
        noting_stalls() as stalls,
        RawUpstream(by_token({"a": [refusal("30", delay=0.2)]})) as upstream,
        proxy_for(upstream.url) as proxy,
    ):
        leaver = asyncio.create_task(get(proxy, "a"))
        await upstream.received(1)
        await asyncio.sleep(0.5)
        leaver.cancel()
        assert await hold_shown(proxy) >= 28 - stalls.total


async def test_announced_quota_spares_the_refusal() -> None:
    """Five requests in four seconds; fifteen come, ten times as fast."""
    window: list[float] = []
    refused: list[bytes] = []

    def script(request: RecordedRequest) -> Step:
        if not window or request.arrived_at >= window[0] + 4:
            window[:] = [request.arrived_at]
        else:
            window.append(request.arrived_at)
        if len(window) > 5:
            refused.append(request.target)
            return refusal("1")
        left = max(1, round(window[0] + 4.5 - time.monotonic()))
        return Reply(
            202,
            [
                ("inin-ratelimit-count", str(len(window))),
                ("inin-ratelimit-allowed", "5"),
                ("inin-ratelimit-reset", str(left)),
            ],
            delay=0.2,
        )

    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.05, "max_wait": 60}) as proxy,
    ):
        answers = await asyncio.gather(*(post(proxy, "a") for _ in range(15)))
    assert [answer.status for answer in answers] == [202] * 15
    assert refused == []


async def test_quota_that_is_null_is_not_looked_at() -> None:
    fields = [
        ("inin-ratelimit-count", "5"),
        ("inin-ratelimit-allowed", "5"),
        ("inin-ratelimit-reset", "60"),
    ]
    async with (
        RawUpstream(default=Reply(202, fields)) as upstream,
        proxy_for(upstream.url, quota=None) as proxy,
    ):
        answers = [await get(proxy, "a") for _ in range(3)]
    assert [answer.status for answer in answers] == [202] * 3
