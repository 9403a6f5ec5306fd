"""The token endpoint's front: which calls teach who a token belongs to, and its own errors.

An issued token shows where everybody must be known: it is then let in.
"""

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.service.lifecycle import Running, running
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import proxy_for, settings_for
from tests.kit.upstream import (
    Garbage,
    Hang,
    RawUpstream,
    ReadThenClose,
    RecordedRequest,
    Reply,
    Step,
    free_port,
)

FORM = "Content-Type: application/x-www-form-urlencoded"
GOOD = "grant_type=client_credentials&client_id=the-id&client_secret=s3cr3t"
GRANT = '{"access_token": "t1", "token_type": "bearer", "expires_in": 600}'
KNOWN_ONLY = {"identity": {"unidentified": "reject"}}
TOO_LONG = 65537


def basic(client_id: str, secret: str) -> str:
    """The field as RFC 6749 section 2.3.1 has it; both parts come form-encoded already."""
    encoded = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return f"Authorization: Basic {encoded}"


def token_call(form: str = GOOD, *fields: str, method: str = "POST") -> bytes:
    head = [f"{method} /oauth/token HTTP/1.1", "Host: h", FORM, *fields]
    return "\r\n".join([*head, f"Content-Length: {len(form)}", "", form]).encode()


async def log_in(proxy: Running, data: bytes) -> Response:
    return parse_response(await exchange(HOST, port_of(proxy.url), data))


async def is_known(proxy: Running, token: str = "t1") -> bool:
    head = f"GET /api/v2/users/me HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
    status = parse_response(await exchange(HOST, port_of(proxy.url), head.encode())).status
    assert status in (200, 401)
    return status == 200


def granting(grant: bytes | str = GRANT, status: int = 200) -> "Script":
    body = grant if isinstance(grant, bytes) else grant.encode()
    return Script(Reply(status, [("Content-Type", "application/json")], body))


class Script:
    """Answers token calls with a step, and everything else with 200."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, request: RecordedRequest) -> Step:
        return self._step if request.target == b"/oauth/token" else Reply()


def error_of(answer: Response) -> tuple[int, str]:
    """The status and the error of an answer in the form of RFC 6749 section 5.2."""
    assert answer.values("Content-Type") == [b"application/json"]
    assert answer.values("Proxy-Status")[0].startswith(b"export-proxy; error=")
    assert len(answer.values("X-Request-Id")) == 1
    document = json.loads(answer.body)
    assert set(document) == {"error", "error_description"}
    return answer.status, document["error"]


# Which calls teach


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (GOOD, []),
        (GOOD + "&scope=&x=%00", []),
        ("grant_type=client_credentials", [basic("the-id", "s3cr3t")]),
        ("grant_type=client_credentials&client_id=the-id", [basic("the-id", "s3cr3t")]),
        ("grant_type=client_credentials", [basic("the-id", "s3:cr3t")]),
        ("grant_type=client_credentials", [basic("the-id", "s3").replace("Basic", "bAsIC")]),
        ("grant_type=client%5Fcredentials&client_id=the%2Did&client_secret=%20", []),
    ],
)
async def test_client_credentials_with_a_secret_teach(form: str, fields: list[str]) -> None:
    async with RawUpstream(granting()) as upstream, proxy_for(upstream.url, **KNOWN_ONLY) as proxy:
        answer = await log_in(proxy, token_call(form, *fields))
        assert (answer.status, answer.body) == (200, GRANT.encode())
        assert upstream.requests[0].body == form.encode()
        assert await is_known(proxy)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("grant_type=password&username=u&password=p&client_id=the-id&client_secret=s", []),
        ("grant_type=authorization_code&code=c", [basic("the-id", "s")]),
        ("grant_type=refresh_token&refresh_token=r", [basic("the-id", "s")]),
        ("grant_type=CLIENT_CREDENTIALS&client_id=the-id&client_secret=s", []),
        ("client_id=the-id&client_secret=s", []),
        (GOOD + "&grant_type=password", []),
        (GOOD + "&client_id=another", []),
        (GOOD + "&client_secret=another", []),
        ("grant_type=client_credentials&client_id=the-id", []),
        ("grant_type=client_credentials&client_id=the-id&client_secret=", []),
        ("grant_type=client_credentials&client_secret=s", []),
        ("grant_type=client_credentials", [basic("the-id", "")]),
        ("grant_type=client_credentials", ["Authorization: Basic dGhlLWlk"]),  # no colon
        ("grant_type=client_credentials", ["Authorization: Basic dGhlLWlkOnM"]),  # no padding
        ("grant_type=client_credentials", ["Authorization: Basic /zpz"]),  # not UTF-8
        ("grant_type=client_credentials", ["Authorization: Bearer t0"]),
        ('{"grant_type": "client_credentials"}', []),
        ("", []),
    ],
)
async def test_any_other_call_is_forwarded_and_teaches_nothing(
    form: str, fields: list[str]
) -> None:
    async with RawUpstream(granting()) as upstream, proxy_for(upstream.url, **KNOWN_ONLY) as proxy:
        answer = await log_in(proxy, token_call(form, *fields))
        assert (answer.status, answer.body) == (200, GRANT.encode())
        (sent,) = upstream.requests
        assert sent.body == form.encode()
        sent_credentials = [f"Authorization: {v.decode()}" for v in sent.values("Authorization")]
        assert sent_credentials == fields
        assert not await is_known(proxy)


async def test_credentials_in_two_places_are_refused() -> None:
    """RFC 6749 section 2.3: one way of authentication a request."""
    async with RawUpstream(granting()) as upstream, proxy_for(upstream.url) as proxy:
        answer = await log_in(proxy, token_call(GOOD, basic("the-id", "s3cr3t")))
        assert upstream.connections == 0
    assert error_of(answer) == (400, "invalid_request")
    assert answer.values("Retry-After") == []
    assert b"s3cr3t" not in answer.body


async def test_id_and_secret_are_form_decoded_where_they_come_as_basic() -> None:
    """RFC 6749 section 2.3.1: the pair is form-encoded before it is put together."""
    accounts = [{"name": "london", "client_id": "the id+:%"}]
    call = token_call("grant_type=client_credentials", basic("the+id%2B%3A%25", "s%3A"))
    async with (
        RawUpstream(granting()) as upstream,
        proxy_for(upstream.url, accounts=accounts) as proxy,
    ):
        await log_in(proxy, call)
        await is_known(proxy)
        named = [account.label for account in proxy.accounts.accounts() if account.queues]
    assert named == ["london"]


# Which answers teach


@pytest.mark.parametrize(
    ("grant", "status"),
    [
        (GRANT, 400),
        (GRANT, 201),
        (GRANT, 500),
        ("", 200),
        ("[]", 200),
        ("<html>", 200),
        ('"access_token"', 200),
        ("[" * 60_000, 200),
        (b"\xff\xfe", 200),
        ('{"expires_in": 600}', 200),
        ('{"access_token": ["t1"], "expires_in": 600}', 200),
        ('{"access_token": "\\ud800", "expires_in": 600}', 200),
    ],
)
async def test_an_answer_that_grants_nothing_is_passed_on_and_teaches_nothing(
    grant: str | bytes, status: int
) -> None:
    expected = grant if isinstance(grant, bytes) else grant.encode()
    async with (
        RawUpstream(granting(grant, status)) as upstream,
        proxy_for(upstream.url, **KNOWN_ONLY) as proxy,
    ):
        answer = await log_in(proxy, token_call())
        assert (answer.status, answer.body) == (status, expected)
        assert not await is_known(proxy)


@pytest.mark.parametrize(
    "lifetime", ['"600"', "600.5", "true", "0", "-1", "null", "NaN", '"soon"', None]
)
async def test_a_token_belongs_to_its_client_whatever_is_said_of_its_life(
    lifetime: str | None,
) -> None:
    said = "" if lifetime is None else f', "expires_in": {lifetime}'
    grant = f'{{"access_token": "t1"{said}}}'
    async with (
        RawUpstream(granting(grant)) as upstream,
        proxy_for(upstream.url, **KNOWN_ONLY) as proxy,
    ):
        assert (await log_in(proxy, token_call())).status == 200
        assert await is_known(proxy)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_coded_answer_is_read_and_passed_on_as_it_came(coding: str) -> None:
    plain = GRANT.encode()
    body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    script = Script(Reply(200, [("Content-Encoding", coding)], body))
    async with RawUpstream(script) as upstream, proxy_for(upstream.url, **KNOWN_ONLY) as proxy:
        answer = await log_in(proxy, token_call())
        assert (answer.body, answer.values("Content-Encoding")) == (body, [coding.encode()])
        assert await is_known(proxy)


async def test_a_token_whose_client_is_not_known_is_counted() -> None:
    unread = Script(Reply(200, [("Content-Encoding", "unknown")], GRANT.encode()))
    for script, form in ((granting(), "grant_type=password&username=u"), (unread, GOOD)):
        async with RawUpstream(script) as upstream, proxy_for(upstream.url) as proxy:
            assert (await log_in(proxy, token_call(form))).status == 200
            port = port_of(proxy.admin_url)
            raw = await exchange(HOST, port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"export_proxy_unattributed_logins_total 1.0" in parse_response(raw).body


# Each client for itself


async def test_a_refused_secret_is_refused_here_for_some_seconds() -> None:
    """The right one is not, nor is the wrong one of another client."""
    refusal = Reply(401, (), b'{"error": "invalid_client"}')
    clock = FakeClock()
    async with RawUpstream(Script(refusal)) as upstream:  # noqa: SIM117 -- it outlives it
        async with running(settings_for(upstream.url), clock) as proxy:
            for _ in range(20):
                answer = await log_in(proxy, token_call())
                assert (answer.status, answer.body) == (401, b'{"error": "invalid_client"}')
            assert token_calls(upstream) == 1
            await log_in(proxy, token_call(GOOD + "x"))
            await log_in(proxy, token_call(GOOD.replace("the-id", "another")))
            assert token_calls(upstream) == 3
            await clock.advance(5)
            await log_in(proxy, token_call())
            assert token_calls(upstream) == 4


@pytest.mark.parametrize(
    ("status", "error"), [(400, "invalid_request"), (429, "x"), (503, "x"), (400, "slow_down")]
)
async def test_trouble_of_the_login_server_is_not_held_against_a_secret(
    status: int, error: str
) -> None:
    trouble = Reply(status, (), json.dumps({"error": error}).encode())
    async with RawUpstream(Script(trouble)) as upstream, proxy_for(upstream.url) as proxy:
        for _ in range(2):
            assert (await log_in(proxy, token_call())).status == status
        assert token_calls(upstream) == 2


async def test_slow_log_ins_of_one_client_do_not_delay_another() -> None:
    def script(request: RecordedRequest) -> Step:
        return Hang() if b"slow" in request.body else Reply(200, (), GRANT.encode())

    slow = GOOD.replace("the-id", "slow")
    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url) as proxy,
        asyncio.TaskGroup() as tasks,
    ):
        calls = [tasks.create_task(log_in(proxy, token_call(slow))) for _ in range(5)]
        await upstream.received(4)
        assert (await log_in(proxy, token_call())).status == 200
        assert sum(b"slow" in request.body for request in upstream.requests) == 4
        for call in calls:
            call.cancel()


async def test_a_lifetime_beyond_all_numbers_is_a_grant_too() -> None:
    grant = GRANT.replace("600", "1" + "0" * 400)
    async with (
        RawUpstream(granting(grant)) as upstream,
        proxy_for(upstream.url, **KNOWN_ONLY) as proxy,
    ):
        assert (await log_in(proxy, token_call())).status == 200
        assert await is_known(proxy)


async def test_an_answer_of_the_login_server_is_marked_as_such() -> None:
    async with RawUpstream(granting()) as upstream, proxy_for(upstream.url) as proxy:
        answer = await log_in(proxy, token_call(GOOD, "X-Request-Id: mine"))
    assert answer.values("X-Request-Id") == [b"mine"]
    assert answer.values("Proxy-Status") == []
    assert b"upstream;dur=" in answer.values("Server-Timing")[0]


# Errors of our own


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_tokens_are_asked_for_with_post(method: str) -> None:
    async with RawUpstream(granting()) as upstream, proxy_for(upstream.url) as proxy:
        answer = await log_in(proxy, token_call(method=method))
        assert upstream.connections == 0
    assert error_of(answer) == (405, "invalid_request")
    assert answer.values("Allow") == [b"POST"]


async def test_a_login_server_out_of_reach() -> None:
    async with proxy_for(f"http://{HOST}:{free_port()}") as proxy:
        answer = await log_in(proxy, token_call())
    assert error_of(answer) == (503, "temporarily_unavailable")
    assert int(answer.values("Retry-After")[0]) >= 1


async def test_a_login_server_that_hangs_up() -> None:
    """A token call creates nothing that asking again would double, so the caller may."""
    async with (
        RawUpstream(Script(ReadThenClose())) as upstream,
        proxy_for(upstream.url) as proxy,
    ):
        answer = await log_in(proxy, token_call())
        assert len(upstream.requests) == 1
    assert error_of(answer) == (503, "temporarily_unavailable")
    assert int(answer.values("Retry-After")[0]) >= 1


@pytest.mark.parametrize(
    "step",
    [Garbage(b"\x00not HTTP\r\n\r\n"), Reply(200, (), b"x" * TOO_LONG)],
    ids=["garbage", "long"],
)
async def test_an_answer_that_is_of_no_use(step: Step) -> None:
    async with RawUpstream(Script(step)) as upstream, proxy_for(upstream.url) as proxy:
        answer = await log_in(proxy, token_call())
    assert error_of(answer) == (502, "server_error")
    assert answer.values("Retry-After") == []


async def test_a_redirect_is_the_callers_to_follow() -> None:
    """A followed one would post the secret to wherever it points."""
    async with RawUpstream() as elsewhere:
        location = [("Location", f"{elsewhere.url}/oauth/token")]
        async with (
            RawUpstream(Script(Reply(307, location))) as upstream,
            proxy_for(upstream.url) as proxy,
        ):
            answer = await log_in(proxy, token_call())
        assert (answer.status, elsewhere.connections) == (307, 0)


# A few at once


@asynccontextmanager
async def slow_login(
    **sections: Mapping[str, Any] | list[Any],
) -> AsyncIterator[tuple[Running, RawUpstream, FakeClock]]:
    """A login server whose answers come when its clock is advanced by a second."""
    clock = FakeClock()
    script = Script(Reply(200, (), GRANT.encode(), delay=1))
    async with (
        RawUpstream(script, clock=clock) as upstream,
        proxy_for(upstream.url, **sections) as proxy,
    ):
        yield proxy, upstream, clock


def token_calls(upstream: RawUpstream) -> int:
    return sum(request.target == b"/oauth/token" for request in upstream.requests)


async def test_four_token_calls_are_made_at_once_and_no_more() -> None:
    async with slow_login() as (proxy, upstream, clock), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(log_in(proxy, token_call())) for _ in range(6)]
        await upstream.received(4)
        await is_known(proxy)  # went through while the others wait
        assert token_calls(upstream) == 4
        await clock.advance(1)
        await upstream.received(7)
        assert token_calls(upstream) == 6
        await clock.advance(1)
    assert [call.result().status for call in calls] == [200] * 6


async def test_a_reload_lets_no_more_of_them_through() -> None:
    async with slow_login() as (proxy, upstream, clock), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(log_in(proxy, token_call())) for _ in range(4)]
        await upstream.received(4)
        await proxy.proxy.reload(proxy.proxy.settings)
        calls += [tasks.create_task(log_in(proxy, token_call())) for _ in range(2)]
        await is_known(proxy)
        assert token_calls(upstream) == 4
        await clock.advance(1)
        await upstream.received(7)
        await clock.advance(1)
    assert [call.result().status for call in calls] == [200] * 6


async def test_a_token_call_waits_no_longer_than_anybody() -> None:
    async with (
        slow_login(pacing={"max_wait": 0.1}) as (proxy, upstream, clock),
        asyncio.TaskGroup() as tasks,
    ):
        calls = [tasks.create_task(log_in(proxy, token_call())) for _ in range(4)]
        await upstream.received(4)
        fifth = await log_in(proxy, token_call())
        assert token_calls(upstream) == 4
        await clock.advance(1)
    assert error_of(fifth) == (503, "temporarily_unavailable")
    assert int(fifth.values("Retry-After")[0]) >= 1
    assert [call.result().status for call in calls] == [200] * 4


# Managed accounts: the token for whoever proves id and secret

MANAGED = {"name": "london", "client_id": "london-id", "client_secret": "s3:cr+t"}
RIGHT = "grant_type=client_credentials&client_id=london-id&client_secret=s3%3Acr%2Bt"
WRONG = "grant_type=client_credentials&client_id=london-id&client_secret=wrong"


@asynccontextmanager
async def managing(
    clock: FakeClock, *, grant: Step | None = None, unidentified: str = "pace"
) -> AsyncIterator[tuple[Running, RawUpstream]]:
    """Run a proxy with a managed account, once its token has been asked for."""
    step = grant or Reply(200, (), GRANT.encode())
    async with RawUpstream(Script(step)) as upstream:
        settings = settings_for(
            upstream.url, accounts=[MANAGED], identity={"unidentified": unidentified}
        )
        async with running(settings, clock) as proxy:
            await upstream.received()
            yield proxy, upstream


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (RIGHT, []),
        ("grant_type=client_credentials", [basic("london-id", "s3%3Acr%2Bt")]),
        ("grant_type=client_credentials", [basic("london%2Did", "s3:cr%2Bt")]),
        ("grant_type=client_credentials&client_id=london-id", [basic("london-id", "s3:cr%2Bt")]),
    ],
)
async def test_the_right_secret_gives_the_managed_token(form: str, fields: list[str]) -> None:
    clock = FakeClock()
    async with managing(clock, unidentified="reject") as (proxy, upstream):
        assert not await is_known(proxy)
        await clock.advance(100.5)
        answer = await log_in(proxy, token_call(form, *fields))
        assert answer.status == 200
        assert json.loads(answer.body) == {
            "access_token": "t1",
            "token_type": "bearer",
            "expires_in": 499,
        }
        assert answer.values("Content-Type") == [b"application/json"]
        assert answer.values("Cache-Control") == [b"no-store"]
        assert await is_known(proxy)
        assert token_calls(upstream) == 1


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (WRONG, []),
        (RIGHT + "x", []),
        (RIGHT.replace("%2B", "+"), []),
        ("grant_type=client_credentials", [basic("london-id", "wrong")]),
        ("grant_type=client_credentials&client_id=london-id&client_secret=%C3%A9%00", []),
    ],
)
async def test_a_wrong_secret_gives_nothing_and_stays_here(form: str, fields: list[str]) -> None:
    async with managing(FakeClock(), unidentified="reject") as (proxy, upstream):
        answer = await log_in(proxy, token_call(form, *fields))
        assert error_of(answer) == (401, "invalid_client")
        assert answer.values("WWW-Authenticate") == [b'Basic realm="export-proxy"']
        assert answer.values("Retry-After") == []
        assert not await is_known(proxy)
        assert token_calls(upstream) == 1


SPELLINGS: dict[str, tuple[str, str, list[str]]] = {
    "query": (RIGHT, "", []),
    "grant in the query": (
        "grant_type=client_credentials",
        "client_id=london-id&client_secret=s3%3Acr%2Bt",
        [],
    ),
    "query and basic": ("grant_type=client_credentials", "", [basic("london-id", "s3:cr+t")]),
    "raw in the form": ("", RIGHT.replace("s3%3Acr%2Bt", "s3:cr+t"), []),
    "raw in basic": ("", "grant_type=client_credentials", [basic("london-id", "s3:cr+t")]),
    "encoded twice": ("", RIGHT.replace("london", "%256Condon"), []),
    "another case": ("", RIGHT.replace("london-id", "LONDON-id"), []),
    "JSON": (
        "",
        json.dumps(
            {
                "grant_type": "client_credentials",
                "client_id": "london-id",
                "client_secret": "s3:cr+t",
            }
        ),
        [],
    ),
}


@pytest.mark.parametrize(("query", "form", "fields"), SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_a_managed_account_is_recognised_in_every_spelling(
    query: str, form: str, fields: list[str]
) -> None:
    async with managing(FakeClock()) as (proxy, upstream):
        target = f"/oauth/token?{query} ".encode()
        call = token_call(form, *fields).replace(b"/oauth/token ", target)
        answer = await log_in(proxy, call)
        assert json.loads(answer.body)["access_token"] == "t1"
        assert token_calls(upstream) == 1


@pytest.mark.parametrize(
    "form",
    [
        RIGHT.replace("client_credentials", "CLIENT_CREDENTIALS"),
        RIGHT + "&grant_type=password",
        RIGHT + "&client_id=another",
        RIGHT.removeprefix("grant_type=client_credentials&"),
    ],
)
async def test_no_spelling_gets_past_a_managed_account(form: str) -> None:
    async with managing(FakeClock()) as (proxy, upstream):
        assert error_of(await log_in(proxy, token_call(form))) == (400, "invalid_request")
        assert token_calls(upstream) == 1


async def test_ten_failures_in_a_minute_are_enough() -> None:
    """Then nothing is compared, not even the right secret, until the first is a minute old."""
    clock = FakeClock()
    async with managing(clock) as (proxy, upstream):
        for _ in range(10):
            assert error_of(await log_in(proxy, token_call(WRONG))) == (401, "invalid_client")
            await clock.advance(1)
        for form in (WRONG, RIGHT):
            answer = await log_in(proxy, token_call(form))
            assert error_of(answer)[0] == 429
            assert answer.values("Retry-After") == [b"50"]
        await clock.advance(50)
        assert (await log_in(proxy, token_call(RIGHT))).status == 200
        assert token_calls(upstream) == 1


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("grant_type=client_credentials&client_id=london-id", []),
        ("grant_type=client_credentials&client_id=london-id&client_secret=", []),
        ("grant_type=refresh_token&client_id=london-id&client_secret=s3%3Acr%2Bt", []),
    ],
)
async def test_other_calls_in_the_name_of_a_managed_account_are_forwarded(
    form: str, fields: list[str]
) -> None:
    async with managing(FakeClock(), unidentified="reject") as (proxy, upstream):
        assert (await log_in(proxy, token_call(form, *fields))).body == GRANT.encode()
        assert upstream.requests[-1].body == form.encode()
        assert not await is_known(proxy)


async def test_a_managed_token_that_cannot_be_had() -> None:
    refused = Reply(400, (), b'{"error": "invalid_client"}')
    async with managing(FakeClock(), grant=refused) as (proxy, upstream):
        answer = await log_in(proxy, token_call(RIGHT))
        assert error_of(answer) == (502, "server_error")
        assert token_calls(upstream) == 1
    throttled = Reply(429, [("Retry-After", "30")])
    async with managing(FakeClock(), grant=throttled) as (proxy, upstream):
        answer = await log_in(proxy, token_call(RIGHT))
        assert error_of(answer) == (503, "temporarily_unavailable")
        assert answer.values("Retry-After") == [b"30"]


async def test_a_secret_that_cannot_be_read(tmp_path: Path) -> None:
    account = {"name": "a", "client_id": "a-id", "client_secret_file": str(tmp_path / "missing")}
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=[account]) as proxy:
        answer = await log_in(proxy, token_call(WRONG.replace("london", "a")))
        assert error_of(answer) == (503, "temporarily_unavailable")
        assert upstream.connections == 0


async def test_a_form_has_a_size() -> None:
    """It is read on the loop; 16 kB are far more than any log-in needs."""
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        answer = await log_in(proxy, token_call("a" * 16_385))
        assert error_of(answer) == (413, "invalid_request")
        assert upstream.requests == []


@pytest.mark.parametrize("form", ["a&" * 8000, "&".join(["grant_type=x"] * 101)])
async def test_a_form_of_very_many_fields_is_refused(form: str) -> None:
    """Reading it would hold everybody up."""
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        assert error_of(await log_in(proxy, token_call(form))) == (400, "invalid_request")
        assert upstream.connections == 0


async def test_credentials_in_another_alphabet_are_no_credentials() -> None:
    """Bytes that are not ASCII reach the login server as they are, and crash nothing here."""
    call = token_call("grant_type=client_credentials", "Authorization: Basic dGhl\xfcOnM=")
    async with RawUpstream(granting()) as upstream, proxy_for(upstream.url) as proxy:
        raw = await exchange(HOST, port_of(proxy.url), call.decode().encode("latin-1"))
        assert parse_response(raw).status in (200, 400)


async def test_a_token_call_waits_no_longer_than_its_caller_wants() -> None:
    async with slow_login() as (proxy, upstream, clock), asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(log_in(proxy, token_call()))
        await upstream.received(4)
        fifth = await log_in(proxy, token_call(GOOD, "Prefer: wait=0"))
        await clock.advance(1)
    assert error_of(fifth) == (503, "temporarily_unavailable")


async def test_a_drain_refuses_the_token_calls_that_wait_for_a_place() -> None:
    async with slow_login() as (proxy, upstream, clock), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(log_in(proxy, token_call())) for _ in range(4)]
        await upstream.received(4)
        fifth = tasks.create_task(log_in(proxy, token_call()))

        async def waits() -> bool:
            return proxy.proxy.handled == len(calls) + 1

        await until(waits)
        proxy.proxy.begin_drain()
        assert b'details="draining"' in (await fifth).values("Proxy-Status")[0]
        assert not any(call.done() for call in calls)
        await clock.advance(1)
    assert [call.result().status for call in calls] == [200] * 4
