"""Operators pause, resume and slow down accounts of running proxies, by HTTP and by command."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from proxy.cli.commands import _cli
from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import accounts_of, has_token, proxy_for, settings_for
from tests.kit.redis import redis_server
from tests.kit.replicas import STORE_TIMEOUT
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply

EXPORTS = "/api/v2/recordings/exports"
KEY = "the-key-of-london"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
LONDON = {"name": "london", "client_id": "id", "client_secret": "s", "keys": [f"sha256:{DIGEST}"]}
PARIS = {"name": "paris", "client_id": "id-2"}
ADMIN_TOKEN = "planted-admin-token"
CROWD = 100
INTERVAL = 0.02
GRANT = json.dumps({"access_token": "managed", "token_type": "bearer", "expires_in": 3600}).encode()


def reply(request: RecordedRequest) -> Reply:
    if request.target == b"/oauth/token":
        return Reply(200, [("Content-Type", "application/json")], GRANT)
    return Reply(202)


def exports(upstream: RawUpstream) -> list[str]:
    """The callers whose exports arrived, in order."""
    return [
        request.values("X-Caller")[0].decode()
        for request in upstream.requests
        if request.target == EXPORTS.encode()
    ]


@asynccontextmanager
async def serving(upstream: RawUpstream, **sections: Any) -> AsyncIterator[Running]:
    pacing = {"interval": INTERVAL, "max_in_flight": 1000, **sections.pop("pacing", {})}
    async with proxy_for(
        upstream.url, accounts=[LONDON, PARIS], pacing=pacing, **sections
    ) as proxy:
        await has_token(proxy)
        yield proxy


async def export(proxy: Running, caller: str, *fields: str) -> RawConnection:
    """Send an export, and do not wait for its answer."""
    body = f'{{"caller": "{caller}"}}'.encode()
    lines = [
        f"POST {EXPORTS} HTTP/1.1",
        "Host: h",
        f"Authorization: Bearer {KEY}",
        f"X-Caller: {caller}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    connection = await RawConnection.open(HOST, port_of(proxy.url))
    await connection.send("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def waiting(proxy: Running) -> int:
    return sum(queue.depth for queue in proxy.accounts.configured("london").queues)


async def has_waiting(proxy: Running, count: int) -> None:
    async def question() -> bool:
        return waiting(proxy) == count

    await until(question)


async def post(
    proxy: Running, path: str, document: object = None, *, token: str | None = None
) -> Response:
    body = b"" if document is None else json.dumps(document).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    head = "\r\n".join([*lines, "", ""]).encode()
    return parse_response(await exchange(HOST, port_of(proxy.admin_url), head + body), "POST")


async def are_paused(proxies: Sequence[Running], *, is_so: bool = True) -> None:
    async def question() -> bool:
        states = [(await accounts_of(one))["london"]["paused"] for one in proxies]
        return all((state is not None) is is_so for state in states)

    await until(question)


async def answers(connections: Sequence[RawConnection]) -> list[int]:
    responses = await asyncio.gather(
        *(one.read_response("POST", timeout=60) for one in connections)
    )
    for one in connections:
        one.close()
    return [response.status for response in responses]


async def test_a_hundred_wait_through_a_pause_and_a_reload_and_are_sent_in_order() -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        assert (await post(proxy, "/accounts/london/pause")).status == 200
        connections = []
        for number in range(CROWD):
            connections.append(await export(proxy, f"{number:03}"))
            await has_waiting(proxy, number + 1)
        await proxy.proxy.reload(
            settings_for(
                upstream.url,
                accounts=[PARIS, LONDON],
                pacing={"interval": INTERVAL, "max_in_flight": 1000},
            )
        )
        assert (await accounts_of(proxy))["london"]["paused"] is not None
        assert waiting(proxy) == CROWD
        assert exports(upstream) == []
        assert (await post(proxy, "/accounts/london/resume")).status == 200
        assert await answers(connections) == [202] * CROWD
        assert exports(upstream) == [f"{number:03}" for number in range(CROWD)]
        early = [
            sample.value
            for family in proxy.proxy.registry.collect()
            for sample in family.samples
            if sample.name == "export_proxy_early_sends_total"
        ]
        assert set(early) == {0}


@pytest.mark.needs("redis-server")
async def test_two_replicas_obey_what_one_of_them_is_told(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis, RawUpstream(reply) as upstream:
        store = {"url": redis.url, "replicas": 2, "timeout": STORE_TIMEOUT}
        async with serving(upstream, store=store) as one, serving(upstream, store=store) as two:
            replicas = [one, two]
            assert (await post(one, "/accounts/london/pause")).status == 200
            await are_paused(replicas)
            connections = []
            for number in range(CROWD):
                connections.append(await export(replicas[number % 2], f"{number % 2}.{number:03}"))
                await has_waiting(replicas[number % 2], number // 2 + 1)
            assert exports(upstream) == []
            assert (await post(two, "/accounts/london/resume")).status == 200
            assert await answers(connections) == [202] * CROWD
            await are_paused(replicas, is_so=False)
        sent = exports(upstream)
        assert len(sent) == len(set(sent)) == CROWD
        for replica in ("0.", "1."):
            ours = [caller for caller in sent if caller.startswith(replica)]
            assert ours == sorted(ours)


async def test_what_an_order_changes_is_answered_and_shown() -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        answer = await post(proxy, "/accounts/london/pause", {"for": 600})
        told = json.loads(answer.body)
        assert (told["name"], told["all_replicas"]) == ("london", True)
        assert 590 < told["paused"]["remaining_seconds"] <= 600
        answer = await post(proxy, "/accounts/london/interval", {"seconds": 2, "for": 60})
        told = json.loads(answer.body)
        assert (told["interval"], told["slowed"]["interval"]) == (2.0, 2.0)
        shown = (await accounts_of(proxy))["london"]
        assert shown["paused"]["since"] == told["paused"]["since"]
        assert shown["slowed"]["interval"] == 2.0
        assert [note["title"] for note in shown["notes"]] == ["paused", "slowed down"]
        assert (await accounts_of(proxy))["paris"]["paused"] is None
        head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        text = (await exchange(HOST, port_of(proxy.admin_url), head)).decode()
        assert 'export_proxy_paused{account="london"} 1.0' in text
        assert 'export_proxy_paused{account="paris"} 0.0' in text
        assert 'export_proxy_holds_total{account="london",reason="operator"} 1.0' in text
        told = json.loads((await post(proxy, "/accounts/london/resume")).body)
        assert told["paused"] is None
        assert told["slowed"] is not None


async def test_a_caller_that_cannot_outwait_a_pause_is_told_to_come_back_in_a_minute() -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        await post(proxy, "/accounts/london/pause")
        async with await export(proxy, "1", "Prefer: wait=1") as connection:
            response = await connection.read_response("POST")
        assert response.status == 429
        assert 30 <= int(response.values("Retry-After")[0]) <= 60
        problem = json.loads(response.body)
        assert problem["type"] == "urn:export-proxy:wait-expired"
        assert "An operator has paused the account." in problem["detail"]
        assert exports(upstream) == []


BAD: dict[str, tuple[str, bytes, str]] = {
    "no JSON": ("pause", b"for=60", "the body must be a JSON object"),
    "a list": ("pause", b"[60]", "the body must be a JSON object"),
    "deep": ("pause", b"[" * 100_000, "the body must be a JSON object"),
    "not a number": ("pause", b'{"for": "60"}', "for: must be a number of seconds"),
    "NaN": ("pause", b'{"for": NaN}', "for: must be a number of seconds"),
    "too long": ("pause", b'{"for": 86401}', "for: must be above 0 and at most 86400"),
    "a field": ("resume", b'{"for": 1}', "'for': unknown field; none is known"),
    "no interval": ("interval", b"", "seconds: is required"),
    "no end": ("interval", b'{"seconds": 1}', "for: is required"),
    "shorter": (
        "interval",
        b'{"seconds": 0.01, "for": 60}',
        "seconds: must not be below the configured interval of 0.02",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_order_is_refused_and_names_the_field(case: str) -> None:
    action, body, message = BAD[case]
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        head = f"POST /accounts/london/{action} HTTP/1.1\r\nHost: localhost\r\n"
        raw = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        answer = parse_response(await exchange(HOST, port_of(proxy.admin_url), raw), "POST")
        assert (answer.status, answer.body.decode()) == (422, f"{message}\n")
        account = (await accounts_of(proxy))["london"]
        assert (account["paused"], account["slowed"]) == (None, None)


@pytest.mark.parametrize("action", ["pause", "resume", "interval"])
async def test_an_unknown_account_is_answered_with_the_known_ones(action: str) -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        answer = await post(proxy, f"/accounts/berlin/{action}")
    assert (answer.status, answer.body) == (404, b"No such account; known: london, paris.\n")


async def test_an_order_for_an_account_that_is_removed_meanwhile_is_not_obeyed() -> None:
    head = b"POST /accounts/london/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    async with (
        RawUpstream(reply) as upstream,
        serving(upstream) as proxy,
        await RawConnection.open(HOST, port_of(proxy.admin_url)) as operator,
    ):
        london = proxy.accounts.configured("london")
        await operator.send(head + b"{")
        await accounts_of(proxy)  # the order's head was read before
        chosen = proxy.proxy.settings.model_copy(update={"accounts": ()})
        await proxy.proxy.reload(chosen)
        await operator.send(b"}")
        answer = await operator.read_response("POST")
        is_paused = london.allowance.control.is_paused(proxy.proxy.clock.monotonic())
    assert (answer.status, is_paused) == (404, False)


@pytest.mark.parametrize("label", ["client:2634c48d", "other"])
async def test_the_label_of_an_unconfigured_client_is_told_why_it_obeys_no_order(
    label: str,
) -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        code, line = await run("pause", label, "--url", proxy.admin_url)
    assert code == 2
    assert line.endswith(
        "answers 404: No such account; known: london, paris. Only configured accounts obey orders:"
        " a `name` and the `client_id` in `accounts` are enough."
    )


async def test_each_order_is_one_line_of_the_log() -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        with capture_logs() as lines:
            await post(proxy, "/accounts/london/pause")
            await post(proxy, "/accounts/london/resume")
            await post(proxy, "/accounts/london/interval", {"seconds": 1, "for": 60})
            await post(proxy, "/accounts/london/interval", {"seconds": 0.001, "for": 60})
            await post(proxy, "/accounts/berlin/pause")
    told = [line for line in lines if line["event"] == "operator action"]
    assert [(one["action"], one["account"], one["outcome"], one["code"]) for one in told] == [
        ("pause", "london", "done", 200),
        ("resume", "london", "done", 200),
        ("interval", "london", "done", 200),
        ("interval", "london", "refused", 422),
        ("pause", None, "refused", 404),
    ]


# The commands


async def run(*arguments: str) -> tuple[int, str]:
    with capture_logs():  # the proxy logs to the same output
        result = await asyncio.to_thread(CliRunner().invoke, _cli, list(arguments))
    return result.exit_code, " ".join(result.output.split())


async def test_the_commands_give_orders() -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        url = ["--url", proxy.admin_url]
        assert await run("pause", "london", *url) == (
            0,
            "london: paused until it is resumed, interval 0.02 s",
        )
        assert (await accounts_of(proxy))["london"]["paused"] is not None
        code, line = await run("pause", "london", "--for", "3600", *url)
        assert code == 0
        assert re.fullmatch(r"london: paused for 60 min, interval 0\.02 s", line)
        code, line = await run("pace", "london", "--seconds", "2", "--for", "600", *url)
        assert (code, line) == (0, "london: paused for 60 min, interval 2 s for 10 min")
        code, line = await run("resume", "london", *url)
        assert (code, line) == (0, "london: not paused, interval 2 s for 10 min")
        assert (await accounts_of(proxy))["london"]["paused"] is None


async def test_a_command_that_is_not_obeyed_says_why() -> None:
    async with RawUpstream(reply) as upstream, serving(upstream) as proxy:
        url = ["--url", proxy.admin_url]
        code, line = await run("pause", "berlin", *url)
        assert code == 2
        assert line.endswith("answers 404: No such account; known: london, paris.")
        code, line = await run("pace", "london", "--seconds", "0.001", "--for", "60", *url)
        assert code == 2
        assert "seconds: must not be below the configured interval of 0.02" in line


async def test_off_loopback_an_order_needs_the_admin_token(tmp_path: Path) -> None:
    file, wrong = tmp_path / "token", tmp_path / "wrong"
    file.write_text(f"{ADMIN_TOKEN}\n")
    wrong.write_text("another\n")
    admin = {"host": "0.0.0.0", "token_file": str(file)}
    async with RawUpstream(reply) as upstream, serving(upstream, admin=admin) as proxy:
        for action in ("pause", "resume", "interval"):
            answer = await post(proxy, f"/accounts/london/{action}", {"seconds": 1, "for": 60})
            assert answer.status == 401
        url = ["--url", f"http://{HOST}:{port_of(proxy.admin_url)}"]
        code, line = await run("pause", "london", *url)
        assert code == 2
        assert line.endswith("answers 401: The admin token is needed.")
        assert (await run("pause", "london", "--token-file", str(wrong), *url))[0] == 2
        assert (await accounts_of(proxy))["london"]["paused"] is None
        assert (await run("pause", "london", "--token-file", str(file), *url))[0] == 0
        assert (await accounts_of(proxy))["london"]["paused"] is not None
        assert (await run("resume", "london", "--token-file", str(file), *url))[0] == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the admin token cannot be read: No such file or directory"),
        (b"\xff", "the admin token cannot be read: it is not UTF-8 text"),
        (b"a\nb", "the admin token cannot be used: it is more than one line of text"),
    ],
    ids=["no file", "bytes", "lines"],
)
async def test_a_token_file_of_no_use_is_told(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    url = "http://127.0.0.1:9"
    assert await run("pause", "london", "--url", url, "--token-file", str(file)) == (2, reason)


@pytest.mark.needs("redis-server")
async def test_an_order_while_the_store_is_down_says_so(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis, RawUpstream(reply) as upstream:
        store = {"url": redis.url, "replicas": 2, "timeout": STORE_TIMEOUT}
        async with serving(upstream, store=store) as proxy:
            await redis.kill()
            code, line = await run("pause", "london", "--url", proxy.admin_url)
            assert code == 0
            assert line.endswith("; the store is down, so the other replicas obey when it is back")
            assert (await accounts_of(proxy))["london"]["paused"] is not None
