"""Who may use the admin port: tables of Host, Origin, Sec-Fetch-Site and token, over raw sockets.

A browser is how strangers reach a port on loopback: by a page's own requests (Fetch Metadata,
RFC 6454) or by a name that was rebound to the address (CWE-346, CWE-350).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.service.lifecycle import Running
from tests.e2e.hostile import incoming
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for
from tests.kit.upstream import RawUpstream

ACCOUNT = {"name": "london", "client_id": "id", "client_secret": "planted-client-secret"}
TOKEN = "planted-admin-token"
REFRESH = "/accounts/nobody/refresh"


async def ask(proxy: Running, method: str, path: str, fields: Mapping[str, str]) -> Response:
    lines = [f"{name}: {value}" for name, value in {"Host": "localhost", **fields}.items()]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Content-Length: 0", "", ""])
    port = port_of(proxy.admin_url)
    return parse_response(await exchange(HOST, port, head.encode("latin-1")), method)


async def status(
    method: str, path: str, fields: Mapping[str, str], admin: Mapping[str, Any]
) -> tuple[int, bytes]:
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, admin={"port": 0, **admin}) as proxy,
    ):
        answer = await ask(proxy, method, path, fields)
    assert answer.values("Access-Control-Allow-Origin") == []
    assert answer.values("Server") == []
    return answer.status, answer.body


HOSTS = {
    "localhost": 200,
    "LOCALHOST:9180": 200,
    "127.0.0.1": 200,
    "10.1.2.3:9180": 200,
    "[::1]:9180": 200,
    "ops.example": 200,  # configured
    "OPS.example:1": 200,
    "evil.example": 403,
    "evil.example:9180": 403,
    "localhost.evil.example": 403,
    "127.0.0.1.evil.example": 403,
    "localhost.": 403,
    "2130706433": 403,  # an address to some, and a name to others
    "0x7f.1": 403,
    "127.0.0.1:80:80": 403,
    "user@localhost": 403,
    "": 403,
}


@pytest.mark.parametrize("host", HOSTS)
async def test_the_name_asked_for_is_an_address_or_known(host: str) -> None:
    for path in ("/healthz", "/metrics"):
        answered, body = await status(
            "GET", path, {"Host": host}, {"allowed_hosts": ["Ops.example"]}
        )
        assert answered == HOSTS[host]
        assert (b"export_proxy" in body) == (answered == 200 and path == "/metrics")


async def test_a_probe_without_host_is_answered() -> None:
    """A plain health check in HTTP/1.0 sends none; a browser, whose name may be rebound, always."""
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        raw = await exchange(HOST, port_of(proxy.admin_url), b"GET /readyz HTTP/1.0\r\n\r\n")
    assert parse_response(raw).status == 200


SITES: list[tuple[dict[str, str], int]] = [
    ({}, 200),
    ({"Sec-Fetch-Site": "none"}, 200),  # typed by a person
    ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
    ({"Sec-Fetch-Site": "cross-site, same-origin"}, 403),
    ({"Sec-Fetch-Site": ""}, 403),
    ({"Origin": "http://localhost"}, 200),
    ({"Origin": "http://LOCALHOST"}, 200),
    ({"Origin": "http://localhost:9180", "Host": "localhost:9180"}, 200),
    ({"Origin": "http://localhost:8000", "Host": "localhost:9180"}, 403),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "http://localhost.evil.example"}, 403),
    ({"Origin": "http://localhost@evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": ""}, 403),
    ({"Origin": "http://["}, 403),
    ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
]


@pytest.mark.parametrize(("fields", "expected"), SITES, ids=[str(fields) for fields, _ in SITES])
async def test_no_other_site_is_answered(fields: dict[str, str], expected: int) -> None:
    """Neither what it may read nor what it may change; a POST then finds no such account."""
    assert (await status("GET", "/status.json", fields, {}))[0] == expected
    changed, _ = await status("POST", REFRESH, fields, {})
    assert changed == (404 if expected == 200 else 403)


TOKENS = {
    f"Bearer {TOKEN}": 404,  # let in: there is no such account
    f"bearer {TOKEN}": 401,
    f"Bearer {TOKEN}x": 401,
    f"Bearer {TOKEN[:-1]}": 401,
    f"Bearer  {TOKEN}": 401,
    f"Basic {TOKEN}": 401,
    TOKEN: 401,
    "Bearer ": 401,
    "Bearer \xff": 401,
    "": 401,
}


@pytest.mark.parametrize("shown", TOKENS)
async def test_off_loopback_a_change_needs_the_token(shown: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    admin = {"host": "0.0.0.0", "token_file": str(tmp_path / "token")}
    answered, body = await status("POST", REFRESH, {"Authorization": shown}, admin)
    assert answered == TOKENS[shown]
    assert (body == b"No such managed account; none is configured.\n") == (answered == 404)
    assert TOKEN.encode() not in body
    assert (await status("GET", "/status.json", {}, admin))[0] == 200


@pytest.mark.parametrize("content", [None, "", "\n", "\xff"], ids=["no file", "empty", "line", "x"])
async def test_a_token_file_that_says_nothing_lets_nobody_in(
    content: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes((content or "").encode("latin-1"))
    admin = {"host": "0.0.0.0", "token_file": str(path)}
    async with RawUpstream() as upstream, proxy_for(upstream.url, admin=admin) as proxy:
        if content is None:
            path.unlink()
        for shown in ("Bearer ", "Bearer", ""):
            assert (await ask(proxy, "POST", REFRESH, {"Authorization": shown})).status == 401


async def test_off_loopback_without_a_token_there_is_nothing_to_change() -> None:
    """And no way to tell that there could be."""
    admin = {"host": "0.0.0.0"}
    shown = {"Authorization": f"Bearer {TOKEN}"}
    for path in (REFRESH, "/-/reload", "/nowhere"):
        assert await status("POST", path, shown, admin) == (404, b"Not found.\n")
    assert (await status("GET", "/healthz", {}, admin))[0] == 200


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{table}: {name}")
        for table, rows in incoming.TABLES.items()
        for name, row in rows.items()
        if row.closes
    ],
)
async def test_the_admin_port_reads_no_head_in_two_ways_either(
    row: incoming.Row, caplog: pytest.LogCaptureFixture
) -> None:
    """What is refused on the listen port does no harm here, and is not repeated."""
    caplog.set_level(logging.DEBUG)
    method = row.sent.partition(b" ")[0].decode("latin-1")
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits={"max_header": incoming.MAX_HEADER}) as proxy,
    ):
        port = port_of(proxy.admin_url)
        raw = await exchange(HOST, port, row.sent)
    assert parse_response(raw, method).status in {400, 403, 404, 405, 417, 431}
    assert incoming.SECRET not in raw
    assert incoming.SECRET.decode() not in caplog.text
    assert b"Server:" not in raw
    assert upstream.requests == []


async def test_the_admin_port_tells_no_secret() -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=[ACCOUNT]) as proxy:
        pages = [
            await ask(proxy, "GET", path, {})
            for path in ("/metrics", "/status.json", "/status", "/accounts/london", "/x")
        ]
    assert "london" in json.loads(pages[1].body)["accounts"][0]["name"]
    assert all(b"planted" not in repr(page).encode() for page in pages)
