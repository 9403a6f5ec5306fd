"""Who uses an account: the callers in the status, and the requests of named keys in the metrics."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

from typer.testing import CliRunner

from proxy.cli.commands import _cli
from proxy.rules.digests import account_id
from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, exchange, port_of
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import accounts_of, has_token, proxy_for
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply

EXPORTS = "/api/v2/recordings/exports"
GRANT = json.dumps({"access_token": "managed", "token_type": "bearer", "expires_in": 3600}).encode()
NIGHTLY, PLAIN = "key-of-the-nightly-batch", "key-without-a-name"


def digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def reply(request: RecordedRequest) -> Reply:
    if request.target == b"/oauth/token":
        return Reply(200, [("Content-Type", "application/json")], GRANT)
    return Reply(202)


@asynccontextmanager
async def serving() -> AsyncIterator[Running]:
    account = {
        "name": "london",
        "client_id": "id",
        "client_secret": "s",
        "keys": [{"name": "nightly", "sha256": digest(NIGHTLY)}, digest(PLAIN)],
    }
    async with (
        RawUpstream(reply) as upstream,
        proxy_for(upstream.url, accounts=[account], pacing={"interval": 0.01}) as proxy,
    ):
        await has_token(proxy)
        yield proxy


async def send(proxy: Running, key: str, number: int, *fields: str) -> RawConnection:
    body = json.dumps({"number": number}).encode()
    lines = [
        f"POST {EXPORTS} HTTP/1.1",
        "Host: h",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    connection = await RawConnection.open(HOST, port_of(proxy.url))
    await connection.send("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


async def status_of(connection: RawConnection) -> int:
    async with connection:
        return (await connection.read_response("POST", timeout=60)).status


async def test_requests_of_named_keys_are_counted_by_class() -> None:
    async with serving() as proxy:
        for number, key in enumerate((NIGHTLY, NIGHTLY, PLAIN)):
            assert await status_of(await send(proxy, key, number)) == 202
        head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        text = (await exchange(HOST, port_of(proxy.admin_url), head)).decode()
    lines = [line for line in text.splitlines() if line.startswith("export_proxy_caller_requests")]
    assert lines == [
        'export_proxy_caller_requests_total{account="london",caller="nightly",code_class="2xx"} 2.0'
    ]


async def test_the_callers_with_most_waiting_and_most_refused_are_shown() -> None:
    async with serving() as proxy:
        await proxy.accounts.operators.pause(proxy.accounts.configured("london"), inf)
        waiting = [await send(proxy, NIGHTLY, number) for number in range(3)]
        refused = await send(proxy, PLAIN, 4, "User-Agent: batch/1", "Prefer: wait=1")
        assert await status_of(refused) == 429

        async def all_wait() -> bool:
            (queue,) = (await accounts_of(proxy))["london"]["routes"]
            return bool(queue["queue_depth"] == 3)

        await until(all_wait)
        shown = (await accounts_of(proxy))["london"]
        assert shown["callers_waiting"] == [{"caller": "nightly", "count": 3}]
        assert shown["callers_refused"] == [{"caller": f"{HOST} batch/1", "count": 1}]
        arguments = ["status", "--url", proxy.admin_url]
        result = await asyncio.to_thread(CliRunner().invoke, _cli, arguments)
        text = " ".join(result.output.split())
        assert "london: most waiting: nightly (3)" in text
        assert f"london: most refused: {HOST} batch/1 (1)" in text
        await proxy.accounts.operators.resume(proxy.accounts.configured("london"))
        assert [await status_of(one) for one in waiting] == [202] * 3
        assert (await accounts_of(proxy))["london"]["callers_waiting"] == []


async def test_the_first_unknown_clients_are_told_apart_and_the_others_are_one() -> None:
    def api(request: RecordedRequest) -> Reply:
        if request.target == b"/api/v2/tokens/me":
            client = request.values("Authorization")[0].decode().removeprefix("Bearer token-of-")
            body = json.dumps({"OAuthClient": {"id": client}}).encode()
            return Reply(200, [("Content-Type", "application/json")], body)
        return Reply(202)

    async with (
        RawUpstream(api) as upstream,
        proxy_for(
            upstream.url,
            pacing={"interval": 0.01},
            identity={"whoami": "/api/v2/tokens/me"},
            metrics={"max_learned_labels": 2},
        ) as proxy,
    ):
        for number, client in enumerate(("a", "b", "c", "d", "a")):
            assert await status_of(await send(proxy, f"token-of-{client}", number)) == 202
        sent = {
            name: sum(queue["sent"] for queue in account["routes"])
            for name, account in (await accounts_of(proxy)).items()
        }
        first, second = (f"client:{account_id(client)[:8]}" for client in ("a", "b"))
        assert sent == {first: 2, second: 1, "other": 2}
        head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        text = (await exchange(HOST, port_of(proxy.admin_url), head)).decode()
        await proxy.proxy.reload(proxy.proxy.settings)  # a reload keeps them
        again = (await exchange(HOST, port_of(proxy.admin_url), head)).decode()
    labels = 'route="exports",method="POST",code="202",origin="upstream"'
    for told in (text, again):
        assert f'export_proxy_requests_total{{account="{first}",{labels}}} 2.0' in told
        assert f'export_proxy_requests_total{{account="other",{labels}}} 2.0' in told
