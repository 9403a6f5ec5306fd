"""The whole proxy in the test's own loop, on real sockets and real time."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from proxy.app import Running, running
from proxy.clock import SystemClock
from proxy.settings import Settings

TOKEN = "not-a-jwt-and-nobody-knows-it"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def settings_for(upstream_url: str, **sections: Mapping[str, Any] | list[Any]) -> Settings:
    """Settings of a proxy in front of that server, on free ports; `sections` override keys."""
    document: dict[str, Any] = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "upstream": {"api_url": upstream_url, "login_url": upstream_url},
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            document[name] = {**document.get(name, {}), **section}
        else:
            document[name] = section
    return Settings.model_validate(document)


@asynccontextmanager
async def proxy_for(
    upstream_url: str, **sections: Mapping[str, Any] | list[Any]
) -> AsyncIterator[Running]:
    """Run a proxy in front of that server."""
    async with running(settings_for(upstream_url, **sections), SystemClock()) as proxy:
        yield proxy
