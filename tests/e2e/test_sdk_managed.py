"""The vendor's own Python SDK, by managed and by unknown clients: its base URL changes, no more."""

import asyncio
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE
from tests.kit.listener import HOST
from tests.kit.proxy import has_token, proxy_for

PACKAGE = "PureCloudPlatformClientV2"
INTERVAL = 0.1
SECRET = "planted-secret"
BOTH = frozenset({VOICE_SCOPE, DIGITAL_SCOPE})
pytestmark = pytest.mark.needs(PACKAGE)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, with no configuration file of the user's in sight."""
    monkeypatch.setenv("HOME", str(tmp_path))
    package: Any = import_module(PACKAGE)
    original = package.configuration.host
    yield package
    package.configuration.host = original


def script(sdk: Any, client_id: str) -> tuple[str, list[str | int]]:
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
        client.get_http_client().rest_client.pool_manager.clear()


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
            asyncio.to_thread(script, sdk, managed), asyncio.to_thread(script, sdk, unknown)
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
        client.get_http_client().rest_client.pool_manager.clear()
    assert caught.value.status == 401
    assert "invalid_client" in str(caught.value.body)
