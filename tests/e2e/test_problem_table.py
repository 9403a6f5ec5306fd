"""Every answer the proxy makes itself, once over the wire, each with its marks (RFC 9457, 9209)."""

import asyncio
import json
import time
from hashlib import sha256

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.identity.callers import Identity
from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import accounts_of, proxy_for
from tests.kit.upstream import Garbage, Hang, RawUpstream, ReadThenReset, Reply, Step, free_port

EXPORTS = "/api/v2/recordings/exports"
UNPACED = "/api/v2/users/me"
REQUEST_ID = "my-own.id_1"
AUTHORIZATION = "Authorization: Bearer a"
ACCEPTED = Reply(202)
PACING = {"interval": 0.05}


def request(
    target: str = f"POST {EXPORTS}", *fields: str, body: bytes = b"", authorized: bool = True
) -> bytes:
    lines = [f"{target} HTTP/1.1", "Host: proxy", f"X-Request-Id: {REQUEST_ID}"]
    lines += [AUTHORIZATION] * authorized
    lines += [f"Content-Length: {len(body)}"] * (b"ength" not in "".join(fields).encode())
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


async def answer(proxy: Running, data: bytes) -> Response:
    method = data.split(b" ", 1)[0].decode()
    return parse_response(await exchange(HOST, port_of(proxy.url), data, timeout=10), method)


COME_BACK = {
    "missing-scope",
    "queue-full",
    "wait-expired",
    "upstream-unreachable",
    "token-unavailable",
    "keys-unavailable",
    "overloaded",
    "draining",
}


def check(
    response: Response, name: str, status: int, error: str, request_id: str | None = REQUEST_ID
) -> dict[str, object]:
    """Hold an answer against its row; `error` is a type of RFC 9209 section 2.3. Its members."""
    assert response.complete
    assert response.status == status
    assert response.values("content-type") == [b"application/problem+json"]
    problem: dict[str, object] = json.loads(response.body)
    assert problem["type"] == f"urn:export-proxy:{name}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    (own_id,) = response.values("x-request-id")
    assert problem["instance"] == own_id.decode() == (request_id or problem["instance"])
    (proxy_status,) = response.values("proxy-status")
    assert proxy_status == f'export-proxy; error={error}; details="{name}"'.encode()
    retry_after = response.values("retry-after")
    assert len(retry_after) == int(name in COME_BACK)
    assert all(value.isdigit() and int(value) >= 1 for value in retry_after)
    assert response.values("server") == []
    return problem


# What a request gets that is refused for what it is


@pytest.mark.parametrize(
    ("data", "name", "status", "error"),
    [
        (request("GET /api/v2/x//y"), "bad-request", 400, "http_request_error"),
        (request("GET /api/v2/x", AUTHORIZATION), "bad-request", 400, "http_request_error"),
        (request("POST /api/x", "Expect: tea"), "bad-request", 417, "http_request_error"),
        (request(authorized=False), "unauthenticated", 401, "http_request_denied"),
        (request("DELETE /api/v2/tokens/me"), "route-denied", 403, "http_request_denied"),
        (request("GET /elsewhere"), "not-found", 404, "http_request_denied"),
        (request("TRACE /api/v2/x"), "method-not-allowed", 405, "http_request_denied"),
        (request("PUT /only"), "method-not-allowed", 405, "http_request_denied"),
        (request(body=b"x" * 101), "too-large", 413, "http_request_error"),
    ],
    ids=[
        *("target", "two credentials", "Expect", "no credential", "denied", "no route"),
        *("TRACE", "another method", "body"),
    ],
)
async def test_refused_for_what_it_is(data: bytes, name: str, status: int, error: str) -> None:
    """Sending it again would not help: no Retry-After, and nothing went upstream."""
    routes = [
        {"name": "blocked", "paths": ["/api/v2/tokens/**"], "deny": True},
        {"name": "one", "paths": ["/only"], "methods": ["GET"]},
        {"name": "api", "paths": ["/api/**"]},
    ]
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, routes=routes, limits={"max_body": 100}) as proxy,
    ):
        response = await answer(proxy, data)
    check(response, name, status, error)
    assert bool(response.values("www-authenticate")) == (status == 401)
    assert bool(response.values("allow")) == (status == 405)
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("start", "status", "hint"),
    [
        ("POST /api/oauth/token", 401, "Tokens are asked for at /in/oauth/token"),
        ("POST /oauth/token", 404, "Tokens are asked for at /in/oauth/token"),
        ("POST /in/api/oauth/token/", 404, "Tokens are asked for at /in/oauth/token"),
        ("POST //oauth/token", 400, "does the base URL end in a slash?"),
        ("GET //api/v2/x", 400, "does the base URL end in a slash?"),
        ("GET /api/api/v2/x", 404, "the base URL must not end in /api"),
        ("GET /v2/x", 404, "paths of the API begin with /api/"),
        ("GET /", 404, "paths of the API begin with /api/"),
    ],
)
async def test_wrong_base_url_is_told_in_the_refusal(start: str, status: int, hint: str) -> None:
    is_login = "oauth" in start
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, listen={"login_prefix": "/in"}) as proxy,
    ):
        response = await answer(proxy, request(start, authorized=not is_login))
    assert response.status == status
    assert hint in json.loads(response.body)["detail"]
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/api/api/v2/x", "/api/v2/oauth/token"])
async def test_path_that_a_route_names_or_a_token_opens_is_forwarded(path: str) -> None:
    routes = [{"name": "odd", "paths": ["/api/api/**"]}, {"name": "api", "paths": ["/api/**"]}]
    async with RawUpstream() as upstream, proxy_for(upstream.url, routes=routes) as proxy:
        response = await answer(proxy, request(f"GET {path}"))
    assert response.status == 200
    assert [one.target for one in upstream.requests] == [path.encode()]


@pytest.mark.parametrize(
    ("data", "name", "status"),
    [
        (b"no HTTP at all\r\n\r\n", "bad-request", 400),
        (request("GET /api/v2/x", "Content-Length: 1", "Content-Length: 2"), "bad-request", 400),
        (request("GET /api/v2/x", f"X-Long: {'x' * 20_000}"), "too-large", 431),
    ],
    ids=["no HTTP", "two lengths", "a long field"],
)
async def test_refused_by_the_parser(data: bytes, name: str, status: int) -> None:
    """It has the same form, with an id of its own: nobody knows the caller's."""
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        response = await answer(proxy, data)
    check(response, name, status, "http_request_error", None)
    assert upstream.requests == []


async def test_a_slow_body() -> None:
    """408, and the connection is given up."""
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits={"body_timeout": 0.2}) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as slow,
    ):
        await slow.send(request(f"POST {EXPORTS}", "Content-Length: 10") + b"half")
        response = await slow.read_response("POST")
    check(response, "timeout", 408, "http_request_error")
    assert response.values("connection") == [b"close"]
    assert upstream.requests == []


async def test_a_circle() -> None:
    """A proxy set up in front of itself answers once, and its other self passes that on."""
    port = free_port()
    async with proxy_for(f"http://{HOST}:{port}", listen={"port": port}, pacing=PACING) as proxy:
        response = await answer(proxy, request(f"GET {UNPACED}"))
    check(response, "loop", 508, "proxy_loop_detected")


async def test_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """500: nothing of what went wrong is told, and nobody is asked to try again."""

    def fail(*_: object) -> None:
        raise RuntimeError("a-secret")

    monkeypatch.setattr(Identity, "at_once", fail)
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        response = await answer(proxy, request())
    check(response, "internal", 500, "proxy_internal_error")
    assert b"a-secret" not in response.body


# What it gets for the state of things


async def test_a_queue_too_long() -> None:
    """429 with the wait there would be."""
    async with (
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": 30}) as proxy,
    ):
        response = await answer(proxy, request(f"POST {EXPORTS}", "Prefer: wait=1"))
    problem = check(response, "queue-full", 429, "http_request_denied")
    predicted = problem["predicted_wait"]
    assert isinstance(predicted, float)
    assert 20 < predicted <= 30
    assert 20 <= int(response.values("retry-after")[0]) <= 40  # with some jitter
    assert upstream.requests == []


async def test_a_wait_in_vain() -> None:
    """429: what was in flight did not end in time."""
    clock, pacing = FakeClock(), {**PACING, "max_in_flight": 1, "max_wait": 0.2}
    async with (
        RawUpstream(default=Reply(202, delay=1), clock=clock) as upstream,
        proxy_for(upstream.url, pacing=pacing) as proxy,
    ):
        first = asyncio.ensure_future(answer(proxy, request()))
        await upstream.received()
        response = await answer(proxy, request())
        await clock.advance(1)
        assert (await first).status == 202
    check(response, "wait-expired", 429, "http_request_denied")
    assert len(upstream.requests) == 1


async def test_too_many_bytes() -> None:
    """503 while others' bodies fill the room there is."""
    limits = {"max_body": 100, "max_buffered": 100}
    async with (
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": 2}, limits=limits) as proxy,
    ):
        first = asyncio.ensure_future(answer(proxy, request(body=b"x" * 60)))
        await has_waiting(proxy)
        response = await answer(proxy, request(body=b"x" * 60))
        assert (await first).status == 202
    check(response, "overloaded", 503, "proxy_internal_response")
    assert len(upstream.requests) == 1


async def test_a_shutdown() -> None:
    """503 for waiters and newcomers; both connections end."""
    async with (
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing={"interval": 5}) as proxy,
    ):
        waiting = asyncio.ensure_future(answer(proxy, request()))
        await has_waiting(proxy)
        proxy.proxy.begin_drain()
        responses = [await waiting, await answer(proxy, request())]
    for response in responses:
        check(response, "draining", 503, "proxy_internal_response")
        assert response.values("connection") == [b"close"]
    assert upstream.requests == []


async def has_waiting(proxy: Running) -> None:
    """Wait until a request waits in a queue."""

    async def question() -> bool:
        accounts = (await accounts_of(proxy)).values()
        return any(queue["queue_depth"] for account in accounts for queue in account["routes"])

    await until(question)


# What it gets for its account

KEY = "a-key-of-the-account"
MANAGED = {
    "name": "london",
    "client_id": "london-id",
    "client_secret": "not-a-secret",
    "keys": [f"sha256:{sha256(KEY.encode()).hexdigest()}"],
}
WITH_KEY = request(f"POST {EXPORTS}", f"Authorization: Bearer {KEY}", authorized=False)


@pytest.mark.parametrize(
    ("login", "name", "status", "error"),
    [
        (
            Reply(401, body=b'{"error": "invalid_client"}'),
            "token-rejected",
            502,
            "proxy_configuration_error",
        ),
        (Reply(500), "token-unavailable", 503, "destination_unavailable"),
    ],
    ids=["rejected", "down"],
)
async def test_no_token(login: Step, name: str, status: int, error: str) -> None:
    """Without the account's token nothing goes to the API."""
    async with (
        RawUpstream(default=login) as upstream,
        proxy_for(upstream.url, pacing=PACING, accounts=[MANAGED]) as proxy,
    ):
        response = await answer(proxy, WITH_KEY)
    check(response, name, status, error)
    assert {call.target for call in upstream.requests} == {b"/oauth/token"}


async def test_a_missing_scope() -> None:
    """403 with what is missing and, while the scope may still come, when to try again."""
    clients = {"london-id": ClientSpec(secret="not-a-secret", scopes=frozenset({"other:scope"}))}
    simulator = Simulator(
        SimulatorSettings(clients=clients), monotonic=time.monotonic, wall=time.time
    )
    async with (
        simulator.serve(HOST) as api,
        proxy_for(api.url, pacing=PACING, accounts=[MANAGED]) as proxy,
    ):
        response = await answer(proxy, WITH_KEY)
        report = simulator.report("london-id")
    problem = check(response, "missing-scope", 403, "http_request_denied")
    assert problem["required"] == ["recordings:export"]
    assert problem["held"] == []
    assert report.accepted == 0


async def test_no_keys() -> None:
    """503 while the issuer's keys could never be fetched."""
    identity = {
        "issuer": "https://issuer.example",
        "jwks_url": f"http://{HOST}:{free_port()}/jwks.json",
        "audience": "api",
    }
    now = int(time.time())
    claims = {"iss": "https://issuer.example", "aud": "api", "iat": now, "exp": now + 300}
    claims |= {"sub": "a", "client_id": "a"}
    key = ec.generate_private_key(ec.SECP256R1())
    token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": "1"})
    async with RawUpstream() as upstream, proxy_for(upstream.url, identity=identity) as proxy:
        response = await answer(
            proxy, request(f"POST {EXPORTS}", f"Authorization: Bearer {token}", authorized=False)
        )
    check(response, "keys-unavailable", 503, "destination_unavailable")
    assert upstream.requests == []


async def test_a_nested_field() -> None:
    """422, naming the field."""
    routes = [
        {"name": "api", "paths": ["/api/**"], "flat_fields": ["legal_hold"], "on_nested": "reject"}
    ]
    async with RawUpstream() as upstream, proxy_for(upstream.url, routes=routes) as proxy:
        response = await answer(proxy, request(body=b'{"meta": {"legal_hold": true}}'))
    problem = check(response, "nested-field", 422, "http_request_denied")
    assert problem["pointer"] == "/meta/legal_hold"
    assert upstream.requests == []


# What it gets for what the API does


@pytest.mark.parametrize(
    ("step", "name", "status", "error"),
    [
        (ReadThenReset(), "outcome-unknown", 502, "connection_terminated"),
        (Hang(), "outcome-unknown", 504, "http_response_timeout"),
        (Garbage(b"not HTTP\r\n\r\n"), "bad-upstream", 502, "http_protocol_error"),
    ],
    ids=["reset", "silence", "garbage"],
)
async def test_sent_without_an_answer(step: Step, name: str, status: int, error: str) -> None:
    """Something may have been created: never a Retry-After, never a second send."""
    seconds = 0.6 if isinstance(step, Hang) else 20
    async with (
        RawUpstream(default=step) as upstream,
        proxy_for(upstream.url, upstream={"response_timeout": seconds}, pacing=PACING) as proxy,
    ):
        response = await answer(proxy, request())
    check(response, name, status, error)
    assert len(upstream.requests) == 1


async def test_an_api_out_of_reach() -> None:
    """503: it never left."""
    async with proxy_for(
        f"http://{HOST}:{free_port()}", pacing=PACING, retry={"max_attempts": 1}
    ) as proxy:
        response = await answer(proxy, request())
    check(response, "upstream-unreachable", 503, "destination_unavailable")


# The token endpoint has the errors of RFC 6749 section 5.2, with the same marks


@pytest.mark.parametrize(
    ("data", "name", "status", "error", "retries"),
    [
        (request("GET /oauth/token"), "method-not-allowed", 405, "invalid_request", False),
        (request("POST /oauth/token"), "token-unavailable", 503, "temporarily_unavailable", True),
        (
            request("POST /oauth/token", "Content-Type: text/plain", body=b"x" * 101),
            "too-large",
            413,
            "invalid_request",
            False,
        ),
    ],
    ids=["GET", "out of reach", "body"],
)
async def test_the_token_endpoint(
    data: bytes, name: str, status: int, error: str, *, retries: bool
) -> None:
    """JSON with `error` and `error_description` in place of a problem."""
    async with proxy_for(f"http://{HOST}:{free_port()}", limits={"max_body": 100}) as proxy:
        response = await answer(proxy, data)
    assert response.status == status
    assert response.values("content-type") == [b"application/json"]
    assert set(json.loads(response.body)) == {"error", "error_description"}
    assert json.loads(response.body)["error"] == error
    assert response.values("x-request-id") == [REQUEST_ID.encode()]
    (proxy_status,) = response.values("proxy-status")
    assert proxy_status.startswith(b"export-proxy; error=")
    assert proxy_status.endswith(f'details="{name}"'.encode())
    assert bool(response.values("retry-after")) == retries
