"""The description of the admin port: it names what is served, and a client made from it agrees.

schemathesis drives the port with requests that fit the description and with such that do not.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from proxy.clock import SystemClock
from proxy.service.lifecycle import Running, running
from proxy.settings import ConfigError
from proxy.simulator import ClientSpec, SigningKey, Simulator, SimulatorSettings
from tests.conftest import program
from tests.kit.client import exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import unmeasured
from tests.kit.proxy import has_token, settings_for

# Not the one whose secret is refused: a client takes its 502 for an error, documented or not.
NAMES = ["london", "named", "nobody"]
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]
JSON_PATHS = ["/status.json", "/history.json", "/openapi.json", "/accounts/london"]
KEY = SigningKey.generate()


@asynccontextmanager
async def a_proxy() -> AsyncIterator[Running]:
    """With an account that has a token, one that gets none, and one that needs none."""
    clock = SystemClock()
    clients = {"id-of-london": ClientSpec(secret="s")}
    simulator = Simulator(
        SimulatorSettings(clients=clients),
        monotonic=clock.monotonic,
        wall=clock.wall,
        key=KEY,
    )
    reloads = cycle([True, False])

    async def reload() -> None:
        if not next(reloads):
            raise ConfigError(("pacing.interval: must be a number",))

    accounts = [
        {"name": "london", "client_id": "id-of-london", "client_secret": "s"},
        {"name": "rejected", "client_id": "unknown", "client_secret": "s"},
        {"name": "named", "client_id": "id-of-named"},
    ]
    async with simulator.serve(HOST) as api:
        settings = settings_for(api.url, accounts=accounts, tokens={"min_refresh_interval": 0.01})
        async with running(settings, clock, reload=reload) as proxy:
            await has_token(proxy)
            yield proxy


async def fetched(proxy: Running, path: str) -> Any:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = parse_response(await exchange(HOST, port_of(proxy.admin_url), head.encode()))
    assert answer.status == 200
    return json.loads(answer.body)


async def test_it_describes_what_is_served_and_nothing_else() -> None:
    async with a_proxy() as proxy:
        described = await fetched(proxy, "/openapi.json")
        served = {(one.path, one.method.lower()) for one in proxy.proxy.admin.endpoints.all}
    paths = described["paths"].items()
    assert {
        (path, method) for path, item in paths for method in item if method != "parameters"
    } == served


@pytest.mark.parametrize("path", JSON_PATHS, ids=[path.strip("/") for path in JSON_PATHS])
async def test_what_is_answered_fits_its_schema(path: str) -> None:
    """Every field that is answered is described, too."""
    async with a_proxy() as proxy:
        described = await fetched(proxy, "/openapi.json")
        answer = await fetched(proxy, path)
    described_path = path.replace("london", "{name}")
    operation = described["paths"][described_path]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": described["components"]}
    jsonschema.Draft202012Validator(whole).validate(answer)
    for name, value in {"AccountState": answer.get("accounts")}.items():
        if isinstance(value, list):
            known = described["components"]["schemas"][name]["properties"].keys()
            assert all(one.keys() == known | {"level", "notes"} for one in value)


@pytest.mark.no_cover
@pytest.mark.needs("schemathesis")
async def test_a_client_made_from_it_finds_nothing_undocumented(tmp_path: Path) -> None:
    """No undocumented status, field or type, and no error of the server."""
    command = program("schemathesis")
    assert command is not None
    async with a_proxy() as proxy:
        described = await fetched(proxy, "/openapi.json")
        for item in described["paths"].values():
            for parameter in item.get("parameters", ()):
                parameter["schema"]["enum"] = NAMES  # random names would all be unknown
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(described))
        child = await asyncio.create_subprocess_exec(
            *(command, "run", str(file), "--url", proxy.admin_url, "--no-color"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "20", "--seed", "1", "--suppress-health-check", "all"),
            *("--continue-on-failure", "--generation-database", "none"),
            cwd=tmp_path,
            env=unmeasured(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(240):
            said, _ = await child.communicate()
    assert child.returncode == 0, said.decode()
