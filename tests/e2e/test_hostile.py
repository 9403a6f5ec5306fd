"""Nothing that a caller or the API sends is read two ways, exhausts the proxy, or comes back out.

The rows are in hostile/*.py, and each is sent as it stands over a raw socket; answers are read by
h11, which shares no code with the proxy. A row that once failed stays.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import jwt
import pytest
from jwt.algorithms import RSAAlgorithm

from proxy.service.lifecycle import Running
from tests.e2e.hostile import answers, incoming, tokens
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for
from tests.kit.upstream import Garbage, RawUpstream, RecordedRequest, Reply, Step

LIMITS = {
    "max_body": incoming.MAX_BODY,
    "max_header": incoming.MAX_HEADER,
    "header_timeout": 6,  # so long that no row ends by a deadline
    "body_timeout": 6,
}
REQUESTS = [
    pytest.param(row, id=f"{table}: {name}")
    for table, rows in incoming.TABLES.items()
    for name, row in rows.items()
]


@pytest.mark.parametrize("row", REQUESTS)
async def test_a_request_is_read_in_one_way_or_not_at_all(row: incoming.Row) -> None:
    """A refusal is told in our own form, repeats nothing, and is the last on its connection."""
    method = row.sent.partition(b" ")[0].decode("latin-1")
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits=LIMITS) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as caller,
    ):
        await caller.send(row.sent)
        answers = [await caller.read_response(method) for _ in row.seen or [row.status]]
        if row.closes:
            assert await caller.read_to_close(timeout=4) == b""
    assert {answer.status for answer in answers} == {row.status}
    assert tuple(request.head.partition(b"\r\n")[0] for request in upstream.requests) == row.seen
    for request in upstream.requests:
        assert request.values("Host") == [f"{HOST}:{upstream.port}".encode()]
        assert request.values("Authorization") in ([b"Bearer " + incoming.SECRET], [])
        assert set(incoming.STOPPED).isdisjoint(name.lower() for name, _ in request.headers)
    if not row.seen:
        check_refusal(answers[0], row.status)


def check_refusal(answer: Response, status: int) -> None:
    """Hold a refusal against the form all have; nothing that was sent is in it."""
    text = repr(answer).encode()
    assert (answer.rest, answer.interim, answer.values("server")) == (b"", [], [])
    assert answer.values("content-type") == [b"application/problem+json"]
    assert json.loads(answer.body)["status"] == status
    assert incoming.SECRET not in text
    assert b"evil" not in text


ANSWERS = [
    pytest.param(row, id=f"{table}: {name}")
    for table, rows in answers.TABLES.items()
    for name, row in rows.items()
]


@pytest.mark.parametrize("row", ANSWERS)
async def test_an_answer_is_passed_on_as_http_or_not_at_all(row: answers.Row) -> None:
    """The API is asked once; a refused caller is not told to come back, as the work may be done."""
    async with (
        RawUpstream(default=Garbage(row.sent)) as upstream,
        proxy_for(upstream.url, limits=LIMITS) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as caller,
    ):
        await caller.send(incoming.post(b"Content-Length: 2", body=b"{}"))
        answer = await caller.read_response("POST")
    assert (answer.status, answer.rest) == (row.status, b"")
    assert len(upstream.requests) == 1
    if row.status == 502:
        check_refusal(answer, 502)
        assert json.loads(answer.body)["type"] == "urn:export-proxy:bad-upstream"
        assert answer.values("retry-after") == []
    else:
        assert (answer.body, answer.complete) == (row.body, row.is_complete)
    for name, value in row.kept:
        assert value in answer.values(name.decode())
    assert b"timeout=99" not in answer.values("keep-alive")  # ours may be there
    for name in row.dropped:
        assert answer.values(name.decode()) == []


# Tokens

MANAGED = "planted-managed-token"
ACCOUNT = {"name": "london", "client_id": tokens.CLIENT, "client_secret": "planted-client-secret"}
TOKENS = [
    pytest.param(row, id=f"{table}: {name}")
    for table, rows in tokens.TABLES.items()
    for name, row in rows.items()
]


@pytest.fixture(scope="module")
def keys() -> tokens.Keys:
    return tokens.Keys()


class Issuer:
    """One server for all: the issuer's keys, the login server, the API."""

    def __init__(self, keys: tokens.Keys) -> None:
        self._keys = keys

    def __call__(self, request: RecordedRequest) -> Step:
        match request.target:
            case b"/keys":
                return Reply(200, body=self._keys.published)
            case b"/oauth/token":
                grant = {"access_token": MANAGED, "token_type": "bearer", "expires_in": 86_400}
                return Reply(200, body=json.dumps(grant).encode())
            case _:
                return Reply(200)


@asynccontextmanager
async def trusting(keys: tokens.Keys) -> AsyncIterator[tuple[RawUpstream, Running]]:
    """A proxy with a managed account, that trusts the issuer; its first token is there."""
    async with RawUpstream(Issuer(keys)) as upstream:
        identity = {
            "issuer": tokens.ISSUER,
            "audience": tokens.AUDIENCE,
            "jwks_url": f"{upstream.url}/keys",
        }
        pacing = {"interval": 0.01}
        async with proxy_for(
            upstream.url, accounts=[ACCOUNT], identity=identity, pacing=pacing
        ) as proxy:
            await upstream.received()
            yield upstream, proxy


async def call_with(proxy: Running, token: str, path: bytes = incoming.USERS) -> Response:
    request = incoming.get(path).replace(incoming.SECRET, token.encode())
    return parse_response(await exchange(HOST, port_of(proxy.url), request))


def calls(upstream: RawUpstream, target: bytes) -> list[RecordedRequest]:
    return [request for request in upstream.requests if request.target == target]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("row", TOKENS)
async def test_only_a_proof_makes_a_caller_the_account(row: tokens.Row, keys: tokens.Keys) -> None:
    """A caller that proves it is sent with the account's token; no other ever is."""
    token = row.make(keys)
    async with trusting(keys) as (upstream, proxy):
        answer = await call_with(proxy, token)
    sent = [request.values("Authorization") for request in calls(upstream, incoming.USERS)]
    match row.outcome:
        case "managed":
            assert (answer.status, sent) == (200, [[b"Bearer " + MANAGED.encode()]])
        case "own":
            assert (answer.status, sent) == (200, [[b"Bearer " + token.encode()]])
        case status:
            assert (answer.status, sent) == (status, [])
            check_refusal(answer, status)
            assert token.encode() not in answer.body
    assert len(calls(upstream, b"/oauth/token")) == 1
    assert len(calls(upstream, b"/keys")) <= 1


@pytest.mark.parametrize("name", ["jku", "x5u"])
async def test_no_key_is_fetched_from_where_a_token_says(name: str, keys: tokens.Keys) -> None:
    """RFC 8725 section 3.10."""
    async with RawUpstream() as elsewhere, trusting(keys) as (_, proxy):
        header = {name: f"{elsewhere.url}/keys", "kid": "theirs"}
        token = jwt.encode(tokens.claims(), keys.foreign, "RS256", headers=header)
        assert (await call_with(proxy, token)).status == 401
    assert elsewhere.connections == 0


async def test_no_key_is_taken_from_the_token(keys: tokens.Keys) -> None:
    """RFC 7515 section 4.1.3."""
    theirs = RSAAlgorithm.to_jwk(keys.foreign.public_key(), as_dict=True)
    header = {"jwk": theirs, "kid": "theirs"}
    token = jwt.encode(tokens.claims(), keys.foreign, "RS256", headers=header)
    async with trusting(keys) as (_, proxy):
        assert (await call_with(proxy, token)).status == 401


async def test_a_flood_of_unknown_key_ids_fetches_the_keys_once(keys: tokens.Keys) -> None:
    """The good one is let in meanwhile: a fetch is waited for, and never in everybody's way."""
    flood = [keys.sign_with(keys.curve, "ES256", f"unknown-{number}") for number in range(200)]
    async with trusting(keys) as (upstream, proxy):
        answers = await asyncio.gather(
            *(call_with(proxy, token) for token in flood), call_with(proxy, keys.sign())
        )
        fetches = len(calls(upstream, b"/keys"))
    assert [answer.status for answer in answers] == [401] * len(flood) + [200]
    assert fetches == 1


@pytest.mark.parametrize("name", tokens.COSTLY)
async def test_a_costly_token_costs_next_to_nothing(name: str, keys: tokens.Keys) -> None:
    """Under 20 ms of work, connection and all; the least of several."""
    token = tokens.COSTLY[name].make(keys)
    async with trusting(keys) as (_, proxy):
        await call_with(proxy, keys.sign())
        times = []
        for _ in range(8):
            begun = time.process_time()
            await call_with(proxy, token)
            times.append(time.process_time() - begun)
    assert min(times) < 0.05
