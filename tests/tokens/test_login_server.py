"""Asking a login server for a token, over real sockets: every answer has one bounded meaning."""

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.http.client import Client
from proxy.settings import Account
from proxy.settings import Upstream as UpstreamSettings
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import LoginServer, Rejected, Throttled, TokenAnswer, Troubled
from tests.kit.fault_proxy import BlackHole, FaultProxy
from tests.kit.listener import Listener
from tests.kit.upstream import (
    Garbage,
    HalfBody,
    Hang,
    RawUpstream,
    ReadThenClose,
    ReadThenReset,
    Reply,
    Step,
    free_port,
)

CLOCK = SystemClock()
SECRET = "planted-secret"
TOKEN = "planted-token"
DATE = "Sun, 06 Nov 2033 08:49:37 GMT"
CREDENTIALS = Credentials("id", lambda: SECRET)
TIMEOUT = 20.0  # seconds that no answer takes, whatever else the machine does
SHORT_TIMEOUT = 0.2  # where silence is what is tested


@asynccontextmanager
async def endpoint_at(url: str, *, seconds: float = TIMEOUT) -> AsyncIterator[LoginServer]:
    settings = UpstreamSettings(
        api_url=url, login_url=url, connect_timeout=TIMEOUT, response_timeout=seconds
    )
    upstream = Client(settings, url, clock=CLOCK)
    try:
        yield LoginServer(upstream, clock=CLOCK, max_retry_after=300.0)
    finally:
        await upstream.close()


async def fetch_from(
    url: str, credentials: Credentials = CREDENTIALS, *, seconds: float = TIMEOUT
) -> TokenAnswer:
    async with endpoint_at(url, seconds=seconds) as endpoint:
        return await endpoint.fetch(credentials)


async def fetch(step: Step, credentials: Credentials = CREDENTIALS) -> TokenAnswer:
    """Fetch once from a login server that does this; exactly one request must reach it."""
    seconds = SHORT_TIMEOUT if isinstance(step, Hang) else TIMEOUT
    async with RawUpstream([step]) as server:
        try:
            return await fetch_from(server.url, credentials, seconds=seconds)
        except (Rejected, Throttled, Troubled) as trouble:
            assert_shows_nothing_secret(trouble)
            raise
        finally:
            await server.received()
            assert len(server.requests) == 1


def assert_shows_nothing_secret(trouble: BaseException) -> None:
    shown: BaseException | None = trouble
    while shown is not None:
        for secret in (SECRET, TOKEN, base64.b64encode(f"id:{SECRET}".encode()).decode()):
            assert secret not in f"{shown} {shown!r} {shown.args}"
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def token_answer(**changes: Any) -> bytes:
    """Return a good answer with some members changed; None takes one out."""
    members = {"access_token": TOKEN, "token_type": "bearer", "expires_in": 86400, **changes}
    return json.dumps({key: value for key, value in members.items() if value is not None}).encode()


async def test_the_request_on_the_wire() -> None:
    async with RawUpstream([Reply(body=token_answer())]) as server:
        await fetch_from(server.url)
    (request,) = server.requests
    assert request.method == b"POST"
    assert request.target == b"/oauth/token"
    assert request.body == b"grant_type=client_credentials"
    assert request.values("content-type") == [b"application/x-www-form-urlencoded"]
    assert request.values("authorization") == [
        b"Basic " + base64.b64encode(f"id:{SECRET}".encode())
    ]


@pytest.mark.parametrize(
    ("client_id", "secret", "pair"),
    [
        ("a:b", "c:d", b"a%3Ab:c%3Ad"),
        ("a b", "p+q&r=s%t", b"a+b:p%2Bq%26r%3Ds%25t"),
        ("é", "€\n/~", b"%C3%A9:%E2%82%AC%0A%2F~"),
    ],
)
async def test_id_and_secret_are_form_encoded_before_they_are_joined(
    client_id: str, secret: str, pair: bytes
) -> None:
    """RFC 6749 section 2.3.1: or a colon in the id would end it."""
    async with RawUpstream([Reply(body=token_answer())]) as server:
        await fetch_from(server.url, Credentials(client_id, lambda: secret))
    (field,) = server.requests[0].values("authorization")
    assert base64.b64decode(field.removeprefix(b"Basic ")) == pair


async def test_a_token() -> None:
    reply = Reply(headers=[("Date", DATE)], body=token_answer(scope="a b"))
    issued = await fetch(reply)
    assert issued == TokenAnswer(
        value=TOKEN, lifetime=86400.0, scope="a b", server_time=2_014_879_777.0
    )
    assert TOKEN not in repr(issued)


@pytest.mark.parametrize(
    ("changes", "lifetime", "scope"),
    [
        ({}, 86400.0, None),
        ({"token_type": "Bearer"}, 86400.0, None),
        ({"token_type": "BEARER"}, 86400.0, None),
        ({"expires_in": 1}, 1.0, None),
        ({"expires_in": 172_800}, 172_800.0, None),
        ({"expires_in": 172_801}, 172_800.0, None),
        ({"expires_in": 10**400}, 172_800.0, None),
        ({"expires_in": "3599"}, 3599.0, None),
        ({"expires_in": 3599.0}, 3599.0, None),
        ({"expires_in": None}, 3600.0, None),
        ({"scope": ""}, 86400.0, None),
        ({"scope": "b,a"}, 86400.0, "a b"),
        ({"scope": ["a"]}, 86400.0, None),
        ({"scope": 7}, 86400.0, None),
        ({"refresh_token": "x", "error": "invalid_client"}, 86400.0, None),
    ],
)
async def test_answers_that_hold_a_token(
    changes: dict[str, Any], lifetime: float, scope: str | None
) -> None:
    issued = await fetch(Reply(body=token_answer(**changes)))
    assert (issued.value, issued.lifetime, issued.scope) == (TOKEN, lifetime, scope)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_an_answer_that_is_coded_without_being_asked_for(coding: str) -> None:
    plain = token_answer()
    body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    assert (await fetch(Reply(headers=[("Content-Encoding", coding)], body=body))).value == TOKEN


@pytest.mark.parametrize("date", [None, "yesterday", "2033-11-06T08:49:37Z"])
async def test_a_date_that_cannot_be_read(date: str | None) -> None:
    headers = [] if date is None else [("Date", date)]
    assert (await fetch(Reply(headers=headers, body=token_answer()))).server_time is None


BAD_TOKENS = [
    "",
    "a b",
    "a\r\nX: y",
    "a\n",
    "\ttoken",
    "tök",
    "a\x00",
    "a\x7f",
    "\ud800",
    7,
    [],
    {},
]


@pytest.mark.parametrize("token", [None, *BAD_TOKENS], ids=repr)
async def test_a_token_that_cannot_be_a_bearer_token(token: object) -> None:
    """Queue breaks in it would write header fields of their own."""
    with pytest.raises(Troubled, match="no usable access_token"):
        await fetch(Reply(body=token_answer(access_token=token)))


@pytest.mark.parametrize(
    "lifetime", [True, False, "soon", "-2", -1, 0, 1.5, [], {}, float("nan"), float("inf")]
)
async def test_a_lifetime_that_is_no_number_of_seconds(lifetime: object) -> None:
    with pytest.raises(Troubled, match="expires_in"):
        await fetch(Reply(body=token_answer(expires_in=lifetime)))


@pytest.mark.parametrize("kind", [None, "mac", "", 7, ["bearer"], "bearer "])
async def test_a_token_of_another_type(kind: object) -> None:
    with pytest.raises(Troubled, match="token_type"):
        await fetch(Reply(body=token_answer(token_type=kind)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"token"',
        b"<html>Sign in</html>",
        b"access_token=planted-token&token_type=bearer&expires_in=86400",
        b'{"access_token": "planted-token"',
        b'{"access_token": "\xff"}',
        b'{"expires_in": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
    ],
    ids=range(10),
)
async def test_an_answer_that_is_no_json_object(body: bytes) -> None:
    with pytest.raises(Troubled, match="no usable access_token"):
        await fetch(Reply(headers=[("Content-Type", "text/html")], body=body))


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("error", ["invalid_client", "invalid_grant", "unauthorized_client"])
async def test_credentials_that_are_refused(status: int, error: str) -> None:
    with pytest.raises(Rejected, match=error):
        await fetch(Reply(status, body=json.dumps({"error": error}).encode()))


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": []}', b'{"error": "other"}'])
async def test_any_401_means_refused_credentials(body: bytes) -> None:
    with pytest.raises(Rejected, match="401"):
        await fetch(Reply(401, body=body))


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, [("Retry-After", "30")], 30.0),
        (503, [("Retry-After", "30")], 30.0),
        (429, [("Retry-After", "1"), ("Retry-After", "99")], 99.0),
        (429, [("Retry-After", "86400")], 300.0),
        (429, [("Date", DATE), ("Retry-After", "Sun, 06 Nov 2033 08:49:57 GMT")], 300.0),
        (429, [("Retry-After", "0")], 0.0),
        (429, [("Retry-After", "soon")], None),
        (429, [], None),
        (503, [], None),
    ],
    ids=range(9),
)
async def test_a_login_server_that_asks_for_a_pause(
    status: int, headers: list[tuple[str, str]], wait: float | None
) -> None:
    with pytest.raises(Throttled) as caught:
        await fetch(Reply(status, headers, body=b'{"error": "invalid_client"}'))
    assert caught.value.wait == wait


@pytest.mark.parametrize("member", ["description", "error_description"])
async def test_the_vendors_throttle_is_a_400(member: str) -> None:
    body = {"error": "invalid_request", member: "Rate limit exceeded; retry later"}
    with pytest.raises(Throttled) as caught:
        await fetch(Reply(400, [("Retry-After", "7")], body=json.dumps(body).encode()))
    assert caught.value.wait == 7.0


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (400, {"error": "invalid_request", "description": "grant_type is missing"}),
        (400, {"error": "invalid_request", "description": ["rate limit"]}),
        (400, {"error": "invalid_scope", "description": "rate limit exceeded"}),
        (400, {"error": ["invalid_client"]}),
        (400, {"error": {}}),
        (400, {}),
        (403, {"error": "invalid_client"}),
        (404, {}),
        (500, {"error": "invalid_client"}),
        (502, {}),
        (504, {}),
        (201, {"access_token": TOKEN, "token_type": "bearer", "expires_in": 86400}),
    ],
    ids=range(12),
)
async def test_any_other_status_is_trouble(status: int, document: dict[str, Any]) -> None:
    with pytest.raises(Troubled, match=f"answers {status}"):
        await fetch(Reply(status, body=json.dumps(document).encode()))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """A 307 would carry the secret to wherever it points."""
    async with RawUpstream(default=Reply(body=token_answer())) as elsewhere:
        location = f"{elsewhere.url}/oauth/token"
        with pytest.raises(Troubled, match=f"answers {status}"):
            await fetch(Reply(status, [("Location", location)]))
        assert elsewhere.connections == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_enormous_answer_is_not_read_to_its_end(*, chunked: bool) -> None:
    with pytest.raises(Troubled, match="not usable"):
        await fetch(Reply(body=token_answer(pad="x" * 10_000_000), chunked=chunked))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Hang(), "did not answer"),
        (ReadThenClose(), "did not answer"),
        (ReadThenReset(), "did not answer"),
        (HalfBody(token_answer()), "did not answer"),
        (Garbage(b"planted-token, but no HTTP\r\n\r\n"), "not usable"),
        (Reply(raw=b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n"), "not usable"),
    ],
)
async def test_no_answer_that_counts(step: Step, message: str) -> None:
    with pytest.raises(Troubled, match=message):
        await fetch(step)


async def test_an_answer_that_drips_ends_at_our_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each byte comes in time, the whole never."""
    monkeypatch.setattr("proxy.tokens.login_server.CALL_SECONDS", 0.3)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not reader.at_eof():
            writer.write(b" ")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1000)

    async with Listener(drip) as server:
        begun = CLOCK.monotonic()
        async with asyncio.timeout(10):
            with pytest.raises(Troubled, match="did not answer"):
                await fetch_from(f"http://127.0.0.1:{server.port}")
        assert CLOCK.monotonic() - begun >= 0.3


async def test_a_login_server_nobody_can_reach() -> None:
    with pytest.raises(Troubled, match="cannot be reached") as caught:
        await fetch_from(f"http://127.0.0.1:{free_port()}")
    assert_shows_nothing_secret(caught.value)
    with pytest.raises(Troubled, match="cannot be reached"):
        await fetch_from("http://does-not-exist.invalid")


async def test_a_login_server_that_swallows_everything() -> None:
    async with RawUpstream() as server, FaultProxy(server.port, BlackHole()) as hole:
        with pytest.raises(Troubled, match="did not answer"):
            await fetch_from(f"http://127.0.0.1:{hole.port}", seconds=SHORT_TIMEOUT)


async def test_a_secret_that_cannot_be_read_is_not_asked_with(tmp_path: Path) -> None:
    account = Account.model_validate(
        {"name": "a", "client_id": "id", "client_secret_file": str(tmp_path / "missing")}
    )
    async with RawUpstream() as server:
        with pytest.raises(Rejected, match="No such file"):
            await fetch_from(server.url, Credentials.of(account))
        assert server.connections == 0


async def test_one_connection_after_another_serves() -> None:
    """A trouble leaves nothing behind that spoils the next call."""
    steps: list[Step] = [Hang(), Reply(500), HalfBody(), Reply(body=token_answer())]
    async with RawUpstream(steps) as server, endpoint_at(server.url, seconds=1.5) as endpoint:
        for _ in range(3):
            with pytest.raises(Troubled):
                await endpoint.fetch(CREDENTIALS)
        assert (await endpoint.fetch(CREDENTIALS)).value == TOKEN
        assert len(server.requests) == 4
