"""What is doubtful in a configuration that works: keys that undo each other, and risks."""

from math import inf
from typing import Any

import pytest

from proxy.service.doubts import doubts_about, loops
from proxy.settings import Settings

HTTPS = {"api_url": "https://api.example", "login_url": "https://login.example"}


def settings_of(**sections: Any) -> Settings:
    upstream = {**HTTPS, **sections.pop("upstream", {})}
    return Settings.model_validate({"upstream": upstream, **sections})


def doubted(descriptors: float = inf, **sections: Any) -> list[str]:
    """The keys that are doubted."""
    found = doubts_about(settings_of(**sections), descriptors=descriptors, reserved=64)
    return [doubt.partition(": ")[0] for doubt in found]


def test_the_defaults_are_not_doubted() -> None:
    assert doubted() == []


LONDON = {"name": "london", "client_id": "id"}


@pytest.mark.parametrize(
    ("sections", "keys"),
    [
        ({"pacing": {"max_wait": 0.4}}, ["pacing.max_wait"]),
        ({"pacing": {"max_wait": 0.5}}, []),
        ({"accounts": [{**LONDON, "interval": 4000}]}, ["accounts[0].interval"]),
        ({"pacing": {"max_queue": 700}}, ["pacing.max_queue"]),
        ({"pacing": {"max_queue": 720}}, []),
        ({"pacing": {"max_wait": 15, "max_queue": 301}}, ["pacing.max_queue"]),
        ({"pacing": {"max_wait": 15, "max_queue": 300}}, []),
        ({"pacing": {"max_wait": 15}}, []),
        ({"limits": {"max_connections": 9999}}, ["limits.max_connections"]),
        ({"limits": {"max_connections": 10_000}}, []),
        ({"pacing": {"max_queue": 12_001}}, ["limits.max_connections"]),
        ({"limits": {"drain_timeout": 61}}, ["limits.drain_timeout"]),
        ({"limits": {"drain_timeout": 62}}, []),
        ({"upstream": {"response_timeout": 24}}, ["limits.drain_timeout"]),
        ({"upstream": {"response_timeout": 23}}, []),
        (
            {"limits": {"drain_delay": 0.4, "drain_timeout": 99}},
            ["limits.drain_delay"],
        ),
        ({"store": {"replicas": 2}}, ["store.replicas"]),
        ({"store": {"replicas": 2, "url": "redis://h:1/0"}}, []),
        ({"store": {"on_failure": "reject"}}, ["store.on_failure"]),
        ({"upstream": {"api_url": "http://api.example"}}, ["upstream.api_url"]),
        ({"upstream": {"login_url": "http://10.0.0.1:80"}}, ["upstream.login_url"]),
        ({"upstream": {"api_url": "http://127.0.0.1:9", "login_url": "http://localhost:9"}}, []),
        (
            {
                "identity": {
                    "issuer": "i",
                    "audience": "a",
                    "jwks_url": "http://keys.example/jwks",
                }
            },
            ["identity.jwks_url"],
        ),
    ],
    ids=lambda value: ",".join(value) or "fine" if isinstance(value, list) else None,
)
def test_what_undoes_another_key_or_is_a_risk_is_named(
    sections: dict[str, Any], keys: list[str]
) -> None:
    assert doubted(**sections) == keys


def test_connections_that_need_more_descriptors_than_there_are_are_doubted() -> None:
    wanted = 12_000 + 1000 + 64
    assert doubted(descriptors=wanted) == []
    assert doubted(descriptors=wanted - 1) == ["limits.max_connections"]


@pytest.mark.parametrize(
    ("listen", "url", "is_loop"),
    [
        ({}, "http://127.0.0.1:8080", True),
        ({}, "http://localhost:8080", True),
        ({}, "http://localhost:8081", False),
        ({}, "http://localhost:9180", True),  # the admin port
        ({}, "http://10.0.0.7:8080", False),
        ({"host": "0.0.0.0"}, "http://10.0.0.7:8080", True),
        ({"host": "::"}, "http://[::1]:8080", True),
        ({"host": "0.0.0.0"}, "http://10.0.0.8:8080", False),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8080", True),
        ({"host": "10.0.0.7", "port": 443}, "https://10.0.0.7", True),
        ({"host": "10.0.0.7", "port": 80}, "https://10.0.0.7", False),
        ({"port": 0}, "http://localhost:8080", False),
    ],
)
def test_an_upstream_that_is_the_proxy_itself_is_found(
    listen: dict[str, Any], url: str, *, is_loop: bool
) -> None:
    settings = settings_of(listen=listen, upstream={"login_url": url})
    found = list(loops(settings, lambda host: host == "10.0.0.7"))
    assert [line.partition(":")[0] for line in found] == ["upstream.login_url"] * is_loop
