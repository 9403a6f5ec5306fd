"""The admin port as a server: its methods and paths, and what it does with odd requests."""

import json
from typing import Any

import pytest

from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for, settings_for
from tests.kit.upstream import RawUpstream

ACCOUNTS = [{"name": "london", "client_id": "id"}, {"name": "a.b_c-d", "client_id": "id-2"}]
PAUSE = "/accounts/london/pause"


async def ask(
    proxy: Running, method: str, target: str, *fields: str, body: bytes = b""
) -> Response:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields, "", ""]
    raw = await exchange(HOST, port_of(proxy.admin_url), "\r\n".join(lines).encode() + body)
    return parse_response(raw, method)


def kind_of(answer: Response) -> list[bytes]:
    return [value.partition(b";")[0] for value in answer.values("Content-Type")]


METHODS = {
    "/": b"GET,HEAD",
    "/metrics": b"GET,HEAD",
    "/status.json": b"GET,HEAD",
    "/accounts/london": b"GET,HEAD",
    PAUSE: b"POST",
    "/-/reload": b"POST",
}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
async def test_a_method_that_a_path_does_not_have_is_told_those_that_it_has(method: str) -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=ACCOUNTS) as proxy:
        for path, allow in METHODS.items():
            answer = await ask(proxy, method, path)
            if method.encode() in allow.split(b","):
                assert answer.status != 405
            else:
                assert (answer.status, answer.values("Allow")) == (405, [allow])


async def test_head_is_answered_as_get_without_the_body() -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=ACCOUNTS) as proxy:
        for path in ("/", "/healthz", "/status", "/openapi.json", "/accounts/london", "/nowhere"):
            got, head = [await ask(proxy, method, path) for method in ("GET", "HEAD")]
            assert (head.status, head.body) == (got.status, b"")
            for field in ("Content-Type", "Content-Length", "Location"):
                assert head.values(field) == got.values(field)


TARGETS = {
    "/status.json?x=1": 200,
    "http://localhost/status.json": 200,
    "/accounts/a.b_c-d": 200,
    "/accounts/%6Condon": 200,
    "/status/": 404,
    "/STATUS": 404,
    "/accounts": 404,
    "/accounts/LONDON": 404,
    "/accounts/london/": 404,
    "/accounts/london;x": 404,
    "/accounts/a%2Fb": 400,
    "/accounts/../status": 400,
    "/x/%2e%2e/status": 400,
    "//status": 400,
    "/%zz": 400,
}


@pytest.mark.parametrize("target", TARGETS)
async def test_a_path_has_one_spelling(target: str) -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=ACCOUNTS) as proxy:
        assert (await ask(proxy, "GET", target)).status == TARGETS[target]


async def test_requests_of_one_connection_are_answered_in_turn() -> None:
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url) as proxy,
        await RawConnection.open(HOST, port_of(proxy.admin_url)) as caller,
    ):
        get = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        paths = ("/healthz", "/nowhere", "/readyz", "/metrics", "/healthz")
        await caller.send("".join(get.format(path) for path in paths).encode())
        assert [(await caller.read_response()).status for _ in paths] == [200, 404, 200, 200, 200]


# Bodies


async def test_an_order_whose_body_does_not_come_is_given_up() -> None:
    """And nothing is ordered."""
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, accounts=ACCOUNTS, limits={"body_timeout": 0.3}) as proxy,
    ):
        answer = await ask(proxy, "POST", PAUSE, "Content-Length: 9", body=b"{}")
        assert (answer.status, kind_of(answer)) == (408, [b"application/problem+json"])
        assert answer.values("Connection") == [b"close"]
        assert await is_paused(proxy) is False


async def is_paused(proxy: Running) -> bool:
    accounts = json.loads((await ask(proxy, "GET", "/status.json")).body)["accounts"]
    return any(account["paused"] for account in accounts)


BODIES: dict[str, tuple[list[str], bytes, int]] = {
    "as long as allowed": (["Content-Length: 1048576"], b" " * 1_048_576, 200),
    "too long": (["Content-Length: 1048577"], b" " * 1_048_577, 413),
    "announced too long": (["Content-Length: 99999999999"], b"", 413),
    "chunked": (["Transfer-Encoding: chunked"], b"2\r\n{}\r\n0\r\n\r\n", 200),
    "badly chunked": (["Transfer-Encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n", 400),
    "another coding": (["Transfer-Encoding: gzip"], b"{}", 400),
    "asking first": (["Expect: 100-continue", "Content-Length: 2"], b"{}", 200),
    "expecting more": (["Expect: the-unexpected", "Content-Length: 2"], b"{}", 417),
}


@pytest.mark.parametrize("case", BODIES)
async def test_an_order_is_read_whole_or_refused(case: str) -> None:
    """Though the limits of the listen port are other ones; the refusal arrives in any case."""
    fields, body, status = BODIES[case]
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, accounts=ACCOUNTS, limits={"max_body": 10}) as proxy,
    ):
        answer = await ask(proxy, "POST", PAUSE, *fields, body=body)
        assert answer.status == status
        assert await is_paused(proxy) is (status == 200)
    if status != 200:
        assert kind_of(answer) == [b"application/problem+json"]
        assert answer.values("Connection") == [b"close"]


async def test_a_body_that_no_handler_reads_is_never_a_request() -> None:
    inner = b"POST /accounts/london/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    head = b"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=ACCOUNTS) as proxy:
        raw = await exchange(HOST, port_of(proxy.admin_url), head % len(inner) + inner)
        assert raw.count(b"HTTP/1.1 ") == 1
        assert await is_paused(proxy) is False


# Limits


async def test_a_reload_changes_what_a_head_may_have() -> None:
    long = f"X-Long: planted{'x' * 5000}"
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:

        async def answer() -> Response:
            return await ask(proxy, "GET", "/healthz", long)

        async def obey(**limits: Any) -> None:
            await proxy.proxy.reload(settings_for(upstream.url, limits=limits))

        assert (await answer()).status == 200
        await obey(max_header=4096)
        refused = await answer()
        assert (refused.status, kind_of(refused)) == (431, [b"application/problem+json"])
        assert b"planted" not in refused.body
        await obey()
        assert (await answer()).status == 200
