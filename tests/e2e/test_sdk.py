"""The vendor's own Python SDK through the proxy: its base URL changed, and nothing else.

It knows nothing of a pace, has no timeout, and re-sends whatever carries Retry-After or is dropped.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import urllib3
from yarl import URL

from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE
from tests.kit.client import port_of
from tests.kit.fault_proxy import FaultProxy, Pass, ResetAfter
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import has_token, proxy_for
from tests.kit.upstream import RawUpstream, ReadThenReset

PACKAGE = "PureCloudPlatformClientV2"
INTERVAL = 0.1
SECRET = "planted-secret"
BOTH = frozenset({VOICE_SCOPE, DIGITAL_SCOPE})
pytestmark = [pytest.mark.needs(PACKAGE), pytest.mark.no_cover]


class Package:
    """The SDK, imported at its first use: in a test, while coverage is paused. It takes seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(PACKAGE), name)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with no configuration file of the user's in sight."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return Package()


@asynccontextmanager
async def api_behind_proxy(**sections: dict[str, Any]) -> AsyncIterator[tuple[Simulator, Running]]:
    simulator = Simulator(
        SimulatorSettings(
            interval=INTERVAL,
            tolerance=0.9 * INTERVAL,  # it shares a loop with the proxy and the machine with others
            any_client=True,
            any_client_spec=ClientSpec(secret=SECRET, opaque=True),
        ),
        monotonic=time.monotonic,
        wall=time.time,
    )
    async with (
        simulator.serve(HOST) as api,
        proxy_for(api.url, pacing={"interval": INTERVAL}, **sections) as proxy,
    ):
        yield simulator, proxy


def create_exports(sdk: Any, client: Any, keys: Sequence[str]) -> list[str]:
    """What a script does: one job after the other. The states of the jobs."""
    api = sdk.RecordingApi(client)
    return [api.post_recording_jobs({"externalId": key}).state for key in keys]


def close(client: Any) -> None:
    client.get_http_client().rest_client.pool_manager.clear()


async def test_only_the_base_url_changes(sdk: Any) -> None:
    """Log in, create a job, look at it, start it, cancel it."""

    def script(url: str) -> list[str]:
        sdk.configuration.host = url
        client = sdk.api_client.ApiClient().get_client_credentials_token("one", SECRET)
        try:
            api = sdk.RecordingApi(client)
            job = api.post_recording_jobs({"externalId": "k"})
            found = api.get_recording_job(job.id)
            started = api.put_recording_job(job.id, {"state": "PROCESSING"})
            api.delete_recording_job(job.id)
            return [job.state, found.state, started.state]
        finally:
            close(client)

    async with api_behind_proxy() as (simulator, proxy):
        states = await asyncio.to_thread(script, proxy.url)
        report = simulator.report("one")
    assert states == ["PENDING", "PENDING", "PROCESSING"]
    assert (report.exports, report.refused, report.accepted) == (1, 0, 4)


async def test_the_gateway_setting_with_its_prefixes(sdk: Any) -> None:
    """One host and port, a path in front of each kind of call."""

    def script(url: URL) -> list[str]:
        client = sdk.api_client.ApiClient()
        client.set_gateway(url.host, url.scheme, url.port, "login", "gc")
        client.get_client_credentials_token("one", SECRET)
        try:
            return create_exports(sdk, client, ["k1", "k2"])
        finally:
            close(client)

    listen = {"api_prefix": "/gc", "login_prefix": "/login"}
    async with api_behind_proxy(listen={"port": 0, **listen}) as (simulator, proxy):
        states = await asyncio.to_thread(script, URL(proxy.url))
        report = simulator.report("one")
    assert states == ["PENDING"] * 2
    assert (report.exports, report.duplicates, report.refused) == (2, {}, 0)


async def test_bursts_from_threads_while_someone_else_eats_the_quota(sdk: Any) -> None:
    """No exception in any thread, and every export exactly once."""
    names = ("one", "two")
    threads, each = 4, 5

    async with api_behind_proxy() as (simulator, proxy):
        sdk.configuration.host = proxy.url
        clients = {
            name: await asyncio.to_thread(
                sdk.api_client.ApiClient().get_client_credentials_token, name, SECRET
            )
            for name in names
        }
        burst = asyncio.gather(
            *(
                asyncio.to_thread(
                    create_exports,
                    sdk,
                    clients[name],
                    [f"{name}-{thread}-{n}" for n in range(each)],
                )
                for thread in range(threads)
                for name in names
            )
        )
        for _ in range(2):
            await asyncio.sleep(0.5)
            for name in names:
                simulator.eat_quota(name, 1.5)
            await asyncio.sleep(2)
        states = await burst
        for client in clients.values():
            close(client)
        reports = [simulator.report(name) for name in names]

    assert states == [["PENDING"] * each] * (threads * len(names))
    for report in reports:
        assert report.exports == threads * each
        assert report.duplicates == {}
        assert 1 <= report.refused <= 4
        assert report.tokens_minted == 1


@pytest.mark.timed
async def test_a_hold_longer_than_the_proxy_lets_wait(sdk: Any) -> None:
    """The SDK sleeps as long as the hold lasts, and is served then: one refusal, no storm."""
    async with api_behind_proxy() as (simulator, proxy):
        sdk.configuration.host = proxy.url
        client = await asyncio.to_thread(
            sdk.api_client.ApiClient().get_client_credentials_token, "one", SECRET
        )
        begun = time.monotonic()
        simulator.eat_quota("one", 2.5)
        states = await asyncio.to_thread(create_exports, sdk, client, ["k1", "k2"])
        elapsed = time.monotonic() - begun
        close(client)
        report = simulator.report("one")
    assert states == ["PENDING"] * 2
    assert (report.exports, report.duplicates) == (2, {})
    assert report.refused == report.eaten == 1
    assert 2.5 <= elapsed < 10


@asynccontextmanager
async def api_that_reads_and_resets() -> AsyncIterator[tuple[RawUpstream, Running]]:
    async with (
        RawUpstream(default=ReadThenReset()) as upstream,
        proxy_for(upstream.url, pacing={"interval": INTERVAL}) as proxy,
    ):
        yield upstream, proxy


def create_job(sdk: Any, client: Any) -> tuple[int, str]:
    """The status and problem with which the SDK ends."""
    try:
        sdk.RecordingApi(client).post_recording_jobs({"externalId": "k"})
    except sdk.rest.ApiException as error:
        return error.status, json.loads(error.body)["type"]
    finally:
        close(client)
    return 200, ""


async def test_a_connection_that_breaks_after_a_lost_answer_makes_no_double(sdk: Any) -> None:
    """The SDK sends the POST again at once; it ends with 409."""
    async with (
        api_that_reads_and_resets() as (upstream, proxy),
        FaultProxy(port_of(proxy.url), ResetAfter(0)) as network,
    ):
        sdk.configuration.host = f"http://{HOST}:{network.port}"
        client = sdk.api_client.ApiClient()
        client.access_token = "a-token"
        ending = asyncio.create_task(asyncio.to_thread(create_job, sdk, client))
        await upstream.received()
        await until_connected_again(network)
        network.mode = Pass()
        assert await ending == (409, "urn:export-proxy:in-doubt")
    assert len(upstream.requests) == 1


async def until_connected_again(network: FaultProxy) -> None:
    async def question() -> bool:
        return network.connections > 1

    await until(question)


async def test_an_sdk_that_sends_again_after_a_502_makes_no_double(sdk: Any) -> None:
    """As Go, .NET, Java and Terraform do by themselves."""
    async with api_that_reads_and_resets() as (upstream, proxy):
        sdk.configuration.host = proxy.url
        client = sdk.api_client.ApiClient()
        client.access_token = "a-token"
        pools = client.get_http_client().rest_client.pool_manager
        pools.connection_pool_kw["retries"] = urllib3.util.Retry(
            total=3, allowed_methods=None, status_forcelist=[502, 504], backoff_factor=0.1
        )
        ending = await asyncio.to_thread(create_job, sdk, client)
    assert ending == (409, "urn:export-proxy:in-doubt")
    assert len(upstream.requests) == 1


def log_in_and_export(sdk: Any, client_id: str) -> tuple[str, list[str | int]]:
    """Log in, export two calls and a chat, look at one. The token, and the jobs' states."""
    client = sdk.api_client.ApiClient().get_client_credentials_token(client_id, SECRET)
    try:
        api = sdk.RecordingApi(client)
        jobs = [
            api.post_recording_jobs({"externalId": f"{client_id}-{n}", "mediaType": media})
            for n, media in enumerate(["voice", "voice", "webchat"])
        ]
        return client.access_token, [*(job.state for job in jobs), api.get_recording_jobs().total]
    finally:
        close(client)


@pytest.mark.parametrize("is_opaque", [False, True], ids=["jwt", "opaque"])
async def test_managed_and_unknown_clients_log_in_and_export(sdk: Any, *, is_opaque: bool) -> None:
    """The managed one's chat export needs a scope that was granted after its token was minted."""
    managed, unknown = "managed", "unknown"
    simulator = Simulator(
        SimulatorSettings(
            interval=INTERVAL,
            tolerance=0.9 * INTERVAL,  # it shares a loop with the proxy and the machine with others
            clients={
                managed: ClientSpec(secret=SECRET, opaque=is_opaque),
                unknown: ClientSpec(secret=SECRET, opaque=is_opaque, scopes=BOTH),
            },
        ),
        monotonic=time.monotonic,
        wall=time.time,
    )
    async with (
        simulator.serve(HOST) as api,
        proxy_for(
            api.url,
            pacing={"interval": INTERVAL},
            tokens={"min_refresh_interval": 0.2},
            accounts=[{"name": "london", "client_id": managed, "client_secret": SECRET}],
        ) as proxy,
    ):
        sdk.configuration.host = proxy.url
        await has_token(proxy)
        await asyncio.sleep(0.2)  # now it is old enough to be replaced
        simulator.grant(managed, DIGITAL_SCOPE, propagation=0)
        outcomes = await asyncio.gather(
            asyncio.to_thread(log_in_and_export, sdk, managed),
            asyncio.to_thread(log_in_and_export, sdk, unknown),
        )
        reports = [simulator.report(name) for name in (managed, unknown)]
    for token, states in outcomes:
        assert token.count(".") == (0 if is_opaque else 2)
        assert states == ["PENDING", "PENDING", "PENDING", 3]
    for report in reports:
        assert (report.exports, report.duplicates, report.refused) == (3, {}, 0)
    assert [report.tokens_minted for report in reports] == [2, 1]
    # Of an opaque token nobody can know what it lacks: the API said so, once.
    assert [report.statuses.get(403, 0) for report in reports] == [1 if is_opaque else 0, 0]


async def test_a_wrong_secret_of_a_managed_client(sdk: Any) -> None:
    simulator = Simulator(
        SimulatorSettings(clients={"managed": ClientSpec(secret=SECRET)}),
        monotonic=time.monotonic,
        wall=time.time,
    )
    account = {"name": "london", "client_id": "managed", "client_secret": SECRET}
    async with simulator.serve(HOST) as api, proxy_for(api.url, accounts=[account]) as proxy:
        sdk.configuration.host = proxy.url
        client = sdk.api_client.ApiClient()
        with pytest.raises(sdk.rest.ApiException) as caught:
            await asyncio.to_thread(client.get_client_credentials_token, "managed", "wrong")
        close(client)
    assert caught.value.status == 401
    assert "invalid_client" in str(caught.value.body)
