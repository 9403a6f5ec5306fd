"""A proxy that only observes, in front of the simulated API, and its switch to keeping the pace."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as read_text
from structlog.testing import capture_logs

from proxy.service.lifecycle import Running
from proxy.service.process import warn_of_observing
from proxy.simulator.app import Simulator
from proxy.simulator.settings import VOICE_SCOPE, ClientSpec, SimulatorSettings
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import accounts_of, has_token, proxy_for, settings_for
from tests.kit.stalls import noting_stalls

EXPORTS = "/api/v2/recordings/exports"
INTERVAL = 0.5
CLIENT, SECRET, KEY = "client-of-london", "secret-of-london", "key-of-london"
LONDON = {
    "name": "london",
    "client_id": CLIENT,
    "client_secret": SECRET,
    "keys": [f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"],
}
LABELS = {"account": "london", "route": "exports"}


def pacing(mode: str) -> dict[str, Any]:
    return {"interval": INTERVAL, "mode": mode}


@asynccontextmanager
async def observed() -> AsyncIterator[tuple[Simulator, Running, str]]:
    spec = ClientSpec(secret=SECRET, scopes=frozenset({VOICE_SCOPE}))
    options = SimulatorSettings(interval=INTERVAL, clients={CLIENT: spec})
    api = Simulator(options, monotonic=monotonic, wall=time)
    async with (
        api.serve(HOST) as server,
        proxy_for(server.url, accounts=[LONDON], pacing=pacing("observe")) as proxy,
    ):
        await has_token(proxy)
        yield api, proxy, server.url


async def export(proxy: Running, number: int) -> Response:
    body = json.dumps({"channel": "voice", "number": number}).encode()
    head = (
        f"POST {EXPORTS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    raw = await exchange(HOST, port_of(proxy.url), head.encode() + body, timeout=60)
    return parse_response(raw, "POST")


async def get(proxy: Running, path: str) -> str:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    raw = await exchange(HOST, port_of(proxy.admin_url), head)
    return parse_response(raw).body.decode()


async def metric(proxy: Running, name: str) -> float:
    found = [
        sample.value
        for family in read_text(await get(proxy, "/metrics"))
        for sample in family.samples
        if sample.name == f"export_proxy_{name}" and sample.labels == LABELS
    ]
    return sum(found)


@pytest.mark.timed
async def test_ten_at_once_leave_at_once() -> None:
    async with noting_stalls() as stalls, observed() as (api, proxy, _):
        responses = await asyncio.gather(*(export(proxy, number) for number in range(10)))
        arrivals = [one.at for one in api.arrivals(CLIENT) if one.paced]
        assert len(arrivals) == 10  # none is sent again
        assert max(arrivals) - min(arrivals) <= 0.1 + stalls.total
    assert {response.status for response in responses} <= {202, 429}


async def test_metrics_and_status_say_what_enforcing_would_have_done() -> None:
    async with observed() as (_, proxy, _):
        assert "NOT PACING" in await get(proxy, "/readyz")
        responses = await asyncio.gather(*(export(proxy, number) for number in range(10)))
        refused = [one for one in responses if one.status == 429]
        assert all(one.values("Retry-After") for one in refused)
        assert not [one for one in refused if b"problem" in one.values("Content-Type")[0]]  # theirs
        assert await metric(proxy, "would_wait_seconds_count") == 10
        assert await metric(proxy, "would_wait_seconds_sum") > 0
        assert await metric(proxy, "would_refuse_total") == 0
        assert await metric(proxy, "queue_depth") == 0
        account = (await accounts_of(proxy))["london"]
        assert account["observed"] is True
        assert "observed only" in {note["title"] for note in account["notes"]}
        assert not [note for note in account["notes"] if "on hold" in note["title"]]
        status = json.loads(await get(proxy, "/status.json"))
        assert status["observed"] == ["london", "other"]


async def test_enforcing_by_a_reload_is_seamless() -> None:
    """What comes after it keeps the pace, whatever was sent before, and the API takes all of it."""
    async with observed() as (_, proxy, url):
        await asyncio.gather(*(export(proxy, number) for number in range(5)))
        settings = settings_for(url, accounts=[LONDON], pacing=pacing("enforce"))
        await proxy.proxy.reload(settings)
        assert await get(proxy, "/readyz") == "ready\n"
        responses = await asyncio.gather(*(export(proxy, number) for number in range(10, 14)))
        assert [response.status for response in responses] == [202] * 4
        assert (await accounts_of(proxy))["london"]["observed"] is False
        assert await metric(proxy, "early_sends_total") == 0


async def test_one_account_may_be_observed_alone() -> None:
    accounts = [{**LONDON, "mode": "observe"}, {"name": "paris", "client_id": "id-2"}]
    async with proxy_for("http://127.0.0.1:9", accounts=accounts) as proxy:
        assert await get(proxy, "/readyz") == (
            "ready, but NOT PACING: the pace is only observed, for london\n"
        )
        by_name = await accounts_of(proxy)
        assert (by_name["london"]["observed"], by_name["paris"]["observed"]) == (True, False)


@pytest.mark.parametrize(
    ("mode", "own", "warned"),
    [
        ("enforce", None, None),
        ("enforce", "observe", (["london"], False)),
        ("observe", None, (["london"], True)),
        ("observe", "enforce", ([], True)),
    ],
    ids=str,
)
def test_the_log_warns_of_a_pace_that_is_not_kept(
    mode: str, own: str | None, warned: tuple[list[str], bool] | None
) -> None:
    account = {**LONDON, "mode": own}
    with capture_logs() as lines:
        warn_of_observing(settings_for("http://h", accounts=[account], pacing=pacing(mode)))
    assert [(line["accounts"], line["others"]) for line in lines] == ([warned] if warned else [])
