"""The incident story: proxy, API, login server and the strict incident table, on real sockets.

What takes hours is in tests/incidents, on a fake clock.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.service.lifecycle import Running, running
from proxy.settings import Settings
from proxy.simulator import ClientSpec, Fault, SigningKey, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.desk import LOGIN
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import accounts_of, has_token, proxy_for
from tests.kit.redis import redis_server
from tests.kit.upstream import RawUpstream, ReadThenReset, free_port

EXPORTS = "/api/v2/recordings/exports"
CLIENT = "0a1b-london"
SECRET = "planted-secret-of-london"
CALLER_KEY = "planted-key-of-a-caller"
LONDON = {
    "name": "london",
    "client_id": CLIENT,
    "client_secret": SECRET,
    "keys": [f"sha256:{hashlib.sha256(CALLER_KEY.encode()).hexdigest()}"],
}
FIELDS = {
    "short_description": "{title}",
    "description": "{detail} ({kind} on {route} since {since})",
    "u_account": "{account}",
    "u_legal_hold": "{legal_hold}",
    "u_channel": "{channel}",
}
NUMBERS = count()
SIGNING_KEY = SigningKey.generate()


@asynccontextmanager
async def an_api(port: int = 0, *, secret: str = SECRET) -> AsyncIterator[tuple[Simulator, str]]:
    loop = asyncio.get_running_loop()
    settings = SimulatorSettings(
        interval=0.01, clients={CLIENT: ClientSpec(secret=secret)}, incident_login=LOGIN
    )
    simulator = Simulator(settings, monotonic=loop.time, wall=loop.time, key=SIGNING_KEY)
    async with simulator.serve(HOST, port) as server:
        yield simulator, server.url


def incidents(desk_url: str, folder: Path, **keys: Any) -> dict[str, Any]:
    file = folder / "desk.json"
    file.write_text(json.dumps(dict(zip(("username", "password"), LOGIN, strict=True))))
    own = {"fields": FIELDS, "open_after": 0.2}
    return {"url": desk_url, "credentials_file": str(file), **own, **keys}


@asynccontextmanager
async def a_proxy(
    api_url: str, desk: Mapping[str, Any], account: Mapping[str, Any] = LONDON, **sections: Any
) -> AsyncIterator[Running]:
    tokens = {"propagation_window": 0.5, "min_refresh_interval": 0.1}
    pacing = {"interval": 0.02}
    async with proxy_for(
        api_url,
        tokens=tokens,
        pacing=pacing,
        accounts=[dict(account)],
        incidents=desk,
        **sections,
    ) as running:
        yield running


async def export(running: Running, **body: Any) -> Response:
    content = json.dumps(body).encode()
    head = (
        f"POST {EXPORTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CALLER_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    data = await exchange(HOST, port_of(running.url), head.encode() + content, timeout=60)
    return parse_response(data)


async def renew_token(running: Running) -> None:
    head = "POST /accounts/london/refresh HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

    async def is_renewed() -> bool:
        answer = await exchange(HOST, port_of(running.admin_url), head.encode(), timeout=20)
        return parse_response(answer).status == 200

    await until(is_renewed)


async def has_rows(simulator: Simulator, count: int, *, active: int) -> list[dict[str, str]]:
    """Wait until the table has so many rows, and so many that are active."""

    async def question() -> bool:
        rows = simulator.service_desk.rows
        return (len(rows), [row["active"] for row in rows].count("true")) == (count, active)

    await until(question, within=60)
    return simulator.service_desk.rows


async def expects_nothing(running: Running) -> None:
    """Wait until it mints no further token in the hope for a scope."""

    async def question() -> bool:
        return bool((await accounts_of(running))["london"]["token"]["next_refresh_in"] > 100)

    await until(question, within=60)


async def several_looks() -> None:
    """As long as a proxy needs to look at its accounts three times."""
    await asyncio.sleep(3.5)


async def test_a_missing_scope_is_one_incident_over_restarts_until_it_is_granted(
    tmp_path: Path,
) -> None:
    async with an_api() as (simulator, url):
        desk = incidents(url, tmp_path)
        async with a_proxy(url, desk) as running:
            await has_token(running)
            refused = await export(running, channel="whatsapp", legal_hold=True)
            assert refused.status == 403
            (row,) = await has_rows(simulator, 1, active=1)
            assert row["short_description"] == "london: new tokens lack a scope"
            assert DIGITAL_SCOPE in row["description"]
            assert "(scope_missing on exports since 2" in row["description"]
            assert (row["u_account"], row["u_channel"]) == ("london", "whatsapp")
            assert row["u_legal_hold"] == "true"
            (inserted,) = [c.body for c in simulator.service_desk.calls if c.method == "POST"]
            assert isinstance(inserted, dict)
            assert inserted["u_legal_hold"] is True
        async with a_proxy(url, desk) as restarted, a_proxy(url, desk) as second:
            for running in (restarted, second):
                await has_token(running)
                await export(running, channel="whatsapp", legal_hold=False)
            await several_looks()
            await has_rows(simulator, 1, active=1)
            simulator.grant(CLIENT, DIGITAL_SCOPE, propagation=0)
            for running in (restarted, second):
                await renew_token(running)
                assert (await export(running, channel="whatsapp")).status == 202
            (row,) = await has_rows(simulator, 1, active=0)
    assert row["state"] == "7"
    assert row["close_notes"].startswith("The account's token has the scopes that were missing.")


async def test_a_scope_granted_while_the_proxy_was_away_closes_the_incident(
    tmp_path: Path,
) -> None:
    """The row says which scopes it is about, so no request has to come first."""
    async with an_api() as (simulator, url):
        desk = incidents(url, tmp_path)
        async with a_proxy(url, desk) as running:
            await has_token(running)
            await export(running, channel="whatsapp")
            await has_rows(simulator, 1, active=1)
        simulator.grant(CLIENT, DIGITAL_SCOPE, propagation=0)
        async with a_proxy(url, desk):
            await has_rows(simulator, 1, active=0)


async def test_a_hold_that_lasts_is_an_incident_until_the_api_accepts(tmp_path: Path) -> None:
    async with an_api() as (simulator, url), a_proxy(url, incidents(url, tmp_path)) as running:
        await has_token(running)
        simulator.eat_quota(CLIENT, 8)
        waiting = asyncio.ensure_future(export(running, channel="voice", legal_hold="yes"))
        (row,) = await has_rows(simulator, 1, active=1)
        assert row["short_description"] == "london: on hold, the API refuses requests"
        assert (row["u_channel"], row["u_legal_hold"]) == ("voice", "yes")
        assert (await waiting).status == 202
        (row,) = await has_rows(simulator, 1, active=0)
    assert row["close_notes"].startswith("The hold is over.")


async def test_a_short_hold_is_no_incident(tmp_path: Path) -> None:
    async with (
        an_api() as (simulator, url),
        a_proxy(url, incidents(url, tmp_path, open_after=30)) as running,
    ):
        await has_token(running)
        simulator.eat_quota(CLIENT, 2)
        assert (await export(running)).status == 202
        await several_looks()
    assert simulator.service_desk.rows == []


async def test_rejected_credentials_are_an_incident_until_the_right_secret_comes(
    tmp_path: Path,
) -> None:
    """No request is needed to notice either."""
    secret = tmp_path / "secret"
    secret.write_text("planted-wrong-secret")
    account = {**LONDON, "client_secret_file": str(secret)}
    del account["client_secret"]
    async with (
        an_api() as (simulator, url),
        a_proxy(url, incidents(url, tmp_path), account) as running,
    ):
        (row,) = await has_rows(simulator, 1, active=1)
        assert row["short_description"] == "london: the login server refuses the credentials"
        secret.write_text(SECRET)
        await renew_token(running)
        await has_rows(simulator, 1, active=0)


async def test_an_unreachable_api_is_an_incident_until_it_answers(tmp_path: Path) -> None:
    port = free_port()
    named = {"name": "london", "client_id": CLIENT}
    async with an_api() as (table, desk_url), RawUpstream() as login:
        upstream = {"login_url": login.url}
        retry = {"initial_backoff": 0.05, "max_backoff": 0.05}
        desk = incidents(desk_url, tmp_path)
        identity = {"whoami": "/api/v2/tokens/me"}
        async with a_proxy(
            f"http://{HOST}:{port}", desk, named, upstream=upstream, retry=retry, identity=identity
        ) as running:
            async with an_api(port) as (api, _):
                token = api.mint(CLIENT)
                assert (await call(running, token)).status == 202
            await until(lambda: is_refused(running, token))
            (row,) = await has_rows(table, 1, active=1)
            assert row["short_description"] == "london: the API cannot be reached"
            async with an_api(port) as (api, _):
                api.mint(CLIENT)
                await call(running, token)
                await has_rows(table, 1, active=0)


async def is_refused(running: Running, token: str) -> bool:
    return (await call(running, token)).status == 503


async def call(running: Running, token: str) -> Response:
    body = f'{{"channel": "voice", "number": {next(NUMBERS)}}}'.encode()
    head = (
        f"POST {EXPORTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return parse_response(await exchange(HOST, port_of(running.url), head.encode() + body))


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_lost_answer_of_an_unsafe_request_is_an_incident(
    method: str, tmp_path: Path
) -> None:
    body = b'{"legal_hold": "yes"}' if method == "POST" else b""
    head = (
        f"{method} {EXPORTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CALLER_KEY}\r\n"
        f"X-Request-Id: the-lost-one\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with an_api() as (table, url), RawUpstream(default=ReadThenReset()) as api:
        upstream = {"login_url": url}
        async with a_proxy(api.url, incidents(url, tmp_path), upstream=upstream) as running:
            await has_token(running)
            data = await exchange(HOST, port_of(running.url), head.encode() + body)
            assert parse_response(data).status == 502
            if method == "GET":
                await several_looks()
                assert table.service_desk.rows == []
                return
            (row,) = await has_rows(table, 1, active=1)
    assert row["short_description"] == "london: requests may have been carried out"
    assert "the-lost-one" in row["description"]
    assert row["u_legal_hold"] == "yes"


async def test_strangers_open_nothing(tmp_path: Path) -> None:
    async with an_api() as (table, url), RawUpstream(default=ReadThenReset()) as api:
        upstream = {"login_url": url}
        async with a_proxy(api.url, incidents(url, tmp_path), upstream=upstream) as running:
            await has_token(running)
            assert (await call(running, "nobody-knows-it")).status == 502
            await several_looks()
    assert table.service_desk.rows == []


ODD = ['a "quoted" one', "two\nlines", "${HOME}", '{"a": [1]}', "{title}{{}}", "\\", "ü\u2028"]


@pytest.mark.parametrize("value", ODD, ids=[f"odd-{n}" for n in range(len(ODD))])
async def test_what_a_caller_sends_arrives_as_text_and_nothing_else(
    value: str, tmp_path: Path
) -> None:
    async with an_api() as (simulator, url), a_proxy(url, incidents(url, tmp_path)) as running:
        await has_token(running)
        await export(running, channel="sms", legal_hold=value, mediaType={"nested": 1})
        (row,) = await has_rows(simulator, 1, active=1)
    assert row["u_legal_hold"] == value


async def test_no_request_waits_for_the_desk_and_no_secret_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the desk hangs, exports go on at their pace."""
    caplog.set_level(logging.DEBUG)
    async with an_api() as (simulator, url), an_api() as (table, desk_url):
        table.service_desk.faults.extend([Fault(status=500, hangs=60)] * 50)
        async with a_proxy(url, incidents(desk_url, tmp_path)) as running:
            await has_token(running)
            await export(running, channel="whatsapp")
            await until(lambda: _is_hanging(table))
            statuses = [(await export(running, number=n)).status for n in range(10)]
            assert table.service_desk.rows == []
    assert statuses == [202] * 10
    shown = caplog.text + json.dumps([str(call) for call in table.service_desk.calls])
    assert LOGIN[1] not in shown
    assert SECRET not in shown
    assert CALLER_KEY not in shown
    assert simulator.service_desk.rows == []


async def _is_hanging(table: Simulator) -> bool:
    return bool(table.service_desk.calls)


@pytest.mark.needs("redis-server")
async def test_two_replicas_that_see_the_same_open_one_incident(tmp_path: Path) -> None:
    """They begin at the same time, and the last one that sees the trouble closes it."""
    async with an_api() as (simulator, url), redis_server(tmp_path) as redis:
        store = {"url": redis.url, "replicas": 2, "timeout": 2}
        desk = incidents(url, tmp_path)
        async with AsyncExitStack() as stack:
            pair = [
                await stack.enter_async_context(a_proxy(url, desk, store=store)) for _ in range(2)
            ]
            for running in pair:
                await has_token(running)
            await asyncio.gather(*(export(running, channel="whatsapp") for running in pair))
            await has_rows(simulator, 1, active=1)
            for running in pair:
                await expects_nothing(running)
            await several_looks()
            await has_rows(simulator, 1, active=1)
            simulator.grant(CLIENT, DIGITAL_SCOPE, propagation=0)
            await renew_token(pair[0])
            await several_looks()
            await has_rows(simulator, 1, active=1)
            await renew_token(pair[1])
            await has_rows(simulator, 1, active=0)
        methods = [call.method for call in simulator.service_desk.calls]
    assert methods.count("POST") == 1


async def test_a_reload_switches_incidents_on_and_off_and_changes_their_columns(
    tmp_path: Path,
) -> None:
    async with an_api() as (simulator, url):
        desk = incidents(url, tmp_path)
        on = Settings.model_validate({**base(url), "incidents": desk})
        other = {**desk, "fields": {"short_description": "changed: {title}"}}
        async with running(Settings.model_validate(base(url)), SystemClock()) as proxy:
            await has_token(proxy)
            await export(proxy, channel="whatsapp")
            await several_looks()
            assert simulator.service_desk.calls == []
            await proxy.proxy.reload(on)
            await has_rows(simulator, 1, active=1)
            await proxy.proxy.reload(Settings.model_validate({**base(url), "incidents": other}))
            simulator.eat_quota(CLIENT, 8)
            held = asyncio.ensure_future(export(proxy, channel="voice"))
            rows = await has_rows(simulator, 2, active=2)
            assert rows[1]["short_description"].startswith("changed: london: on hold")
            await proxy.proxy.reload(Settings.model_validate(base(url)))
            told = len(simulator.service_desk.calls)
            assert (await held).status == 202
            await several_looks()
            assert len(simulator.service_desk.calls) == told
            await proxy.proxy.reload(on)
            assert (await export(proxy, channel="voice", again=True)).status == 202
            await has_rows(simulator, 2, active=1)


def base(url: str) -> dict[str, Any]:
    return {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "upstream": {"api_url": url, "login_url": url},
        "identity": {"whoami": None},
        "tokens": {"propagation_window": 0.5, "min_refresh_interval": 0.1},
        "pacing": {"interval": 0.02},
        "accounts": [dict(LONDON)],
    }


async def test_an_account_that_is_configured_no_longer_has_no_open_incident(
    tmp_path: Path,
) -> None:
    async with an_api() as (simulator, url):
        desk = incidents(url, tmp_path)
        async with a_proxy(url, desk) as proxy:
            await has_token(proxy)
            await export(proxy, channel="whatsapp")
            await has_rows(simulator, 1, active=1)
            without = proxy.proxy.settings.model_copy(update={"accounts": ()})
            await proxy.proxy.reload(without)
            (row,) = await has_rows(simulator, 1, active=0)
    assert row["close_notes"].startswith("The account is no longer configured.")
