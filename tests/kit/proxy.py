"""The whole proxy in the test's own loop, on real sockets and real time."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from proxy.clock import SystemClock
from proxy.service.lifecycle import Running, running
from proxy.settings import Settings
from tests.kit.client import exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import until

TOKEN = "not-a-jwt-and-nobody-knows-it"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def settings_of(*accounts: str) -> Settings:
    """Settings of a proxy that knows these accounts."""
    return settings_for(
        "http://127.0.0.1:1", accounts=[{"name": one, "client_id": f"id-{one}"} for one in accounts]
    )


def settings_for(upstream_url: str, **sections: Mapping[str, Any] | list[Any] | None) -> Settings:
    """Settings of a proxy in front of that server, on free ports; `sections` override keys.

    It asks nobody whose a token is unless `identity` says so.
    """
    document: dict[str, Any] = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "upstream": {"api_url": upstream_url, "login_url": upstream_url},
        "identity": {"whoami": None},  # most tests count what reaches the API
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            document[name] = {**document.get(name, {}), **section}
        else:
            document[name] = section
    return Settings.model_validate(document)


@asynccontextmanager
async def proxy_for(
    upstream_url: str, **sections: Mapping[str, Any] | list[Any] | None
) -> AsyncIterator[Running]:
    """Run a proxy in front of that server."""
    async with running(settings_for(upstream_url, **sections), SystemClock()) as proxy:
        yield proxy


async def accounts_of(proxy: Running) -> dict[str, dict[str, Any]]:
    """What its status says of the accounts, by name."""
    port = port_of(proxy.admin_url)
    raw = await exchange(HOST, port, b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    accounts = json.loads(parse_response(raw).body)["accounts"]
    return {account["name"]: account for account in accounts}


async def has_token(proxy: Running, name: str = "london") -> None:
    """Wait until a managed account has one."""

    async def question() -> bool:
        return (await accounts_of(proxy))[name]["token"]["expires_in"] is not None

    await until(question)
