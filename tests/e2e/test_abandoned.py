"""An answer that is given up is broken off at once, wherever it was to go.

Over TLS an orderly close would wait for the server's, for seconds.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.service.lifecycle import Running
from tests.kit.certificates import Authority
from tests.kit.client import RawConnection, port_of
from tests.kit.endless import EndlessServer
from tests.kit.listener import HOST
from tests.kit.logins import login_request
from tests.kit.process import until
from tests.kit.proxy import proxy_for
from tests.kit.stalls import noting_stalls
from tests.kit.tokens import signed_token

pytestmark = [
    pytest.mark.timed,
    pytest.mark.parametrize(
        "kind", ["plain, writing", "plain, silent", "tls, writing", "tls, silent"]
    ),
]

WITHIN = 0.5  # seconds
JUST_TOO_LONG = 17  # chunks of 4 kB: nothing more comes once the answer is given up
ISSUER = "https://issuer.example"
clock = SystemClock()


@asynccontextmanager
async def before_an_endless_server(
    folder: Path, *, kind: str, chunks: int = JUST_TOO_LONG, **identity: Any
) -> AsyncIterator[tuple[Running, EndlessServer]]:
    """A proxy whose API, login server and issuer is one whose answers never end."""
    context, ca_file = None, None
    if kind.startswith("tls"):
        authority = Authority(folder)
        pair, ca_file = authority.issue("api"), str(authority.file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert_file, pair.key_file)
    with EndlessServer(context, silent_after=chunks if kind.endswith("silent") else 0) as server:
        if "jwks_url" in identity:
            identity["jwks_url"] = f"{server.url}/keys"
        upstream = {"ca_file": ca_file}
        async with proxy_for(server.url, upstream=upstream, identity=identity) as proxy:
            yield proxy, server


async def abandons(proxy: Running, server: EndlessServer, request: bytes, path: str) -> None:
    """Send this, leave when its answer has begun, and look when the server is told of `path`."""
    async with noting_stalls() as stalls:
        async with await RawConnection.open(HOST, port_of(proxy.url)) as caller:
            await caller.send(request)
            assert await caller.read_some()
            caller.reset()
        left = clock.monotonic()

        async def is_told() -> bool:
            return path in server.broken

        await until(is_told)
        took = server.broken[path] - left
    assert took < WITHIN + stalls.longest


def request(token: str) -> bytes:
    head = f"GET /api/v2/users HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
    return head.encode()


async def test_an_export_whose_caller_leaves_is_broken_off(tmp_path: Path, *, kind: str) -> None:
    async with before_an_endless_server(tmp_path, kind=kind, chunks=128) as (proxy, server):
        await abandons(proxy, server, request("t"), "/api/v2/users")


async def test_a_log_in_that_is_too_long_is_broken_off(tmp_path: Path, *, kind: str) -> None:
    async with before_an_endless_server(tmp_path, kind=kind) as (proxy, server):
        await abandons(proxy, server, login_request("id"), "/oauth/token")


async def test_a_word_of_the_api_that_is_too_long_is_broken_off(
    tmp_path: Path, *, kind: str
) -> None:
    whoami = "/api/v2/tokens/me"
    async with before_an_endless_server(tmp_path, kind=kind, whoami=whoami) as (proxy, server):
        await abandons(proxy, server, request("t"), whoami)


async def test_keys_that_are_too_long_are_broken_off(tmp_path: Path, *, kind: str) -> None:
    identity = {"issuer": ISSUER, "jwks_url": "", "audience": "a"}
    token = signed_token({"iss": ISSUER, "sub": "s", "aud": "a", "exp": clock.wall() + 600})
    async with before_an_endless_server(tmp_path, kind=kind, chunks=65, **identity) as (
        proxy,
        server,
    ):
        await abandons(proxy, server, request(token), "/keys")
