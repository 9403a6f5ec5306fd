"""Managed accounts: the scopes on the wire are never stale, and nobody gets a token unproved.

The proxy and the stand-in API on real sockets and time. Every test also looks for its secrets and
tokens where they must not be: in what is logged, on the admin pages, in refusals.
"""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client.parser import text_string_to_metric_families as read_text

from proxy.cli import explain
from proxy.rules.digests import account_id
from proxy.service.lifecycle import Running
from proxy.simulator import Arrival, ClientSpec, SigningKey, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import accounts_of, has_token, proxy_for
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply, free_port

EXPORTS = "/api/v2/recordings/exports"
USERS = "/api/v2/users/me"
CLIENT = "0a1b-london"
SECRET = "planted-secret-of-london"
WRONG = "planted-wrong-secret"
KEY = "planted-key-of-a-caller"
VOICE = b'{"mediaType": "voice"}'
WHATSAPP = b'{"channel": "WhatsApp"}'
BOTH = frozenset({VOICE_SCOPE, DIGITAL_SCOPE})
FAST = {"interval": 0.02}
LONDON = {
    "name": "london",
    "client_id": CLIENT,
    "client_secret": SECRET,
    "keys": [f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"],
}
ISSUER = "https://login.simulator.example"
AUDIENCE = "https://api.simulator.example"


# What must not be seen anywhere


class Secrets:
    """What was planted, and where it must not turn up."""

    def __init__(self, log: pytest.LogCaptureFixture, output: pytest.CaptureFixture[str]) -> None:
        self.planted = {SECRET, WRONG, KEY}
        self._log = log
        self._output = output
        self._said = ""

    def plant(self, secret: str) -> str:
        self.planted.add(secret)
        return secret

    def logged(self) -> str:
        """Everything logged or printed so far, what the records carry beside their text too."""
        captured = self._output.readouterr()
        self._said += captured.out + captured.err
        return self._said + self._log.text + "".join(repr(r.__dict__) for r in self._log.records)

    def look_for_in(self, text: str) -> None:
        for secret in self.planted:
            pair = base64.b64encode(f"{CLIENT}:{secret}".encode()).decode()
            assert secret not in text
            assert quote(secret, safe="") not in text
            assert pair not in text


@pytest.fixture(autouse=True)
def secrets(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[Secrets]:
    caplog.set_level(logging.DEBUG)
    watched = Secrets(caplog, capfd)
    yield watched
    watched.look_for_in(watched.logged())


# The API, and the proxy in front of it


@dataclass
class Seen:
    """A request as the API or its login server got it, and the status it was answered."""

    path: str
    bearer: str
    body: bytes
    status: int = 0


@dataclass
class Api:
    """The stand-in API with everything it saw; a client may be changed while it runs."""

    simulator: Simulator
    clients: dict[str, ClientSpec]
    secrets: Secrets
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """All that were issued, the newest last."""

    @property
    def calls(self) -> list[Seen]:
        """Requests to the API, those for tokens and keys left out."""
        return [seen for seen in self.seen if seen.path.startswith("/api/")]

    @property
    def logins(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == "/oauth/token"]

    def issued(self, client_id: str, scope: str) -> bool:
        """Whether some JWT of the client carries the scope."""
        read = [jwt.decode(token, options={"verify_signature": False}) for token in self.tokens]
        return any(claims["sub"] == client_id and scope in claims["scope"] for claims in read)

    def statuses(self) -> list[int]:
        return [seen.status for seen in self.calls]

    def arrivals(self, client_id: str = CLIENT) -> list[Arrival]:
        return [arrival for arrival in self.simulator.arrivals(client_id) if arrival.paced]

    @web.middleware
    async def note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        seen = Seen(request.path, bearer, await request.read())
        self.seen.append(seen)
        response = await handler(request)
        seen.status = response.status
        if request.path == "/oauth/token" and response.status == 200:
            assert isinstance(response, web.Response)
            assert isinstance(response.body, bytes)
            token = json.loads(response.body)["access_token"]
            self.tokens.append(self.secrets.plant(token))
        return response

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[str]:
        application = self.simulator.build_app()
        application.middlewares.append(self.note)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port).start()
            yield f"http://{HOST}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.fixture(scope="module")
def signing_key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
async def api(signing_key: SigningKey, secrets: Secrets) -> AsyncIterator[Api]:
    """An API that minds no pace, and knows the account with the scope for voice."""
    clients = {CLIENT: ClientSpec(secret=SECRET)}
    settings = SimulatorSettings(interval=0.0001, clients=clients, issuer=ISSUER, audience=AUDIENCE)
    simulator = Simulator(settings, monotonic=time.monotonic, wall=time.time, key=signing_key)
    stage = Api(simulator, clients, secrets)
    async with stage.listening() as stage.url:
        yield stage


@asynccontextmanager
async def proxy_before(
    api: Api, account: Mapping[str, Any] = LONDON, **sections: Mapping[str, Any] | list[Any]
) -> AsyncIterator[Running]:
    """A proxy with one account; at the end its admin pages are searched for secrets."""
    sections = {"accounts": [account], "pacing": FAST, **sections}
    async with proxy_for(api.url, **sections) as proxy:
        yield proxy
        for page in ("/metrics", "/status.json", "/status", f"/accounts/{account['name']}"):
            api.secrets.look_for_in((await ask(proxy.admin_url, page)).body.decode())


async def ask(
    url: str, path: str, method: str = "GET", body: bytes = b"", **fields: str
) -> Response:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines])
    port = port_of(url)
    request = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    return parse_response(await exchange(HOST, port, request, timeout=30), method)


class Caller:
    """Somebody who calls through a proxy with one credential; refusals must hold no secret."""

    def __init__(self, proxy: Running, secrets: Secrets, credential: str = KEY) -> None:
        self.proxy = proxy
        self._secrets = secrets
        self._credential = secrets.plant(credential)

    async def post(self, body: bytes = VOICE, path: str = EXPORTS, **fields: str) -> Response:
        return await self._send(path, "POST", body, **fields)

    async def get(self, path: str = USERS) -> Response:
        return await self._send(path, "GET", b"")

    async def _send(self, path: str, method: str, body: bytes, **fields: str) -> Response:
        authorization = f"Bearer {self._credential}"
        response = await ask(
            self.proxy.url, path, method, body, Authorization=authorization, **fields
        )
        self._secrets.look_for_in(repr((response.headers, response.body)))
        return response


def problem(response: Response) -> tuple[int, str]:
    assert response.values("content-type") == [b"application/problem+json"]
    return response.status, json.loads(response.body)["type"].removeprefix("urn:export-proxy:")


def retry_after(response: Response) -> int:
    (value,) = response.values("retry-after")
    assert int(value) >= 1
    return int(value)


async def until(condition: Callable[[], object], *, within: float = 30) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is watched is not ours, and has no event
            await asyncio.sleep(0.005)


async def account_status(proxy: Running, name: str = "london") -> dict[str, Any]:
    return (await accounts_of(proxy))[name]


async def last_gap(proxy: Running, name: str = "london") -> float:
    """How far apart the account's last two exports were, by the proxy's own clock."""
    (queue,) = (await account_status(proxy, name))["routes"]
    return float(queue["last_gap_seconds"])


async def metric(proxy: Running, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    text = (await ask(proxy.admin_url, "/metrics")).body.decode()
    return sum(
        sample.value
        for family in read_text(text)
        for sample in family.samples
        if sample.name == f"export_proxy_{name}" and labels.items() <= sample.labels.items()
    )


async def refreshes(proxy: Running, reason: str, outcome: str = "ok") -> float:
    return await metric(proxy, "token_refreshes_total", reason=reason, outcome=outcome)


# A scope that was granted a moment ago


async def test_a_scope_granted_3_s_ago_that_takes_5_s_to_appear(api: Api) -> None:
    """The token was minted before the grant; one account and proxy for each of the policies."""

    async def play(policy: str, act: Callable[[Caller, str], Awaitable[None]]) -> int:
        client_id = f"{CLIENT}-{policy}"
        api.clients[client_id] = ClientSpec(secret=SECRET)
        account = {**LONDON, "client_id": client_id}
        tokens = {"min_refresh_interval": 0.5, "on_missing_scope": policy}
        async with proxy_before(api, account, tokens=tokens) as proxy:
            caller = Caller(proxy, api.secrets)
            assert (await caller.post()).status == 202
            granted = time.monotonic()
            api.simulator.grant(client_id, DIGITAL_SCOPE, propagation=5)
            await asyncio.sleep(3)
            async with asyncio.timeout(20):
                await act(caller, client_id)
            if policy != "forward":
                assert time.monotonic() - granted >= 5
        return sum(arrival.status == 403 for arrival in api.arrivals(client_id))

    async def is_kept_waiting(caller: Caller, _: str) -> None:
        assert (await caller.post(WHATSAPP)).status == 202

    async def is_rejected(caller: Caller, client_id: str) -> None:
        begun = time.time()
        check_missing_scope(await caller.post(WHATSAPP), begun)
        assert (await account_status(caller.proxy))["token"]["missing"] == [DIGITAL_SCOPE]
        assert await metric(caller.proxy, "token_missing_scopes", account="london") == 1
        while (response := await caller.post(WHATSAPP)).status != 202:  # the schedule, whoever asks
            assert problem(response) == (403, "missing-scope")
            assert (await caller.post()).status == 202  # what it can serve, it serves
            await asyncio.sleep(0.1)
        assert api.issued(client_id, DIGITAL_SCOPE)
        assert await metric(caller.proxy, "token_missing_scopes", account="london") == 0

    async def is_forwarded(caller: Caller, _: str) -> None:
        response = await caller.post(WHATSAPP)
        assert response.status == 403
        assert json.loads(response.body)["code"] == "missing.permissions"
        assert response.values("retry-after") == []

    refused = await asyncio.gather(
        play("wait", is_kept_waiting), play("reject", is_rejected), play("forward", is_forwarded)
    )
    assert list(refused) == [0, 0, 1]


def check_missing_scope(response: Response, begun: float) -> None:
    """The documented refusal of an export for which the digital scope is missing."""
    assert problem(response) == (403, "missing-scope")
    said = json.loads(response.body)
    assert (said["required"], said["held"]) == ([DIGITAL_SCOPE], [])
    assert begun - 1 < said["token_issued_at"] <= time.time()  # renewed for it, and in vain
    assert 0 <= said["next_refresh_in"] <= 0.5
    assert retry_after(response) == 1


@pytest.mark.timed
async def test_what_costs_three_intervals_leaves_them_free(api: Api) -> None:
    api.clients[CLIENT] = ClientSpec(secret=SECRET, scopes=BOTH)
    route = {
        "name": "exports",
        "paths": [EXPORTS],
        "paced": True,
        "require_scopes": {"POST": [VOICE_SCOPE]},
        "channels": [
            {
                "fields": ["channel"],
                "values": ["whatsapp"],
                "require_scopes": [DIGITAL_SCOPE],
                "cost": 3,
            }
        ],
    }
    async with proxy_before(api, pacing={"interval": 0.5}, routes=[route]) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await caller.post(WHATSAPP)).status == 202
        assert (await caller.post(VOICE)).status == 202
        gap = await last_gap(proxy)
        late = await metric(proxy, "send_lateness_seconds_sum", route="exports")
    heavy, light = api.arrivals()
    assert light.at - heavy.at > 1.0  # two would be free after that; stamps come late, by chance
    assert 1.5 <= gap < 1.9 + late


# What the API refuses


def login_or(answer: Reply) -> Callable[[RecordedRequest], Reply]:
    """Opaque tokens, numbered from 1, and that answer to everything else."""
    numbers = iter(range(1, 100))

    def script(request: RecordedRequest) -> Reply:
        if request.target != b"/oauth/token":
            return answer
        body = {
            "access_token": f"planted-opaque-{next(numbers)}",
            "token_type": "bearer",
            "expires_in": 3600,
        }
        return Reply(200, [("Content-Type", "application/json")], json.dumps(body).encode())

    return script


def bearers(upstream: RawUpstream) -> list[str]:
    """What was sent, in order: `login`, or the bearer token of an API call."""
    return [
        "login"
        if request.target == b"/oauth/token"
        else request.values("authorization")[0].decode().removeprefix("Bearer planted-opaque-")
        for request in upstream.requests
    ]


FORBIDDEN = b'{"message": "You are missing the following permission(s)",  "code": "%s"}\n'
JSON = ("Content-Type", "application/json")


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
}


@pytest.mark.parametrize(
    ("code", "coding"),
    [
        *((b"missing.permissions", coding) for coding in PACKERS),
        (b"missing.any.permissions", ""),
        (b"missing.division.permission", ""),
        (b"missing.any.division.permissions", "gzip"),
    ],
)
async def test_the_403_of_an_opaque_token_renews_it_once(
    secrets: Secrets, code: bytes, coding: str
) -> None:
    """One refresh and one re-send; the second 403 passes as it is, and later ones at once."""
    body = PACKERS[coding](FORBIDDEN % code)
    fields = [JSON, ("Content-Encoding", coding)] if coding else [JSON]
    for number in range(1, 4):
        secrets.plant(f"planted-opaque-{number}")
    async with (
        RawUpstream(login_or(Reply(403, fields, body))) as upstream,
        proxy_for(
            upstream.url, accounts=[LONDON], pacing=FAST, tokens={"min_refresh_interval": 1}
        ) as proxy,
    ):
        caller = Caller(proxy, secrets)
        await has_token(proxy)
        await asyncio.sleep(1.0)
        first = await caller.post()
        assert bearers(upstream) == ["login", "1", "login", "2"]
        second = await caller.post()
        assert bearers(upstream) == ["login", "1", "login", "2", "2"]
        assert await refreshes(proxy, "stale_scope") == 1
        assert await metric(proxy, "retries_total", reason="stale_token") == 1
    for response in (first, second):
        assert (response.status, response.body) == (403, body)
        assert response.values("content-encoding") == ([coding.encode()] if coding else [])
        assert response.values("retry-after") == []


async def test_managed_request_asks_only_for_codings_that_can_be_read(secrets: Secrets) -> None:
    async with (
        RawUpstream(login_or(Reply(202))) as upstream,
        proxy_for(upstream.url, accounts=[LONDON], pacing=FAST) as proxy,
    ):
        caller = Caller(proxy, secrets)
        await has_token(proxy)
        await caller.post()
        await caller.post(VOICE, EXPORTS, **{"Accept-Encoding": "br, zstd, gzip;q=0.5, *;q=0"})
    _, first, second = upstream.requests
    assert first.values("accept-encoding") == [b"identity"]
    assert second.values("accept-encoding") == [b"gzip;q=0.5, *;q=0"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(("status", "sends"), [(401, 2), (403, 1)])
async def test_refusal_whose_body_breaks_off_is_what_its_status_says(
    secrets: Secrets, status: int, sends: int, framing: str
) -> None:
    """The API did nothing: the caller gets the status, and a 401 renews the token once."""
    head = f"HTTP/1.1 {status} No\r\nWWW-Authenticate: Bearer\r\nContent-Type: application/json\r\n"
    rest = (
        "Content-Length: 99\r\n\r\n{"
        if framing == "length"
        else ("Transfer-Encoding: chunked\r\n\r\n9\r\n{")
    )
    for number in range(1, 3):
        secrets.plant(f"planted-opaque-{number}")
    answer = Reply(raw=(head + rest).encode(), close_after=True)
    async with (
        RawUpstream(login_or(answer)) as upstream,
        proxy_for(
            upstream.url, accounts=[LONDON], pacing=FAST, tokens={"min_refresh_interval": 0.1}
        ) as proxy,
    ):
        await has_token(proxy)
        await asyncio.sleep(0.1)
        response = await Caller(proxy, secrets).post()
    assert (response.status, response.body) == (status, b"")
    assert response.values("www-authenticate") == [b"Bearer"]
    assert response.values("content-type") == []
    assert len([one for one in bearers(upstream) if one != "login"]) == sends


async def test_a_403_with_another_code_renews_nothing(secrets: Secrets) -> None:
    body = FORBIDDEN % b"not.authorized"
    async with (
        RawUpstream(login_or(Reply(403, [JSON], body))) as upstream,
        proxy_for(
            upstream.url, accounts=[LONDON], pacing=FAST, tokens={"min_refresh_interval": 0.1}
        ) as proxy,
    ):
        await has_token(proxy)
        await asyncio.sleep(0.1)
        response = await Caller(proxy, secrets).post()
    assert (response.status, response.body) == (403, body)
    assert bearers(upstream) == ["login", "1"]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_a_refusal_too_long_to_be_looked_into_passes(
    secrets: Secrets, status: int, *, is_chunked: bool
) -> None:
    body = bytes(range(256)) * 8192
    answer = Reply(status, [JSON], body, chunked=is_chunked)
    async with (
        RawUpstream(login_or(answer)) as upstream,
        proxy_for(
            upstream.url, accounts=[LONDON], pacing=FAST, tokens={"min_refresh_interval": 0.1}
        ) as proxy,
    ):
        response = await Caller(proxy, secrets).post()
    assert (response.status, response.body == body) == (status, True)
    assert bearers(upstream) == ["login", "1"]


async def test_a_waiter_is_not_admitted_again_after_a_renewal(
    secrets: Secrets,
) -> None:
    """It was within its limit when it came; when its slot comes it is still the first."""
    async with (
        RawUpstream(login_or(Reply(202))) as upstream,
        proxy_for(
            upstream.url,
            accounts=[LONDON],
            pacing={"interval": 1.8},
            tokens={"min_refresh_interval": 0.1},
        ) as proxy,
        asyncio.TaskGroup() as tasks,
    ):
        caller = Caller(proxy, secrets)
        await asyncio.sleep(2)
        assert (await caller.post()).status == 202
        waiting = [
            tasks.create_task(caller.post(Prefer="wait=3", X_Export_Key="first")),
            tasks.create_task(caller.post(X_Export_Key="second")),
        ]
        await asyncio.sleep(0.3)
        assert (await order_refresh(proxy, secrets)).status == 200
    assert [task.result().status for task in waiting] == [202, 202]
    assert bearers(upstream) == ["login", "1", "login", "2", "2"]
    assert [r.values("x-export-key") for r in upstream.requests[3:]] == [[b"first"], [b"second"]]


@pytest.mark.parametrize("is_opaque", [False, True], ids=["jwt", "opaque"])
async def test_a_revoked_token_is_replaced(api: Api, *, is_opaque: bool) -> None:
    api.clients[CLIENT] = ClientSpec(secret=SECRET, opaque=is_opaque)
    async with proxy_before(api, tokens={"min_refresh_interval": 0.2}) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await caller.post()).status == 202
        await asyncio.sleep(0.2)
        api.simulator.revoke_token(api.tokens[0])
        assert (await caller.post()).status == 202
        assert await refreshes(proxy, "unauthorized") == 1
    assert api.statuses() == [202, 401, 202]
    assert [call.bearer for call in api.calls] == [api.tokens[0], *api.tokens]
    assert len(api.logins) == 2


async def test_a_refusal_while_no_token_may_be_minted_passes(api: Api) -> None:
    async with proxy_before(api, tokens={"min_refresh_interval": 10}) as proxy:
        await has_token(proxy)
        api.simulator.revoke_token(api.tokens[0])
        response = await Caller(proxy, api.secrets).post()
    assert response.status == 401
    assert json.loads(response.body)["code"] == "credentials.expired"
    assert (api.statuses(), len(api.logins)) == ([401], 1)


# A crowd


async def test_a_crowd_with_a_token_that_lacks_a_scope_asks_for_one(api: Api) -> None:
    pacing = {"interval": 0.005}
    async with proxy_before(api, tokens={"min_refresh_interval": 0.2}, pacing=pacing) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await caller.post()).status == 202
        api.simulator.grant(CLIENT, DIGITAL_SCOPE, propagation=0)
        api.simulator.login_latency = 0.3
        await asyncio.sleep(0.2)
        responses = await asyncio.gather(*(caller.post(WHATSAPP) for _ in range(200)))
        assert await refreshes(proxy, "stale_scope") == 1
    assert Counter(response.status for response in responses) == {202: 200}
    assert (len(api.logins), api.statuses()) == (2, [202] * 201)


async def test_a_crowd_with_a_revoked_token_asks_for_one(api: Api) -> None:
    """Those in flight are refused together; all are sent again with the same new token."""
    api.simulator.latency = 0.05
    tokens = {"min_refresh_interval": 0.2}
    async with proxy_before(api, tokens=tokens) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await caller.get()).status == 200
        await asyncio.sleep(0.2)
        api.simulator.revoke_token(api.tokens[0])
        responses = await asyncio.gather(*(caller.get() for _ in range(200)))
        assert await refreshes(proxy, "unauthorized") == 1
    assert Counter(response.status for response in responses) == {200: 200}
    assert len(api.logins) == 2
    assert Counter(api.statuses())[200] == 201


# Who is the account


def issued_by(api: Api) -> dict[str, str]:
    """The settings that make the stand-in's login server the trusted issuer."""
    return {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"{api.url}/.well-known/jwks.json"}


def claims_of(client_id: str = CLIENT, **others: object) -> dict[str, Any]:
    now = int(time.time())
    standard = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 3600}
    return {**standard, "sub": client_id, "client_id": client_id, **others}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(key: SigningKey, number: int) -> str:
    """A token that claims the account: not signed, or with something everybody has."""
    claims = claims_of(scope=" ".join(BOTH), jti=str(number))
    public = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    match number % 3:
        case 0:
            return jwt.encode(claims, "", "none", headers={"kid": key.key_id})
        case 1:
            header = {"alg": "HS256", "typ": "JWT", "kid": key.key_id}
            text = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
            return f"{text}.{base64url(hmac.digest(public, text.encode(), 'sha256'))}"
        case _:
            text = key.sign(claims)
            return f"{text[:-8]}{'AAAAAAAA' if number % 2 else 'BBBBBBBB'}"


@pytest.mark.parametrize("is_configured", [False, True], ids=["no issuer", "issuer"])
@pytest.mark.timed
async def test_a_hundred_tokens_that_claim_the_account(
    api: Api, signing_key: SigningKey, *, is_configured: bool
) -> None:
    """None takes a slot of the account's, or its token: the account's next export goes at once.

    It would wait for the pace, 2 s, if one of them had been sent in its queue.
    """
    identity = issued_by(api) if is_configured else {}
    pacing = {"interval": 2, "max_wait": 15}
    async with proxy_before(api, identity=identity, pacing=pacing) as proxy:
        begun = time.monotonic()
        gate = asyncio.Semaphore(50)

        async def flood(number: int) -> Response:
            async with gate:
                return await ask(
                    proxy.url,
                    USERS if number % 2 else EXPORTS,
                    "GET" if number % 2 else "POST",
                    Authorization=f"Bearer {forged(signing_key, number)}",
                    Prefer="wait=0",
                )

        responses = await asyncio.gather(*(flood(number) for number in range(100)))
        seen_before = len(api.calls)
        await asyncio.sleep(max(0.0, begun + 2.1 - time.monotonic()))
        export = await Caller(proxy, api.secrets).post()
        assert export.status == 202
        queued = re.match(rb"queue;dur=([\d.]+),", export.values("server-timing")[0])
        assert queued is not None
        assert float(queued[1]) < 1000  # milliseconds
        assert await metric(proxy, "requests_total", account="london") == 1
    statuses = Counter(response.status for response in responses)
    assert {call.bearer for call in api.calls[:seen_before]}.isdisjoint(api.tokens)
    assert [call.bearer for call in api.calls[seen_before:]] == api.tokens
    if is_configured:
        assert statuses == {401: 100}
        assert {problem(response) for response in responses} == {(401, "unauthenticated")}
        assert seen_before == 0
        assert sum(seen.path.endswith("jwks.json") for seen in api.seen) <= 1
    else:  # each is itself: the API's 401, or refused because its own queue is not due
        assert set(statuses) <= {401, 429}
        assert statuses[401] == seen_before >= 50


async def test_a_users_token_of_the_same_client_is_not_the_account(
    api: Api, signing_key: SigningKey
) -> None:
    token = signing_key.sign(claims_of(sub="a-user"))
    async with proxy_before(api, identity=issued_by(api)) as proxy:
        assert problem(await Caller(proxy, api.secrets, token).get()) == (401, "unauthenticated")
    assert api.calls == []
    async with proxy_before(api) as proxy:
        assert (await Caller(proxy, api.secrets, token).get()).status == 401  # the API's
        assert await metric(proxy, "requests_total", account="london") == 0
        assert await metric(proxy, "requests_total", account="other") == 1
    assert [call.bearer for call in api.calls] == [token]


async def test_a_token_of_the_issuer_stands_for_its_account(
    api: Api, signing_key: SigningKey
) -> None:
    """The caller's own token, minted elsewhere, is proof; the managed one is sent."""
    ours, theirs = signing_key.sign(claims_of()), signing_key.sign(claims_of("somebody-else"))
    async with proxy_before(api, identity=issued_by(api)) as proxy:
        assert (await Caller(proxy, api.secrets, ours).post()).status == 202
        await Caller(proxy, api.secrets, theirs).get()
        assert await metric(proxy, "requests_total", account="london", code="202") == 1
        somebody = f"client:{account_id('somebody-else')[:8]}"
        assert await metric(proxy, "requests_total", account=somebody) == 1
    assert [call.bearer for call in api.calls] == [api.tokens[0], theirs]
    assert sum(seen.path.endswith("jwks.json") for seen in api.seen) == 1


async def test_a_callers_key_stands_for_its_account(api: Api) -> None:
    async with proxy_before(api, identity={"unidentified": "reject"}) as proxy:
        assert (await Caller(proxy, api.secrets).post()).status == 202
        stranger = await Caller(proxy, api.secrets, f"{KEY}x").post()
        assert problem(stranger) == (401, "unauthenticated")
    assert [call.bearer for call in api.calls] == api.tokens


async def test_a_named_account_keeps_its_callers_tokens_and_has_its_own_pace(api: Api) -> None:
    api.clients["named"] = ClientSpec(secret=WRONG)
    account = {"name": "paris", "client_id": "named", "interval": 0.6}
    async with proxy_before(api, account) as proxy:
        token = json.loads((await log_in(proxy, "named", WRONG)).body)["access_token"]
        caller = Caller(proxy, api.secrets, token)
        assert [(await caller.post()).status for _ in range(2)] == [202, 202]
        assert await metric(proxy, "requests_total", account="paris", code="202") == 2
        assert await metric(proxy, "interval_seconds", account="paris") == 0.6
        assert (await account_status(proxy, "paris"))["token"] is None
        assert await last_gap(proxy, "paris") >= 0.6
    assert [call.bearer for call in api.calls] == [token, token]
    first, second = api.arrivals("named")
    assert second.at - first.at >= 0.3  # stamps come late, by chance


# The token endpoint's front

FORM = "application/x-www-form-urlencoded"


async def log_in(
    proxy: Running, client_id: str = CLIENT, secret: str = SECRET, *, prefix: str = ""
) -> Response:
    pair = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return await ask(
        proxy.url,
        f"{prefix}/oauth/token",
        "POST",
        b"grant_type=client_credentials",
        Authorization=f"Basic {pair}",
        Content_Type=FORM,
    )


async def test_the_right_secret_gets_the_managed_token(api: Api) -> None:
    async with proxy_before(api) as proxy:
        form = f"grant_type=client_credentials&client_id={CLIENT}&client_secret={SECRET}"
        responses = [
            await log_in(proxy),
            await ask(proxy.url, "/oauth/token", "POST", form.encode(), Content_Type=FORM),
        ]
        answers = [json.loads(response.body) for response in responses]
        caller = Caller(proxy, api.secrets, answers[0]["access_token"])
        assert (await caller.post()).status == 202
        assert await metric(proxy, "requests_total", account="london", route="exports") == 1
    for response, answer in zip(responses, answers, strict=True):
        assert (response.status, response.values("cache-control")) == (200, [b"no-store"])
        assert answer.keys() == {"access_token", "token_type", "expires_in"}
        assert answer["access_token"] == api.tokens[0]
        assert answer["token_type"].lower() == "bearer"
        assert 86_300 < answer["expires_in"] <= 86_400
    assert len(api.logins) == 1


async def test_a_token_issued_here_stays_good_after_it_was_replaced(api: Api) -> None:
    """The caller keeps what it got; the API sees the newest."""
    async with proxy_before(api, tokens={"min_refresh_interval": 0.1}) as proxy:
        token = json.loads((await log_in(proxy)).body)["access_token"]
        await asyncio.sleep(0.2)
        assert (await ask(proxy.admin_url, "/accounts/london/refresh", "POST")).status == 200
        assert (await Caller(proxy, api.secrets, token).post()).status == 202
    assert [call.bearer for call in api.calls] == [api.tokens[1]]


async def test_wrong_secrets_are_refused_and_counted(api: Api) -> None:
    async with proxy_before(api) as proxy:
        responses = [await log_in(proxy, secret=WRONG) for _ in range(10)]
        late = [await log_in(proxy, secret=WRONG), await log_in(proxy)]
        assert (await Caller(proxy, api.secrets).post()).status == 202  # others are not concerned
    for response in responses:
        assert response.status == 401
        assert response.values("content-type") == [b"application/json"]
        assert response.values("www-authenticate")[0].startswith(b"Basic ")
        assert json.loads(response.body)["error"] == "invalid_client"
    for response in late:
        assert response.status == 429
        assert retry_after(response) <= 60
        assert "error" in json.loads(response.body)
    for response in (*responses, *late):
        api.secrets.look_for_in(repr((response.headers, response.body)))
    assert len(api.logins) == 1


async def test_clients_nobody_configured_log_in_at_the_login_server(api: Api) -> None:
    api.clients["stranger"] = ClientSpec(secret=WRONG, opaque=True)
    async with proxy_before(api) as proxy:
        tokens = [
            json.loads((await log_in(proxy, "stranger", WRONG)).body)["access_token"]
            for _ in range(2)
        ]
        unknown = await log_in(proxy, "nobody-at-all", WRONG)
        for token in tokens:
            assert (await Caller(proxy, api.secrets, token).post()).status == 202
        stranger = f"client:{account_id('stranger')[:8]}"
        assert await metric(proxy, "requests_total", account=stranger, code="202") == 2
    assert (unknown.status, json.loads(unknown.body)["error"]) == (401, "invalid_client")
    assert json.loads(unknown.body)["description"] == "client not found"  # the server's own words
    assert [call.bearer for call in api.calls] == tokens
    assert len(api.logins) == 4


async def test_the_login_prefix_is_required_and_stripped(api: Api) -> None:
    listen = {"login_prefix": "/login", "api_prefix": "/gc"}
    async with proxy_before(api, listen=listen) as proxy:
        assert (await log_in(proxy)).status == 404
        answer = json.loads((await log_in(proxy, prefix="/login")).body)
        caller = Caller(proxy, api.secrets, answer["access_token"])
        assert (await caller.post(path=f"/gc{EXPORTS}")).status == 202
        wrong_method = await ask(proxy.url, "/login/oauth/token")
    assert (wrong_method.status, wrong_method.values("allow")) == (405, [b"POST"])


# What an operator sees and does


async def test_an_operator_refreshes_a_token(api: Api) -> None:
    tokens, retry = {"min_refresh_interval": 0.1}, {"initial_backoff": 0.1}
    async with proxy_before(api, tokens=tokens, retry=retry) as proxy:

        async def refresh() -> Response:
            await asyncio.sleep(0.2)
            return await order_refresh(proxy, api.secrets)

        await has_token(proxy)
        assert (await refresh()).status == 200
        assert len(api.tokens) == 2
        api.simulator.throttle_logins(1)
        throttled = await refresh()
        assert problem(throttled) == (503, "token-unavailable")
        assert retry_after(throttled) >= 1
        await asyncio.sleep(0.3)  # until then the login server is left alone
        api.clients[CLIENT] = ClientSpec(secret="another")
        rejected = await refresh()
        assert problem(rejected) == (502, "token-rejected")
        assert rejected.values("retry-after") == []
        assert await metric(proxy, "token_rejected", account="london") == 1
        assert (await Caller(proxy, api.secrets).post()).status == 202  # the old one still serves
        assert await refreshes(proxy, "operator") == 1
        assert await refreshes(proxy, "operator", "error") == 2


async def test_an_operator_has_to_wait_as_well(api: Api) -> None:
    """And can refresh no account that is not there."""
    async with proxy_before(api) as proxy:
        await has_token(proxy)
        assert (await order_refresh(proxy, api.secrets, "berlin")).status == 404
        too_soon = await order_refresh(proxy, api.secrets)
    assert too_soon.status == 429
    assert 10 <= retry_after(too_soon) <= 15  # the default
    assert len(api.tokens) == 1


async def order_refresh(proxy: Running, secrets: Secrets, name: str = "london") -> Response:
    response = await ask(proxy.admin_url, f"/accounts/{name}/refresh", "POST")
    secrets.look_for_in(repr((response.headers, response.body)))
    return response


async def test_the_status_tells_of_the_token(api: Api) -> None:
    api.clients[CLIENT] = ClientSpec(secret=SECRET, token_lifetime=1000)
    async with proxy_before(api) as proxy:
        assert (await Caller(proxy, api.secrets).post()).status == 202
        token = (await account_status(proxy))["token"]
        expiry = await metric(proxy, "token_expiry_timestamp_seconds", account="london")
        skews = [await metric(proxy, "clock_skew_seconds", server=one) for one in ("api", "login")]
    assert 995 < token["expires_in"] <= 1000
    assert token["scopes"] == [VOICE_SCOPE]
    assert token["missing"] == []
    assert 900 < token["next_refresh_in"] <= 940  # a margin of 60 s, and some jitter
    assert abs(expiry - time.time() - 1000) < 5
    assert all(-5 < skew < 0.1 for skew in skews)  # a Date has whole seconds


async def test_explain_asks_for_an_account(api: Api) -> None:
    """No token is minted, and none is told."""
    async with proxy_before(api, account=LONDON) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await caller.post()).status == 202
        assert problem(await caller.post(WHATSAPP)) == (403, "missing-scope")
        subject, routes = await explain.ask(proxy.admin_url, "london", time.time())
        for url in (f"{proxy.admin_url}/nowhere", proxy.url):
            with pytest.raises(explain.CannotExplain, match="answers 404"):
                await explain.ask(url, "london", time.time())
        with pytest.raises(explain.CannotExplain, match="answers 404"):
            await explain.ask(proxy.admin_url, "berlin", time.time())
    assert len(api.tokens) == 1
    rows = explain.rows_of(routes, subject.held)
    assert {row.scope: row.is_held for row in rows} == {VOICE_SCOPE: True, DIGITAL_SCOPE: False}
    said = explain.advice(subject, rows, time.time())
    assert said.startswith(f"Was {DIGITAL_SCOPE} granted a moment ago? The token was minted ")
    assert "; next refresh in 1" in said  # at most 15 s
    assert subject.claims == {"iss": ISSUER, "sub": CLIENT, "client_id": CLIENT}
    assert subject.expires_at is not None
    assert abs(subject.expires_at - time.time() - 86_400) < 5
    assert subject.skew.keys() == {"api", "login"}


# The login server in trouble


async def test_the_login_server_is_down_at_the_start(api: Api) -> None:
    port = free_port()
    upstream = {"login_url": f"http://{HOST}:{port}"}
    retry = {"initial_backoff": 0.1, "max_backoff": 0.3}
    async with proxy_before(api, upstream=upstream, retry=retry) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await ask(proxy.admin_url, "/readyz")).status == 200
        refused = await caller.post(Prefer="wait=2")
        assert problem(refused) == (503, "token-unavailable")
        assert retry_after(refused) >= 1
        assert (await Caller(proxy, api.secrets, "planted-token-of-a-stranger").get()).status == 401
        assert [call.bearer for call in api.calls] == ["planted-token-of-a-stranger"]
        async with api.listening(port):
            await until(lambda: api.tokens)
            assert (await caller.post()).status == 202
    assert api.calls[-1].bearer == api.tokens[0]


async def test_a_rotated_secret_file_is_used_for_the_next_token(api: Api, tmp_path: Path) -> None:
    """By the schedule, and at once where the old one has just been refused."""
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    account = {"name": "london", "client_id": CLIENT, "client_secret_file": str(file)}
    tokens = {"min_refresh_interval": 0.1}
    async with proxy_before(api, {**account, "keys": LONDON["keys"]}, tokens=tokens) as proxy:
        await has_token(proxy)
        rotated = api.secrets.plant("planted-secret-number-two")
        api.clients[CLIENT] = ClientSpec(secret=rotated)
        file.write_text(rotated)
        await asyncio.sleep(0.15)
        assert (await ask(proxy.admin_url, "/accounts/london/refresh", "POST")).status == 200
        assert (await log_in(proxy)).status == 401
        assert (await log_in(proxy, secret=rotated)).status == 200
    assert len(api.tokens) == 2


async def test_a_rejected_secret_is_not_tried_again_until_it_is_another(
    api: Api, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(WRONG)
    account = {"name": "london", "client_id": CLIENT, "client_secret_file": str(file)}
    async with proxy_before(api, {**account, "keys": LONDON["keys"]}) as proxy:
        caller = Caller(proxy, api.secrets)
        for _ in range(3):
            rejected = await caller.post()
            assert problem(rejected) == (502, "token-rejected")
            assert rejected.values("retry-after") == []
        assert len(api.logins) == 1
        assert await metric(proxy, "token_rejected", account="london") == 1
        file.write_text(SECRET)
        assert (await caller.post()).status == 202
        assert await metric(proxy, "token_rejected", account="london") == 0


# Nested fields

NESTED = b'{"mediaType":"voice",  "meta": [{"a/b": {"legal_hold": true}}]}'


@pytest.mark.parametrize("policy", ["off", "warn", "reject"])
async def test_a_nested_legal_hold(api: Api, policy: str) -> None:
    """Counted, or refused with its place; what passes has its bytes unchanged."""
    route = {
        "name": "exports",
        "paths": [EXPORTS],
        "paced": True,
        "flat_fields": ["legal_hold"],
        "on_nested": policy,
    }
    flat = b'{"legal_hold": true,   "mediaType": "voice"}'
    async with proxy_before(api, routes=[route]) as proxy:
        caller = Caller(proxy, api.secrets)
        assert (await caller.post(flat)).status == 202
        assert "nested" not in api.secrets.logged()
        response = await caller.post(NESTED)
        count = await metric(proxy, "nested_fields_total", route="exports", field="legal_hold")
    assert count == (0 if policy == "off" else 1)
    assert ("nested field" in api.secrets.logged()) is (policy != "off")
    if policy == "reject":
        assert problem(response) == (422, "nested-field")
        assert json.loads(response.body)["pointer"] == "/meta/0/a~1b/legal_hold"
        assert response.values("retry-after") == []
        assert [call.body for call in api.calls] == [flat]
    else:
        assert response.status == 202
        assert [call.body for call in api.calls] == [flat, NESTED]


# The program


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


async def test_the_program_itself_tells_no_secret(api: Api, tmp_path: Path) -> None:
    """At debug level, while things go well and while they do not."""
    port, admin_port = free_port(), free_port()
    (tmp_path / "secret").write_text(SECRET)
    account = {**LONDON, "client_secret_file": str(tmp_path / "secret")}
    del account["client_secret"]
    other = {"name": "paris", "client_id": "paris", "client_secret": WRONG}
    config = {
        "listen": {"port": port},
        "admin": {"port": admin_port},
        "upstream": {"api_url": api.url, "login_url": api.url},
        "accounts": [account, other],
        "identity": issued_by(api),
        "log": {"level": "debug"},
    }
    (tmp_path / "proxy.yaml").write_text(json.dumps(config))
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-m", "proxy", "serve"),
        *("--config", str(tmp_path / "proxy.yaml")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONASYNCIODEBUG": "1"},
    )
    assert program.stdout is not None
    reading = asyncio.ensure_future(program.stdout.read())
    try:
        url = f"http://{HOST}:{port}"
        await until(lambda: api.tokens, within=20)
        await until(lambda: is_listening(port) and is_listening(admin_port), within=20)
        token = f"Bearer {api.tokens[0]}"
        answers = [
            await ask(url, EXPORTS, "POST", VOICE, Authorization=f"Bearer {KEY}"),
            await ask(url, EXPORTS, "POST", WHATSAPP, Authorization=token),
            await ask(url, f"{USERS}?access_token={KEY}", Authorization=f"Bearer {WRONG}"),
            await ask(url, USERS, Authorization=f"Bearer {api.tokens[0]}x"),
            await ask(url, "/oauth/token", "POST", f"client_secret={WRONG}".encode()),
            await ask(url, "/nowhere", Authorization=token),
            await ask(url, USERS, Authorization=f"Basic {WRONG}"),
        ]
        pages = [
            await ask(f"http://{HOST}:{admin_port}", page)
            for page in ("/metrics", "/status.json", "/status", "/accounts/london")
        ]
    finally:
        if program.returncode is None:
            program.send_signal(signal.SIGTERM)
        said = await reading
        await program.wait()
    assert [answer.status for answer in answers[:2]] == [202, 403]
    for response in (*answers, *pages):
        api.secrets.look_for_in(repr((response.headers, response.body)))
    api.secrets.look_for_in(said.decode())
    assert program.returncode == 0, said.decode()
