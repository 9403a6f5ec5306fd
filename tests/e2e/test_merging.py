"""Equal reads that wait together share one send: on real sockets, on a clock that tests move."""

import asyncio
import gc
import gzip
import json
import random
from itertools import pairwise
from typing import Any

import pytest

from proxy.forwarding.exchange import Exchange
from proxy.forwarding.flights import Flight
from proxy.forwarding.merging import Group, SharedSend
from proxy.pacing.slot import Ticket
from proxy.rules.merging import MAX_SHARED
from proxy.settings import Pacing
from tests.kit.client import RawConnection, Response
from tests.kit.logins import token_from
from tests.kit.scene import INTERVAL, JOB, STATE, Scene, poll, scene
from tests.kit.upstream import (
    HalfBody,
    Hang,
    ReadThenReset,
    RecordedRequest,
    Reply,
    Step,
)

OF_A_REQUEST = (Exchange, Flight, Group, SharedSend, Ticket)


def merged(it: Scene) -> float:
    return it.count("merged_requests_total", account="other", route="exports")


def is_whole(response: Response, expected: Reply) -> bool:
    return (response.status, response.body) == (expected.status, expected.body)


async def test_forty_equal_polls_share_one_send() -> None:
    async with scene() as it:
        waiting = await it.ask(*(poll() for _ in range(40)))
        await it.sent(1)
        answers = await it.answers(waiting)
    assert all(is_whole(one, STATE) for one in answers)
    assert {tuple(one.values("x-job")) for one in answers} == {(b"1",)}
    assert len({one.values("x-request-id")[0] for one in answers}) == 40
    assert len(it.upstream.requests) == 1
    assert merged(it) == 39
    assert it.count("requests_total", **labels_of(200)) == 40
    assert it.count("queue_wait_seconds_count", **labels_of_wait("merged")) == 39
    assert it.count("queue_wait_seconds_count", **labels_of_wait("sent")) == 1


def labels_of(code: int) -> dict[str, str]:
    return {
        "account": "other",
        "route": "exports",
        "method": "GET",
        "code": str(code),
        "origin": "upstream",
    }


def labels_of_wait(outcome: str) -> dict[str, str]:
    return {"account": "other", "route": "exports", "outcome": outcome}


async def test_nobody_gets_the_answer_to_a_send_that_left_before_it_came() -> None:
    """Even if that answer is still under way: what it says may be older than the question."""
    slow = Reply(200, body=b"first", delay=10 * INTERVAL)
    async with scene([slow]) as it:
        (early,) = await it.ask(poll())
        await it.sent(1)
        late = await it.ask(poll(), poll())
        await it.sent(2)
        answers = await it.answers(late)
        await it.clock.advance(10 * INTERVAL)
        first = await early.read_response()
    assert first.body == b"first"
    assert all(is_whole(one, STATE) for one in answers)
    assert len(it.upstream.requests) == 2


async def test_a_second_round_of_polls_is_sent_again() -> None:
    async with scene([Reply(200, body=b"1"), Reply(200, body=b"2")]) as it:
        rounds = []
        for number in (1, 2):
            waiting = await it.ask(poll(), poll())
            await it.sent(number)
            rounds.append([one.body for one in await it.answers(waiting)])
    assert rounds == [[b"1", b"1"], [b"2", b"2"]]


@pytest.mark.parametrize("leave", [RawConnection.close, RawConnection.reset])
async def test_a_leader_that_leaves_while_it_waits_hands_over(leave: Any) -> None:
    """The others are sent at the moment at which it would have been."""
    async with scene() as it:
        leader, *others = await it.ask(*(poll() for _ in range(4)))
        leave(leader)
        await it.until_handled(3)
        await it.clock.advance(INTERVAL)
        await it.upstream.received(1)
        answers = await it.answers(others)
    assert all(is_whole(one, STATE) for one in answers)
    assert [one.arrived_at for one in it.upstream.requests] == [INTERVAL]


@pytest.mark.parametrize("leave", [RawConnection.close, RawConnection.reset])
@pytest.mark.parametrize("staying", [1, 3])
async def test_a_leader_that_leaves_after_the_send_hands_over(leave: Any, staying: int) -> None:
    """The others get the answer to the send that is under way."""
    slow = Reply(STATE.status, STATE.headers, STATE.body, delay=5 * INTERVAL)
    async with scene([slow]) as it:
        leader, *others = await it.ask(*(poll() for _ in range(1 + staying)))
        await it.sent(1)
        leave(leader)
        await it.until_handled(staying)
        await it.clock.advance(5 * INTERVAL)
        answers = await it.answers(others)
    assert all(is_whole(one, STATE) for one in answers)
    assert len(it.upstream.requests) == 1
    assert merged(it) == staying


async def test_others_that_leave_at_any_moment_change_nothing_for_the_rest() -> None:
    """One while it waits, one while the answer is awaited."""
    slow = Reply(STATE.status, STATE.headers, STATE.body, delay=5 * INTERVAL)
    async with scene([slow]) as it:
        waiting = await it.ask(*(poll() for _ in range(5)))
        waiting[1].close()
        await it.until_handled(4)
        await it.sent(1)
        waiting[2].reset()
        await it.until_handled(3)
        await it.clock.advance(5 * INTERVAL)
        answers = await it.answers([waiting[0], *waiting[3:]])
    assert all(is_whole(one, STATE) for one in answers)
    assert len(it.upstream.requests) == 1


@pytest.mark.parametrize("seed", range(6))
async def test_callers_that_stay_get_whole_answers_while_others_leave_at_any_moment(
    seed: int,
) -> None:
    """At the pace, and with nothing left over."""
    chance = random.Random(seed)  # noqa: S311 -- no secret
    slow = Reply(STATE.status, STATE.headers, STATE.body, delay=2.5 * INTERVAL)
    large = Reply(200, body=b"x" * (MAX_SHARED + 1))
    refusal = Reply(429, [("Retry-After", "2")], b"{}")
    script = chance.sample([slow, slow, refusal, refusal, large, large], 6)
    async with scene(script) as it:
        callers = await it.ask(*(poll() for _ in range(12)))
        leaving = chance.sample(callers, 6)
        staying = [caller for caller in callers if caller not in leaving]
        reading = asyncio.gather(*(caller.read_response() for caller in staying))
        while not reading.done():
            await it.clock.advance(chance.choice([0.1, 0.5, 1.0]) * INTERVAL)
            if leaving and chance.random() < 0.5:
                chance.choice([RawConnection.close, RawConnection.reset])(leaving.pop())
            await asyncio.wait([reading], timeout=chance.choice([0, 0.01]))
        it.close()
        await it.until_handled(0)
    assert all(
        (one.status, len(one.body)) in {(200, len(STATE.body)), (200, MAX_SHARED + 1)}
        and one.complete
        for one in await reading
    )
    assert it.count("early_sends_total", account="other", route="exports") == 0


async def test_an_answer_that_nobody_waits_for_is_broken_off() -> None:
    """Its room in flight is free at once."""
    slow = Reply(200, delay=1000 * INTERVAL)
    async with scene([slow], pacing={"max_in_flight": 1}) as it:
        waiting = await it.ask(poll(), poll())
        await it.sent(1)
        for connection in waiting:
            connection.close()
        await it.until_handled(0)
        (other,) = await it.ask(poll(path=f"{JOB}2"))
        await it.sent(2)
        answer = await other.read_response()
    assert is_whole(answer, STATE)


CODED = Reply(200, [("Content-Encoding", "gzip")], gzip.compress(b"{}"))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, body=b"x" * 100_000, chunked=True),
        CODED,
        Reply(200, [("Vary", "Accept-Encoding, Origin")], b"v"),
        Reply(200, [("Cache-Control", "no-store")], b"v"),
        Reply(304, [("ETag", '"a"')]),
        Reply(204),
        Reply(404, body=b"{}"),
        Reply(500, body=b"e"),
        Reply(401, body=b"{}"),
        Reply(200, body=b"x" * MAX_SHARED),
        Reply(200, body=b"until the close", raw=b"HTTP/1.1 200 OK\r\n\r\nuntil the close"),
    ],
    ids=[
        "chunked",
        "coded",
        "vary",
        "no-store",
        "304",
        "204",
        "404",
        "500",
        "401",
        "1MiB",
        "close",
    ],
)
async def test_a_whole_answer_is_for_all(reply: Reply) -> None:
    if reply.raw is not None:
        reply = Reply(200, body=reply.body, raw=reply.raw, close_after=True)
    async with scene([reply]) as it:
        waiting = await it.ask(*(poll() for _ in range(4)))
        await it.sent(1)
        answers = await it.answers(waiting)
    assert all(is_whole(one, reply) and one.complete for one in answers)
    for name, value in reply.headers:
        assert [one.values(name) for one in answers] == [[value.encode()]] * 4
    assert len(it.upstream.requests) == 1


async def test_head_is_merged_with_head_alone() -> None:
    head = poll(method="HEAD")
    async with scene(default=Reply(200, [("X-A", "1")], b"12345")) as it:
        heads = await it.ask(head, head)
        (get,) = await it.ask(poll())
        await it.sent(2)
        answers = await it.answers(heads, "HEAD")
        whole = await get.read_response()
    assert [one.values("content-length") for one in answers] == [[b"5"]] * 2
    assert whole.body == b"12345"
    assert sorted(one.method for one in it.upstream.requests) == [b"GET", b"HEAD"]


ONE_EACH = [
    Reply(200, body=b"x" * (MAX_SHARED + 1)),
    Reply(200, body=b"x" * (MAX_SHARED + 1), chunked=True),
    Reply(200, [("Set-Cookie", "a=b")], b"c"),
    Reply(200, [("Vary", "*")], b"v"),
]


@pytest.mark.parametrize("reply", ONE_EACH, ids=["large", "large-chunked", "cookie", "vary"])
async def test_an_answer_that_cannot_be_shared_goes_to_the_leader(reply: Reply) -> None:
    """The others are sent after all, in their order and at the pace."""
    async with scene(default=reply) as it:
        waiting = await it.ask(*(poll(f"X-Request-Id: r{number}") for number in range(3)))
        answers = await it.answers_as_time_passes(waiting)
    assert all(is_whole(one, reply) and one.complete for one in answers)
    sent = [one.values("x-request-id") for one in it.upstream.requests]
    assert sent == [[b"r0"], [b"r1"], [b"r2"]]
    times = [one.arrived_at for one in it.upstream.requests]
    assert all(later - earlier >= INTERVAL for earlier, later in pairwise(times))
    assert merged(it) == 0


@pytest.mark.parametrize("reply", ONE_EACH[:1], ids=["large"])
async def test_an_answer_for_one_is_another_s_if_the_leader_left(reply: Reply) -> None:
    late = Reply(reply.status, reply.headers, reply.body, delay=5 * INTERVAL)
    async with scene([late], default=reply) as it:
        leader, second, third = await it.ask(*(poll() for _ in range(3)))
        await it.sent(1)
        leader.close()
        await it.until_handled(2)
        answers = await it.answers_as_time_passes([second, third])
    assert all(is_whole(one, reply) for one in answers)
    assert len(it.upstream.requests) == 2


async def test_an_answer_that_varies_by_the_program_is_for_the_same_program() -> None:
    reply = Reply(200, [("Vary", "User-Agent")], b"v")
    async with scene(default=reply) as it:
        waiting = await it.ask(*(poll(f"User-Agent: {name}") for name in ("a", "b", "a")))
        answers = await it.answers_as_time_passes(waiting)
    assert all(is_whole(one, reply) for one in answers)
    assert [one.values("user-agent") for one in it.upstream.requests] == [[b"a"], [b"b"]]


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_that_breaks_off_goes_to_the_leader(*, chunked: bool) -> None:
    async with scene([HalfBody(chunked=chunked)]) as it:
        waiting = await it.ask(*(poll() for _ in range(3)))
        leader, *others = await it.answers_as_time_passes(waiting)
    assert (leader.status, leader.body, leader.complete) == (200, b"01234", False)
    assert all(is_whole(one, STATE) for one in others)


async def test_a_lost_answer_is_the_leader_s_trouble_alone() -> None:
    async with scene([ReadThenReset()]) as it:
        waiting = await it.ask(*(poll() for _ in range(3)))
        leader, *others = await it.answers_as_time_passes(waiting)
    assert leader.status == 502
    assert json.loads(leader.body)["type"] == "urn:export-proxy:outcome-unknown"
    assert all(is_whole(one, STATE) for one in others)
    assert len(it.upstream.requests) == 3


async def test_an_answer_that_is_not_http_is_the_leader_s_trouble_alone() -> None:
    async with scene([Reply(raw=b"nonsense\r\n\r\n", close_after=True)]) as it:
        waiting = await it.ask(*(poll() for _ in range(2)))
        leader, other = await it.answers_as_time_passes(waiting)
    assert (leader.status, other.status) == (502, 200)


async def test_a_refusal_leaves_the_group_in_the_queue() -> None:
    """They go on together when the hold is over, and none of them spends the retry budget."""
    refusal = Reply(429, [("Retry-After", "7")], b"{}")
    async with scene([refusal, refusal]) as it:
        waiting = await it.ask(*(poll() for _ in range(20)))
        await it.sent(1)
        answers = await it.answers_as_time_passes(waiting)
    assert all(is_whole(one, STATE) for one in answers)
    first, second, third = (one.arrived_at for one in it.upstream.requests)
    assert second >= first + 7
    assert third >= second + 7
    assert it.count("retries_total", account="other", reason="rate_limited") == 2


async def test_a_refusal_beyond_the_limit_is_passed_on_to_each() -> None:
    refusal = Reply(429, [("Retry-After", "60")], b"{}")
    async with scene([refusal], pacing={"max_wait": 10}) as it:
        waiting = await it.ask(*(poll() for _ in range(3)))
        await it.sent(1)
        answers = await it.answers(waiting)
    assert [one.status for one in answers] == [429] * 3
    assert all(int(one.values("retry-after")[0]) == 60 for one in answers)


async def test_an_idle_connection_that_the_api_closed_breaks_up_no_group() -> None:
    async with scene([STATE, ReadThenReset()]) as it:
        (before,) = await it.ask(poll(path=f"{JOB}0"))
        await it.sent(1)
        await before.read_response()
        waiting = await it.ask(*(poll() for _ in range(5)))
        answers = await it.answers_as_time_passes(waiting)
    assert all(is_whole(one, STATE) for one in answers)
    assert len(it.upstream.requests) == 3


@pytest.mark.parametrize(
    "data",
    [
        poll("Range: bytes=0-9"),
        poll('If-None-Match: "a"'),
        poll("If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT"),
        poll("Cache-Control: no-store"),
        poll(body=b"{}"),
        poll(method="POST"),
        poll(method="OPTIONS"),
        poll(method="DELETE"),
    ],
    ids=["range", "none-match", "modified", "no-store", "body", "post", "options", "delete"],
)
async def test_such_requests_are_sent_each(data: bytes) -> None:
    async with scene() as it:
        waiting = await it.ask(data, data)
        await it.sent(2)
        await it.answers(waiting)
    assert len(it.upstream.requests) == 2
    assert merged(it) == 0


@pytest.mark.parametrize(
    "other",
    [
        poll(path=f"{JOB}?a=1"),
        poll("Cookie: a=1"),
        poll("Accept-Language: de"),
        poll(token="c"),
    ],
    ids=["query", "cookie", "language", "token"],
)
async def test_requests_that_differ_are_sent_each(other: bytes) -> None:
    """The tokens differ in one bit; both are of one account, or of two strangers."""

    def api(request: RecordedRequest) -> Step:
        token = b'{"access_token": "%s", "expires_in": 9999}'
        if request.target == b"/oauth/token":
            tokens = [b"a", b"c"]
            return Reply(200, body=token % tokens[len(logins(it)) - 1])
        return Reply(200, body=b"|".join([request.target, *request.values("authorization")]))

    async with scene(api) as it:
        for _ in range(2):
            await token_from(it.port, "one-client")
        waiting = await it.ask(poll(), other)
        await it.sent(4)
        mine, theirs = await it.answers(waiting)
    assert mine.body == JOB.encode() + b"|Bearer a"
    expected = b"Bearer c" if b"Bearer c" in other else b"Bearer a"
    assert theirs.body == other.split(b" ")[1] + b"|" + expected
    assert merged(it) == 0


def logins(it: Scene) -> list[RecordedRequest]:
    return [one for one in it.upstream.requests if one.target == b"/oauth/token"]


async def test_two_strangers_are_never_merged() -> None:
    """Their tokens differ in one bit."""

    def api(request: RecordedRequest) -> Step:
        return Reply(200, body=request.values("authorization")[0])

    async with scene(api) as it:
        waiting = await it.ask(poll(token="a"), poll(token="c"))
        await it.clock.advance(INTERVAL)
        answers = await it.answers(waiting)
    assert [one.body for one in answers] == [b"Bearer a", b"Bearer c"]


async def test_callers_of_a_managed_account_are_merged_whatever_they_presented() -> None:
    """The same goes to the API for all of them: the account's own token."""
    keys = [
        "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",  # foo
        "sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9",  # bar
    ]
    account = {"name": "london", "client_id": "c", "client_secret": "s", "keys": keys}

    def api(request: RecordedRequest) -> Step:
        if request.target == b"/oauth/token":
            return Reply(
                200, body=b'{"access_token": "managed", "token_type": "bearer", "expires_in": 9999}'
            )
        return Reply(200, body=request.values("authorization")[0])

    async with scene(api, accounts=[account]) as it:
        await it.upstream.received(1)
        waiting = await it.ask(poll(token="foo"), poll(token="bar"), poll(token="foo"))
        await it.sent(2)
        answers = await it.answers(waiting)
    assert [one.body for one in answers] == [b"Bearer managed"] * 3
    assert [one.target for one in it.upstream.requests] == [b"/oauth/token", JOB.encode()]
    assert it.count("merged_requests_total", account="london", route="exports") == 2


async def test_each_keeps_its_own_deadline() -> None:
    """A hold comes that ends after that of the first one, and before that of the second."""
    held = Reply(429, [("Retry-After", "2")], delay=2 * INTERVAL)
    async with scene([held], pacing={"max_in_flight": 1, "max_wait": 4 * INTERVAL}) as it:
        (other,) = await it.ask(poll(path=f"{JOB}0"))
        (first,) = await it.ask(poll())
        await it.sent(1)
        await it.clock.advance(1.5 * INTERVAL)
        (second,) = await it.ask(poll())
        answers = await it.answers_as_time_passes([other, first, second])
    assert [one.status for one in answers] == [200, 429, 200]
    assert json.loads(answers[1].body)["type"] == "urn:export-proxy:wait-expired"
    assert len(it.upstream.requests) == 3


async def test_a_reload_in_between_changes_nothing_for_those_that_wait() -> None:
    """Those that come after it join them, if reads are merged still."""
    async with scene() as it:
        before = await it.ask(poll(), poll())
        settings = it.proxy.proxy.settings
        await it.proxy.proxy.reload(
            settings.model_copy(update={"pacing": Pacing(interval=INTERVAL)})
        )
        after = await it.ask(poll())
        unmerged = [
            route.model_copy(update={"merge": False}) if route.paced else route
            for route in settings.routes
        ]
        await it.proxy.proxy.reload(settings.model_copy(update={"routes": tuple(unmerged)}))
        alone = await it.ask(poll())
        await it.sent(2)
        answers = await it.answers([*before, *after, *alone])
    assert all(is_whole(one, STATE) for one in answers)
    assert len(it.upstream.requests) == 2
    assert merged(it) == 2


async def test_requests_that_wait_for_one_send_cost_one_interval() -> None:
    """So a newcomer that could not wait behind all of them is admitted."""
    async with scene() as it:
        polls = await it.ask(*(poll() for _ in range(20)))
        (other,) = await it.ask(poll("Prefer: wait=3", path=f"{JOB}0"))
        await it.sent(2)
        answers = await it.answers([*polls, other])
    assert [one.status for one in answers] == [200] * 21


ALONE = poll("Range: bytes=0-9")
POST = poll(method="POST", body=b"{}")


@pytest.mark.parametrize(
    ("data", "step"),
    [
        pytest.param(poll(), STATE, id="shared"),
        pytest.param(poll(), ONE_EACH[0], id="large"),
        pytest.param(poll(), ONE_EACH[2], id="cookie"),
        pytest.param(poll(), ReadThenReset(), id="lost"),
        pytest.param(poll(), HalfBody(), id="half"),
        pytest.param(poll(), Reply(429), id="refused"),
        pytest.param(poll(), Hang(), id="left"),
        pytest.param(ALONE, ReadThenReset(), id="alone-lost"),
        pytest.param(ALONE, HalfBody(), id="alone-half"),
        pytest.param(ALONE, Hang(), id="alone-left"),
        pytest.param(POST, ReadThenReset(), id="post-lost"),
        pytest.param(POST, HalfBody(), id="post-half"),
        pytest.param(POST, Hang(), id="post-left"),
    ],
)
async def test_nothing_is_left_of_requests_that_are_over(data: bytes, step: Step) -> None:
    """Not even circles, which the rare collections of the service would find late."""
    async with scene([step]) as it:
        waiting = await it.ask(*(data for _ in range(5)))
        gc.collect()
        gc.disable()
        try:
            if isinstance(step, Hang):
                await it.sent(1)
                it.close()
            else:
                await it.answers_as_time_passes(waiting)
                it.close()
            await it.until_handled(0)
            await it.clock.advance(10_000)  # the clock keeps timers that were cancelled
            left = [type(one).__name__ for one in gc.get_objects() if isinstance(one, OF_A_REQUEST)]
        finally:
            gc.enable()
    assert left == []


async def test_a_route_may_send_each() -> None:
    route = {"name": "exports", "paths": ["/api/**"], "paced": True, "merge": False}
    async with scene(routes=[route]) as it:
        waiting = await it.ask(poll(), poll())
        await it.sent(2)
        await it.answers(waiting)
    assert len(it.upstream.requests) == 2


async def test_a_route_may_have_a_pace_of_its_own() -> None:
    """Polls beside exports: each route keeps its own distance, and neither waits for the other."""
    routes = [
        {
            "name": "polls",
            "paths": ["/api/v2/recording/jobs/*"],
            "methods": ["GET"],
            "paced": True,
            "interval": INTERVAL / 4,
        },
        {"name": "exports", "paths": ["/api/**"], "paced": True},
    ]
    async with scene(routes=routes) as it:
        polls = await it.ask(*(poll(path=f"{JOB}{number}") for number in range(8)))
        exports = await it.ask(*(poll(method="POST", body=b"%d" % number) for number in range(2)))
        for _ in range(8):
            before = len(it.upstream.requests)
            await it.clock.advance(INTERVAL / 4)
            await it.upstream.received(before + 1)
        await it.answers(polls)
        await it.answers(exports, "POST")
    times: dict[bytes, list[float]] = {b"GET": [], b"POST": []}
    for request in it.upstream.requests:
        times[request.method].append(request.arrived_at)
    assert times == {
        b"GET": [INTERVAL / 4 * (number + 1) for number in range(8)],
        b"POST": [INTERVAL, 2 * INTERVAL],
    }
