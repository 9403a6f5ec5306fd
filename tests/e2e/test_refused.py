"""The API says 429: the account is on hold for as long as was asked, and callers hardly notice.

Intervals are short where the claim does not depend on them. What the upstream saw is the measure.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from itertools import combinations, pairwise
from math import ceil

import pytest

from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
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
TOLERANCE = 0.020  # between our stamp and the arrival upstream
SLACK = 0.3  # beside what the machine was seen to stand still


def refusal(*retry_after: str, date: str | None = None, delay: float = 0) -> Reply:
    headers = [("Retry-After", value.encode().decode("latin-1")) for value in retry_after]
    if date is not None:
        headers.append(("Date", date))
    body = b'{"code": "too.many.requests.retry.after", "status": 429}'
    return Reply(429, [*headers, ("Content-Type", "application/json")], body, delay=delay)


def by_token(steps: Mapping[str, Sequence[Step]]) -> Callable[[RecordedRequest], Step]:
    """Play each token's steps in turn; whatever comes after them, or without, is accepted."""
    left = {f"Bearer {token}".encode(): iter(own) for token, own in steps.items()}

    def choose(request: RecordedRequest) -> Step:
        return next(left.get(request.values("authorization")[0], iter(())), ACCEPTED)

    return choose


def arrivals(upstream: RawUpstream, token: str, path: str = "") -> list[float]:
    """When this token's requests to paths that begin so arrived."""
    return [
        request.arrived_at
        for request in upstream.requests
        if request.values("authorization") == [f"Bearer {token}".encode()]
        and request.target.startswith(path.encode())
    ]


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def keeps_pace(times: Sequence[float], interval: float, *, stalled: float) -> bool:
    """True if any k sends after another take at least k intervals."""
    return all(
        times[k] - times[j] >= (k - j) * interval - TOLERANCE - stalled
        for j, k in combinations(range(len(times)), 2)
    )


def request_bytes(token: str, method: str = "POST", path: str = EXPORTS, *fields: str) -> bytes:
    body = b'{"mediaType": "voice"}' if method == "POST" else b""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: proxy",
        f"Authorization: Bearer {token}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def post(proxy: Running, token: str, *fields: str, path: str = EXPORTS) -> Response:
    data = request_bytes(token, "POST", path, *fields)
    return parse_response(await exchange(HOST, port_of(proxy.url), data, timeout=30), "POST")


async def get(proxy: Running, token: str, path: str = UNPACED) -> Response:
    data = request_bytes(token, "GET", path)
    return parse_response(await exchange(HOST, port_of(proxy.url), data, timeout=30), "GET")


def retry_after(response: Response) -> int:
    (value,) = response.values("retry-after")
    assert value.isdigit()
    return int(value)


def problem(response: Response) -> str:
    assert response.values("content-type") == [b"application/problem+json"]
    name = json.loads(response.body)["type"]
    assert isinstance(name, str)
    return name.removeprefix("urn:export-proxy:")


async def hold_shown(proxy: Running) -> float:
    """What the admin port says is left of the hold of everyone nobody configured."""
    raw = await exchange(
        HOST, port_of(proxy.admin_url), b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    (other,) = json.loads(parse_response(raw).body)["accounts"]
    left = other["hold_remaining_seconds"]
    assert isinstance(left, float)
    return left


async def is_on_hold(proxy: Running) -> bool:
    return await hold_shown(proxy) > 0


# One refusal


async def test_one_refusal_holds_its_account_and_no_other() -> None:
    """A hold of two seconds on all routes, then one by one; nobody sees a 429."""
    held_until = 0.0

    def refuse_the_third(request: RecordedRequest) -> Step:
        nonlocal held_until
        if request.values("authorization") != [b"Bearer a"]:
            return ACCEPTED
        seen.append(request.arrived_at)
        if len(seen) == 3:
            held_until = request.arrived_at + 2
            refused_one.set()
        return refusal("2") if request.arrived_at < held_until else ACCEPTED

    seen: list[float] = []
    refused_one = asyncio.Event()
    async with (
        noting_stalls() as stalls,
        RawUpstream(refuse_the_third) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.2}) as proxy,
    ):
        ours = asyncio.gather(*(post(proxy, "a") for _ in range(13)))
        theirs = asyncio.gather(*(post(proxy, "b") for _ in range(13)))
        await refused_one.wait()
        await until(lambda: is_on_hold(proxy))
        assert 0 < await hold_shown(proxy) <= 2
        unpaced = await get(proxy, "a")
        responses = [unpaced, *await ours, *await theirs]
        assert await hold_shown(proxy) == 0

    assert [response.status for response in responses] == [202] * 27
    refused = seen[2]
    under_way = refused + stalls.longest  # what had left by then
    assert not [at for at in seen if under_way < at < refused + 2]
    assert len(seen) <= 13 + 1 + 1 + 1  # one refusal, at most one more, and the unpaced request
    assert keeps_pace(arrivals(upstream, "a", EXPORTS), 0.2, stalled=stalls.longest)
    assert max(gaps(arrivals(upstream, "a", EXPORTS)[3:])) < 0.2 + SLACK + stalls.total
    others = arrivals(upstream, "b")
    assert keeps_pace(others, 0.2, stalled=stalls.longest)
    assert max(gaps(others)) < 0.2 + 0.15 + stalls.total


async def test_someone_else_eats_the_quota() -> None:
    """Four accounts lose three seconds each, and nothing else."""
    simulator = Simulator(
        SimulatorSettings(
            interval=0.2,
            tolerance=10,  # a late stamp is no reason to refuse; `ahead` judges the pace
            any_client=True,
            any_client_spec=ClientSpec(secret=None, opaque=True),
        ),
        monotonic=time.monotonic,
        wall=time.time,
    )
    names = ("a", "b", "c", "d")
    async with (
        noting_stalls() as stalls,
        simulator.serve(HOST) as api,
        proxy_for(api.url, pacing={"interval": 0.2}) as proxy,
    ):
        tokens = {name: await token_from(port_of(proxy.url), name) for name in names}
        burst = asyncio.gather(
            *(
                post(proxy, tokens[name], f"X-Export-Key: {name}-{n}")
                for n in range(20)
                for name in names
            )
        )
        await asyncio.sleep(1)
        for name in names:
            simulator.eat_quota(name, 3)
        responses = await burst
        reports = [simulator.report(name) for name in names]

    assert [response.status for response in responses] == [202] * 80
    for report in reports:
        assert report.exports == 20
        assert report.duplicates == {}
        assert 1 <= report.refused <= 2
        assert report.ahead is not None
        assert report.ahead <= TOLERANCE + stalls.longest
        assert report.span <= (19 * 0.2 + 3) * 1.03 + stalls.total


# What Retry-After says

INTERVAL, BACKOFF, MAXIMUM = 0.1, 0.4, 3.0
NORMAL_PACE = (INTERVAL, INTERVAL)
AS_IF_ABSENT = (BACKOFF, 2 * BACKOFF)  # the first step, and as much again of jitter at most
CLAMPED = (MAXIMUM, MAXIMUM)


def asctime(at: float) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(at))


def rfc850(at: float) -> str:
    return time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(at))


async def test_every_retry_after_gives_the_documented_wait() -> None:
    """RFC 9110 section 10.2.3, and everything a server may write in its place."""
    now = time.time()
    date = formatdate(now, usegmt=True)
    cases: dict[str, tuple[Reply, tuple[float, float]]] = {
        "seconds": (refusal("2"), (2, 2)),
        "fraction": (refusal("0.5"), (1, 1)),
        "zero": (refusal("0"), NORMAL_PACE),
        "negative": (refusal("-5"), AS_IF_ABSENT),
        "signed": (refusal("+5"), AS_IF_ABSENT),
        "other-digits": (refusal("٣"), AS_IF_ABSENT),
        "nan": (refusal("nan"), AS_IF_ABSENT),
        "inf": (refusal("inf"), AS_IF_ABSENT),
        "exponent": (refusal("1e3"), AS_IF_ABSENT),
        "empty": (refusal(""), AS_IF_ABSENT),
        "list": (refusal("1, 2"), (2, 2)),
        "utc": (refusal(formatdate(now + 2, usegmt=True)[:-3] + "UTC", date=date), (2, 2)),
        "offset": (refusal(formatdate(now + 2)[:-5] + "+0000", date=date), (2, 2)),
        "400-digits": (refusal("9" * 400), CLAMPED),
        "past-date": (refusal(formatdate(now - 60, usegmt=True), date=date), NORMAL_PACE),
        "no-zone": (refusal(formatdate(now + 2)[:-6], date=date), AS_IF_ABSENT),
        "imf-fixdate": (refusal(formatdate(now + 2, usegmt=True), date=date), (2, 2)),
        "asctime": (refusal(asctime(now + 2), date=date), (2, 2)),
        "rfc850": (refusal(rfc850(now + 2), date=date), (2, 2)),
        "year-9999": (refusal("Fri, 31 Dec 9999 23:59:59 GMT"), CLAMPED),
        "absent": (refusal(), AS_IF_ABSENT),
        "two": (refusal("1", "2"), (2, 2)),
        "two-one-broken": (refusal("soon", "1"), (1, 1)),
    }
    retry = {"max_retry_after": MAXIMUM, "initial_backoff": BACKOFF}
    script = by_token({name: [reply] for name, (reply, _) in cases.items()})
    async with (
        noting_stalls() as stalls,
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": INTERVAL}, retry=retry) as proxy,
    ):
        responses = await asyncio.gather(*(post(proxy, name) for name in cases))

    assert {response.status for response in responses} == {202}
    for name, (_, (shortest, longest)) in cases.items():
        first, second = arrivals(upstream, name)
        most = longest + SLACK + stalls.total
        assert shortest - TOLERANCE <= second - first <= most, name


# Refused again and again


async def test_endless_refusals_end_in_the_apis_own_answer() -> None:
    """Four sends at most, then the 429 as the API wrote it, with what is left of the hold."""
    endless: dict[str, list[Step]] = {
        "one": [refusal("1")] * 4,
        "zero": [refusal("0")] * 4,
        "absent": [refusal()] * 4,
        "broken": [refusal("soon")] * 4,
    }
    retry = {"initial_backoff": 0.2}
    async with (
        noting_stalls() as stalls,
        RawUpstream(by_token(endless)) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.1}, retry=retry) as proxy,
    ):
        responses = await asyncio.gather(*(post(proxy, token) for token in endless))
        await asyncio.sleep(1)
        returned = time.monotonic()
        await post(proxy, "one")

    for response in responses:
        assert response.status == 429
        assert response.body == refusal().body
        assert response.values("content-type") == [b"application/json"]
        assert response.values("proxy-status") == []
    assert [retry_after(response) for response in responses] == [1, 1, 2, 2]
    sends = {token: gaps(arrivals(upstream, token)) for token in endless}
    assert {token: len(between) for token, between in sends.items()} == {
        "one": 4,  # the last of them after the answer: its Retry-After was true
        "zero": 3,
        "absent": 3,
        "broken": 3,
    }
    assert arrivals(upstream, "one")[-1] - returned < SLACK + stalls.total
    for token in ("absent", "broken"):  # the hold doubles, with up to 0.2 s of jitter
        for between, shortest in zip(sends[token], (0.2, 0.4, 0.8), strict=True):
            assert shortest <= between + TOLERANCE
            assert between <= shortest + 0.2 + SLACK + stalls.total


async def test_endless_refusals_of_many_stay_within_the_budget() -> None:
    """A sick upstream does not get more than a tenth on top of what it would get anyway."""
    tokens = {"zero": "0", "one": "1"}
    async with (
        noting_stalls() as stalls,
        RawUpstream(
            by_token({token: [refusal(tokens[token])] * 999 for token in tokens})
        ) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.02, "max_wait": 5}) as proxy,
    ):
        responses = await asyncio.gather(
            *(post(proxy, token) for _ in range(200) for token in tokens)
        )

    assert {response.status for response in responses} == {429}
    assert all(retry_after(response) >= 1 for response in responses)
    for token, answers in (("zero", responses[::2]), ("one", responses[1::2])):
        sent = [answer for answer in answers if not answer.values("proxy-status")]
        sends = arrivals(upstream, token)
        assert len(sends) <= len(sent) + max(3, 0.1 * len(sends))
        assert keeps_pace(sends, 0.02, stalled=stalls.longest)


async def test_a_hold_longer_than_the_caller_may_wait_is_passed_on_at_once() -> None:
    """The caller that was refused hears it from the API, the others when their time is over."""
    async with (
        noting_stalls() as stalls,
        RawUpstream([refusal("30")]) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.1, "max_wait": 1}) as proxy,
    ):
        begun = time.monotonic()
        calls = [asyncio.ensure_future(post(proxy, "a")) for _ in range(3)]
        refused = await calls[0]
        elapsed = time.monotonic() - begun
        newcomer = await post(proxy, "a")
        waiting = await asyncio.gather(*calls[1:])

    assert elapsed < 0.1 + SLACK + stalls.total
    assert refused.status == 429
    assert refused.body == refusal().body
    assert refused.values("proxy-status") == []
    assert retry_after(refused) == 30
    assert len(upstream.requests) == 1
    assert problem(newcomer) == "queue-full"
    predicted = json.loads(newcomer.body)["predicted_wait"]
    assert 29 - stalls.total < predicted < 31
    assert ceil(predicted) - 1 <= retry_after(newcomer) <= 1.25 * ceil(predicted) + 1
    assert [problem(response) for response in waiting] == ["wait-expired"] * 2
    for response in waiting:
        assert 28 - stalls.total <= retry_after(response) <= 38


async def test_an_absurd_hold_is_clamped_and_then_probed_by_one() -> None:
    """More than a day is cut to `max_retry_after`; after it one request at a time finds out."""
    refusals = [refusal("86401")] * 3
    async with (
        noting_stalls() as stalls,
        RawUpstream(by_token({"a": refusals})) as upstream,
        proxy_for(
            upstream.url, pacing={"interval": 0.1, "max_wait": 6}, retry={"max_retry_after": 1}
        ) as proxy,
    ):
        responses = await asyncio.gather(*(post(proxy, "a") for _ in range(6)))

    assert [response.status for response in responses] == [202] * 6
    times = arrivals(upstream, "a")
    assert len(times) == 6 + 3
    assert min(gaps(times)[:3]) >= 1
    assert keeps_pace(times, 0.1, stalled=stalls.longest)


async def test_what_waits_for_a_connection_when_a_hold_begins_waits_too() -> None:
    """They had their slots; the only connection comes back with the refusal."""
    async with (
        RawUpstream(by_token({"a": [refusal("1", delay=0.2)]})) as upstream,
        proxy_for(upstream.url, upstream={"max_connections": 1}) as proxy,
    ):
        responses = await asyncio.gather(*(get(proxy, "a") for _ in range(3)))

    assert [response.status for response in responses] == [202] * 3
    refused, *later = arrivals(upstream, "a")
    assert len(later) == 3
    assert min(later) - refused >= 1.2


async def test_a_hold_that_grows_does_not_prolong_the_time_for_the_last_send() -> None:
    """The request came back for one second; the other refusal makes it five."""
    script = by_token({"a": [refusal("1", delay=1.1), refusal("5", delay=1.3)]})
    async with (
        noting_stalls() as stalls,
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, retry={"max_elapsed": 4}) as proxy,
    ):
        begun = time.monotonic()
        responses = await asyncio.gather(*(get(proxy, "a") for _ in range(2)))
        elapsed = time.monotonic() - begun

    assert [response.status for response in responses] == [429] * 2
    assert 4 - TOLERANCE <= elapsed < 4 + SLACK + stalls.total
    assert len(upstream.requests) == 2


# The end of a hold


async def test_when_a_hold_ends_one_goes_first() -> None:
    """The others, on any route, wait for its answer."""
    script = by_token({"a": [refusal("1"), Reply(202, delay=0.6)]})
    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.1}) as proxy,
    ):
        calls = [asyncio.ensure_future(post(proxy, "a")) for _ in range(4)]
        await upstream.received()
        await until(lambda: is_on_hold(proxy))
        calls += [asyncio.ensure_future(get(proxy, "a")) for _ in range(3)]
        responses = await asyncio.gather(*calls)

    assert {response.status for response in responses} == {202}
    refused, probe, *others = arrivals(upstream, "a")
    assert probe - refused >= 1
    assert min(others) - probe >= 0.6
    assert len(others) == 6


async def test_a_probe_whose_caller_leaves_is_followed_by_the_next() -> None:
    """The answer is read on, for a caller who asks again; the others wait for it 2 s at most."""
    script = by_token({"a": [refusal("1"), Reply(202, delay=5)]})
    async with (
        noting_stalls() as stalls,
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.1}) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as leaving,
    ):
        await leaving.send(request_bytes("a"))
        await upstream.received()
        staying = asyncio.ensure_future(post(proxy, "a"))
        await upstream.received(2)
        leaving.close()
        response = await staying

    assert response.status == 202
    _, probe, second = arrivals(upstream, "a")
    assert second - probe < 2 + SLACK + stalls.total


async def test_a_refused_request_keeps_its_place() -> None:
    """It goes back to the front, before those who came after it."""
    async with (
        RawUpstream(by_token({"a": [refusal("1")]})) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.1}) as proxy,
    ):
        calls = []
        for n in range(4):
            calls.append(asyncio.ensure_future(post(proxy, "a", f"X-Export-Key: {n}")))
            await until(lambda: _are_under_way(proxy, len(calls)))
        await asyncio.gather(*calls)

    order = [request.values("x-export-key")[0] for request in upstream.requests]
    assert order == [b"0", b"0", b"1", b"2", b"3"]


async def _are_under_way(proxy: Running, count: int) -> bool:
    return proxy.proxy.under_way >= count


CUT_SHORT = b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 99\r\n\r\n{"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=CUT_SHORT, close_after=True),
        Reply(429, [("Retry-After", "1")], b"x" * 100_000),
        Reply(429, [("Retry-After", "1")], b"{}", chunked=True),
    ],
    ids=["cut short", "long", "chunked"],
)
async def test_a_refusal_is_one_whatever_its_body(reply: Reply) -> None:
    """The status line says all there is to know; its caller is still served."""
    async with (
        noting_stalls() as stalls,
        RawUpstream([reply], default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.05}) as proxy,
    ):
        response = await post(proxy, "a")
    assert response.status == 202
    (gap,) = gaps(arrivals(upstream, "a"))
    assert 1 <= gap + TOLERANCE < 1 + SLACK + TOLERANCE + stalls.total


async def test_a_passed_on_refusal_without_its_body_is_still_an_answer() -> None:
    """A 429 that broke off, or answers HEAD, is framed anew."""
    broken = Reply(raw=CUT_SHORT, close_after=True)
    head = Reply(429, [("Retry-After", "1"), ("Content-Length", "99")])
    async with (
        RawUpstream(by_token({"a": [broken], "b": [head]})) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.05, "max_wait": 0.5}) as proxy,
    ):
        cut_short = await post(proxy, "a")
        raw = await exchange(HOST, port_of(proxy.url), request_bytes("b", "HEAD"))
        headless = parse_response(raw, "HEAD")
    for response in (cut_short, headless):
        assert response.status == 429
        assert response.complete
        assert retry_after(response) == 1
        assert response.body == b""
