"""The vendor's own Python SDK through the proxy: its base URL changed, and nothing else.

It knows nothing of a pace, has no timeout, and re-sends whatever carries Retry-After or is dropped.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import urllib3
from yarl import URL

from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from tests.kit.client import port_of
from tests.kit.fault_proxy import FaultProxy, Pass, ResetAfter
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import proxy_for
from tests.kit.upstream import RawUpstream, ReadThenReset

PACKAGE = "PureCloudPlatformClientV2"
INTERVAL = 0.1
SECRET = "not-a-secret"
pytestmark = pytest.mark.needs(PACKAGE)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, with no configuration file of the user's in sight."""
    monkeypatch.setenv("HOME", str(tmp_path))
    package: Any = import_module(PACKAGE)
    original = package.configuration.host
    yield package
    package.configuration.host = original


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
