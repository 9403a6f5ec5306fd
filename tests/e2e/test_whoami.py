"""The pace belongs to the service account, however its token was obtained: the API is asked.

The API is the simulator, which allows an account one export an interval and counts what came too
soon; or a scripted server where it answers in odd ways. Sockets and time are real.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.rules.digests import account_id
from proxy.service.lifecycle import Running, running
from proxy.simulator.app import Simulator
from proxy.simulator.settings import ClientSpec, SimulatorSettings
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import has_token, settings_for
from tests.kit.redis import redis_server
from tests.kit.tokens import signed_token
from tests.kit.upstream import (
    Garbage,
    HalfBody,
    Hang,
    RawUpstream,
    ReadThenClose,
    RecordedRequest,
    Reply,
    Step,
)

EXPORTS = "/api/v2/recordings/exports"
WHOAMI = "/api/v2/tokens/me"
ASK = {"whoami": WHOAMI}
INTERVAL = 0.25
CLIENT = "london-id"
VOICE, DIGITAL = "recordings:export", "agent_scripting:export"
WHATSAPP = b'{"channel": "whatsapp"}'


class Api(Simulator):
    """The stand-in API."""

    url = ""

    def questions(self, client_id: str = CLIENT) -> int:
        """How often the API was asked about a client's tokens."""
        return sum(one.path == WHOAMI for one in self.arrivals(client_id))


@asynccontextmanager
async def api(**settings: Any) -> AsyncIterator[Api]:
    spec = ClientSpec(secret=None, scopes=frozenset({VOICE}))
    options = SimulatorSettings(
        interval=INTERVAL, clients={CLIENT: spec}, any_client=True, **settings
    )
    simulator = Api(options, monotonic=monotonic, wall=time)
    async with simulator.serve(HOST) as server:
        simulator.url = server.url
        yield simulator


@asynccontextmanager
async def proxied(url: str, **sections: Any) -> AsyncIterator[Running]:
    sections = {"pacing": {"interval": INTERVAL}, "identity": ASK, **sections}
    async with running(settings_for(url, **sections), SystemClock()) as proxy:
        yield proxy


async def call(
    proxy: Running, token: str, path: str = EXPORTS, body: bytes = b'{"channel": "voice"}'
) -> Response:
    method = "POST" if path == EXPORTS else "GET"
    body = body if method == "POST" else b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
        f"Cookie: a=b\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    raw = await exchange(HOST, port_of(proxy.url), head.encode() + body, timeout=30)
    return parse_response(raw)


async def calls(proxies: Sequence[Running], tokens: Sequence[str]) -> Counter[int]:
    """Export once with each token, all at once, the proxies in turn; count the statuses."""
    answers = await asyncio.gather(
        *(call(proxies[n % len(proxies)], token) for n, token in enumerate(tokens))
    )
    return Counter(answer.status for answer in answers)


def refusals(simulator: Api, client_id: str = CLIENT) -> int:
    return sum(one.status == 429 for one in simulator.arrivals(client_id))


# One queue for all tokens of a client


@pytest.mark.timed
@pytest.mark.parametrize("opaque", [False, True], ids=["JWT", "opaque"])
async def test_twelve_tokens_issued_elsewhere_have_one_pace(opaque: bool) -> None:  # noqa: FBT001
    async with api() as upstream, proxied(upstream.url) as proxy:
        tokens = [upstream.mint(CLIENT, opaque=opaque) for _ in range(12)]
        assert await calls([proxy], tokens) == {202: 12}
        assert refusals(upstream) == 0
        assert upstream.questions() == 12
        assert await calls([proxy], tokens[:2]) == {202: 2}
        assert upstream.questions() == 12


@pytest.mark.timed
@pytest.mark.needs("redis-server")
async def test_replicas_ask_once_and_share_the_pace(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis, api() as upstream:
        store = {"url": redis.url, "replicas": 2, "timeout": 2.0}
        async with (
            proxied(upstream.url, store=store) as here,
            proxied(upstream.url, store=store) as there,
        ):
            tokens = [upstream.mint(CLIENT) for _ in range(8)]
            twice = [token for token in tokens for _ in range(2)]
            assert await calls([here, there], twice) == {202: 16}
            assert refusals(upstream) == 0
            assert upstream.questions() == 8
            kept = repr(await redis.everything())
            assert not any(token in kept for token in tokens)


async def test_question_carries_the_token_and_nothing_else_of_the_caller() -> None:
    async with RawUpstream(lambda _: Reply(200, (), b"{}")) as upstream:
        async with proxied(upstream.url) as proxy:
            await call(proxy, "t")
        asked, _ = upstream.requests
    assert (asked.method, asked.target, asked.body) == (b"GET", WHOAMI.encode(), b"")
    assert {name.lower() for name, _ in asked.headers} == {b"host", b"authorization", b"accept"}
    assert asked.values("Authorization") == [b"Bearer t"]


@pytest.mark.timed
async def test_two_clients_have_two_queues() -> None:
    async with api() as upstream, proxied(upstream.url) as proxy:
        tokens = [upstream.mint(name) for name in (CLIENT, "paris-id") for _ in range(3)]
        begun = monotonic()
        assert await calls([proxy], tokens) == {202: 6}
        assert monotonic() - begun < 4 * INTERVAL + 1
        labels = [account.label for account in proxy.accounts.accounts() if account.queues]
        assert labels == [f"client:{account_id(name)[:8]}" for name in (CLIENT, "paris-id")]


# Managed accounts


MANAGED = {"name": "london", "client_id": CLIENT, "client_secret": "any"}


async def test_stale_token_of_a_managed_account_is_replaced_by_the_managed_one() -> None:
    async with api() as upstream:
        stale = upstream.mint(CLIENT)
        upstream.grant(CLIENT, DIGITAL, propagation=0)
        async with proxied(upstream.url, accounts=[MANAGED]) as proxy:
            await has_token(proxy)
            assert (await call(proxy, stale, body=WHATSAPP)).status == 202


@pytest.mark.parametrize(
    "other", [{"user": "a-person"}, {"organization": "another"}], ids=["person", "organization"]
)
async def test_token_that_is_not_the_services_is_forwarded_as_it_came(
    other: dict[str, Any],
) -> None:
    """It has the queue of its client, and its own scopes."""
    async with api() as upstream:
        own = upstream.mint(CLIENT, **other)
        upstream.grant(CLIENT, DIGITAL, propagation=0)
        async with proxied(upstream.url, accounts=[MANAGED]) as proxy:
            await has_token(proxy)
            assert (await call(proxy, own, body=WHATSAPP)).status == 403
            (busy,) = [account for account in proxy.accounts.accounts() if account.queues]
            assert busy.label == "london"


async def test_account_that_a_reload_renames_while_its_organization_is_asked_for_serves() -> None:
    async with api() as simulator:
        simulator.login_latency = 5.0
        async with (
            proxied(simulator.url, accounts=[MANAGED]) as proxy,
            asyncio.TaskGroup() as tasks,
        ):
            calling = tasks.create_task(call(proxy, simulator.mint(CLIENT)))

            async def is_named() -> bool:
                return simulator.questions() > 0

            await until(is_named)
            renamed = {**MANAGED, "name": "paris"}
            settings = proxy.proxy.settings
            chosen = type(settings).model_validate(
                {**settings.model_dump(exclude_unset=True), "accounts": [renamed]}
            )
            await proxy.proxy.reload(chosen)
            simulator.login_latency = 0.0
    assert calling.result().status == 202


async def test_configured_organization_is_not_asked_for() -> None:
    async with api() as upstream:
        stale = upstream.mint(CLIENT)
        upstream.grant(CLIENT, DIGITAL, propagation=0)
        account = {**MANAGED, "organization_id": "simulated-organization"}
        async with proxied(upstream.url, accounts=[account]) as proxy:
            await has_token(proxy)
            assert (await call(proxy, stale, body=WHATSAPP)).status == 202
            assert upstream.questions() == 1


async def test_another_configured_organization_keeps_the_managed_token_back() -> None:
    async with api() as upstream:
        stale = upstream.mint(CLIENT)
        upstream.grant(CLIENT, DIGITAL, propagation=0)
        account = {**MANAGED, "organization_id": "somewhere-else"}
        async with proxied(upstream.url, accounts=[account]) as proxy:
            await has_token(proxy)
            assert (await call(proxy, stale, body=WHATSAPP)).status == 403


async def test_where_everybody_must_be_known_only_configured_clients_count() -> None:
    async with api() as upstream:
        accounts = [{"name": "london", "client_id": CLIENT}]
        identity = {**ASK, "unidentified": "reject"}
        async with proxied(upstream.url, accounts=accounts, identity=identity) as proxy:
            assert (await call(proxy, upstream.mint(CLIENT))).status == 202
            assert (await call(proxy, upstream.mint("paris-id"))).status == 401
            assert not [one for one in upstream.arrivals("paris-id") if one.paced]


# What the API answers


async def test_refused_token_gets_the_apis_own_401_and_no_queue() -> None:
    async with api() as upstream, proxied(upstream.url) as proxy:
        assert (await call(proxy, upstream.mint(CLIENT))).status == 202
        revoked = upstream.mint(CLIENT)
        upstream.revoke_token(revoked)
        asked = upstream.questions()
        for _ in range(3):
            answer = await call(proxy, revoked)
            assert answer.status == 401
            assert json.loads(answer.body)["code"] == "credentials.expired"
            assert answer.values("Proxy-Status") == []
        assert upstream.questions() == asked + 1


async def test_401_of_an_api_that_never_named_anybody_makes_a_stranger() -> None:
    """An API that answers 401 to a call it does not have must not shut everybody out."""
    script = answering(Reply(401, (), b"{}"))
    async with RawUpstream(script) as upstream, proxied(upstream.url) as proxy:
        assert (await call(proxy, "t")).status == 202


def answering(step: Step) -> Any:
    """Answer questions with a step, and all else with 202."""

    def script(request: RecordedRequest) -> Step:
        return step if request.target == WHOAMI.encode() else Reply(202)

    return script


ODD: dict[str, Step] = {
    "404": Reply(404),
    "403": Reply(403, (), b'{"OAuthClient": {"id": "london-id"}}'),
    "429": Reply(429, [("Retry-After", "60")]),
    "500": Reply(500),
    "503": Reply(503, [("Retry-After", "60")]),
    "HTML": Reply(200, [("Content-Type", "text/html")], b"<html>" * 100),
    "a list": Reply(200, (), b"[]"),
    "no client": Reply(200, (), b'{"OAuthClient": null}'),
    "a client that is no text": Reply(200, (), b'{"OAuthClient": {"id": 7}}'),
    "an empty client": Reply(200, (), b'{"OAuthClient": {"id": " "}}'),
    "nested deeply": Reply(200, (), b'{"OAuthClient":' * 20_000),
    "huge": Reply(200, (), b'{"OAuthClient": {"id": "london-id"}}' + b" " * 100_000),
    "endless": Reply(200, [("Content-Length", "9999999")], b"x" * 1000),
    "redirect": Reply(307, [("Location", "http://127.0.0.1:9/")]),
    "not HTTP": Garbage(b"\x00\x01\r\n\r\n"),
    "half": HalfBody(b'{"OAuthClient": {"id": "london-id"}}'),
    "a bomb": Reply(200, [("Content-Encoding", "gzip")], b"\x1f\x8b not gzip"),
    "closed": ReadThenClose(),
    "nothing": Hang(),
}


@pytest.mark.parametrize("step", ODD.values(), ids=ODD.keys())
@pytest.mark.timed
async def test_answer_that_names_nobody_leaves_a_stranger_and_is_not_asked_for_again(
    step: Step,
) -> None:
    upstream_settings = {"connect_timeout": 0.5}
    async with RawUpstream(answering(step)) as upstream:
        sections = {"upstream": {**upstream_settings, "api_url": upstream.url}}
        sections["upstream"]["login_url"] = upstream.url
        async with proxied(upstream.url, **sections) as proxy:
            begun = monotonic()
            assert (await call(proxy, "t")).status == 202
            assert monotonic() - begun < 0.5 + 1 + 1
            assert (await call(proxy, "t")).status == 202
        asked = [one for one in upstream.requests if one.target == WHOAMI.encode()]
        sent = [one for one in upstream.requests if one.target == EXPORTS.encode()]
    assert (len(asked), len(sent)) == (1, 2)
    assert [one.values("Authorization") for one in sent] == [[b"Bearer t"]] * 2


async def test_five_times_404_switches_asking_off() -> None:
    async with RawUpstream(answering(Reply(404))) as upstream, proxied(upstream.url) as proxy:
        for number in range(8):
            assert (await call(proxy, str(number), path="/api/v2/users/me")).status == 202
        asked = [one for one in upstream.requests if one.target == WHOAMI.encode()]
    assert len(asked) == 5


@pytest.mark.timed
async def test_thousand_tokens_cause_few_questions_and_no_wait_for_a_known_account() -> None:
    accounts = [{"name": "london", "client_id": CLIENT}]
    async with RawUpstream(answering(Reply(500))) as upstream:  # noqa: SIM117 -- it outlives it
        async with proxied(upstream.url, accounts=accounts) as proxy:
            await proxy.proxy.identity.note_issued("known", CLIENT, 600)
            begun = monotonic()
            async with asyncio.TaskGroup() as tasks:
                for number in range(1000):
                    tasks.create_task(call(proxy, f"r{number}", path="/api/v2/users/me"))
                await upstream.received(1, within=30)
                waits = []
                for _ in range(20):
                    started = monotonic()
                    assert (await call(proxy, "known", path="/api/v2/users/me")).status == 202
                    waits.append(monotonic() - started)
                first = [
                    one
                    for one in upstream.requests
                    if one.target == WHOAMI.encode() and one.arrived_at < begun + 1
                ]
            asked = [one.arrived_at for one in upstream.requests if one.target == WHOAMI.encode()]
    assert len(first) <= 10
    # Ten a second. A thousand callers share this loop, so the first ones may arrive late.
    assert len(asked) <= 10 * (asked[-1] - asked[0] + 1.5)
    assert sorted(waits)[len(waits) // 2] < 1


async def test_gone_caller_takes_its_question_along() -> None:
    """Four questions are under way; the fifth waits, and its caller leaves before its turn."""
    slow = answering(Reply(500, delay=0.5))
    async with RawUpstream(slow) as upstream, proxied(upstream.url) as proxy:
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(call(proxy, f"t{number}"))
            await upstream.received(4)
            leaving = tasks.create_task(call(proxy, "leaving"))
            staying = tasks.create_task(call(proxy, "staying"))
            await asyncio.sleep(0.1)
            leaving.cancel()
        assert staying.result().status == 202
        asked = [one.values("Authorization")[0] for one in upstream.requests]
    assert b"Bearer staying" in asked
    assert b"Bearer leaving" not in asked


async def test_token_that_was_pushed_out_is_asked_about_again() -> None:
    identity = {**ASK, "max_learned": 2}
    async with api() as upstream, proxied(upstream.url, identity=identity) as proxy:
        tokens = [upstream.mint(CLIENT) for _ in range(3)]
        for token in [*tokens, tokens[0]]:
            assert (await call(proxy, token, path="/api/v2/users/me")).status == 200
        assert upstream.questions() == 4
        assert len({account for account in proxy.accounts.accounts() if account.queues}) == 1


async def test_refusal_of_a_head_request_has_no_body() -> None:
    async with api() as upstream, proxied(upstream.url) as proxy:
        assert (await call(proxy, upstream.mint(CLIENT))).status == 202
        head = b"HEAD /api/v2/users/me HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer nobody\r\n\r\n"
        raw = await exchange(HOST, port_of(proxy.url), head)
        assert raw.startswith(b"HTTP/1.1 401 ")
        assert raw.endswith(b"\r\n\r\n")


# Entries that are due


async def test_token_without_an_end_is_asked_about_again_and_a_401_drops_it() -> None:
    """The signed time of a JWT is its end; here a second from now."""
    identity = {**ASK}
    token = signed_token({"sub": CLIENT, "exp": int(time()) + 2})
    answers = [Reply(200, (), b'{"OAuthClient": {"id": "london-id"}}'), Reply(401, (), b'{"a": 1}')]

    def script(request: RecordedRequest) -> Step:
        if request.target != WHOAMI.encode():
            return Reply(202)
        return answers.pop(0)

    async with RawUpstream(script) as upstream, proxied(upstream.url, identity=identity) as proxy:
        assert (await call(proxy, token)).status == 202
        await asyncio.sleep(2.1)
        assert (await call(proxy, token)).status == 202, "the old entry serves while it is asked"

        async def is_dropped() -> bool:
            return (await call(proxy, token)).status == 401

        await until(is_dropped)
        assert (await call(proxy, token)).body == b'{"a": 1}'


async def test_token_that_is_over_brings_no_managed_token_until_the_api_was_asked() -> None:
    """Its queue stays. Else a token that leaked would serve while the API cannot be asked."""
    token = signed_token({"sub": CLIENT, "exp": int(time()) + 3})
    said = json.dumps({"OAuthClient": {"id": CLIENT}, "organization": {"id": "o"}}).encode()
    grant = b'{"access_token": "managed", "token_type": "bearer", "expires_in": 600}'
    answers: list[Step] = [Reply(200, (), said)]

    def script(request: RecordedRequest) -> Step:
        if request.target == b"/oauth/token":
            return Reply(200, (), grant)
        if request.target == WHOAMI.encode():
            return answers.pop(0) if answers else Reply(500)
        return Reply(202)

    account = {**MANAGED, "organization_id": "o"}
    async with RawUpstream(script) as upstream, proxied(upstream.url, accounts=[account]) as proxy:
        await has_token(proxy)
        assert (await call(proxy, token)).status == 202
        await asyncio.sleep(3.1)
        assert (await call(proxy, token)).status == 202
        labels = [account.label for account in proxy.accounts.accounts() if account.queues]
        sent = [one for one in upstream.requests if one.target == EXPORTS.encode()]
    assert labels == ["london"]
    bearers = [one.values("Authorization")[0] for one in sent]
    assert bearers == [b"Bearer managed", f"Bearer {token}".encode()]
