"""Crowds of exports at once, by the clients that people use: each is served, none is refused.

A client is a program of its own. It logs in, asks for all exports at once, and prints how many of
them were accepted.
"""

import asyncio
import sys
import time
from pathlib import Path

import pytest

from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from tests.conftest import needs, program
from tests.kit.listener import HOST
from tests.kit.process import unmeasured
from tests.kit.proxy import proxy_for

SDK = Path(__file__).parent.parent.parent / "build" / "javascript" / "node_modules"
COUNT = 180
INTERVAL = 0.02
LENIENT = 10.0  # seconds: such an API refuses nobody
SECRET = "not-a-secret"

PYTHON_SDK = """
from concurrent.futures import ThreadPoolExecutor
from sys import argv
import PureCloudPlatformClientV2 as gc

gc.configuration.host = argv[1]
client = gc.api_client.ApiClient().get_client_credentials_token("one", argv[2])
api = gc.RecordingApi(client)
with ThreadPoolExecutor(60) as threads:
    jobs = threads.map(lambda number: api.post_recording_jobs({"externalId": number}), range(180))
    print(sum(job.state == "PENDING" for job in jobs))
"""

REQUESTS = """
from concurrent.futures import ThreadPoolExecutor
from sys import argv
import requests

form = {"grant_type": "client_credentials"}
login = requests.post(f"{argv[1]}/oauth/token", data=form, auth=("one", argv[2]), timeout=60)
fields = {"Authorization": f"Bearer {login.json()['access_token']}"}

def export(number):
    url = f"{argv[1]}/api/v2/recordings/exports"
    return requests.post(url, json={"number": number}, headers=fields, timeout=3700).status_code

with ThreadPoolExecutor(60) as threads:
    print(list(threads.map(export, range(180))).count(202))
"""

HTTPX = """
import asyncio
from sys import argv
import httpx

async def main():
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=argv[1], timeout=3700, limits=limits) as client:
        form = {"grant_type": "client_credentials"}
        login = await client.post("/oauth/token", data=form, auth=("one", argv[2]))
        fields = {"Authorization": f"Bearer {login.json()['access_token']}"}
        url = "/api/v2/recordings/exports"
        answers = await asyncio.gather(
            *(client.post(url, json={"number": n}, headers=fields) for n in range(180))
        )
        print([answer.status_code for answer in answers].count(202))

asyncio.run(main())
"""

AIOHTTP = """
import asyncio
from sys import argv
import aiohttp

async def main():
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=3700)
    async with aiohttp.ClientSession(argv[1], connector=connector, timeout=timeout) as session:
        form = {"grant_type": "client_credentials"}
        auth = aiohttp.BasicAuth("one", argv[2])
        async with session.post("/oauth/token", data=form, auth=auth) as login:
            token = (await login.json())["access_token"]

        async def export(number):
            fields = {"Authorization": f"Bearer {token}"}
            url = "/api/v2/recordings/exports"
            async with session.post(url, json={"number": number}, headers=fields) as answer:
                return answer.status

        print((await asyncio.gather(*(export(n) for n in range(180)))).count(202))

asyncio.run(main())
"""

JAVASCRIPT_SDK = """
const gc = require("purecloud-platform-client-v2");
const [url, secret] = process.argv.slice(2);
const client = gc.ApiClient.instance;
const { hostname, port } = new URL(url);
client.setGateway({ host: hostname, protocol: "http", port: Number(port) });
client.timeout = 3700 * 1000;
(async () => {
  await client.loginClientCredentialsGrant("one", secret);
  const api = new gc.RecordingApi();
  const numbers = [...Array(180).keys()];
  const jobs = await Promise.all(
    numbers.map((number) => api.postRecordingJobs({ externalId: String(number) })),
  );
  console.log(jobs.filter((job) => job.state === "PENDING").length);
})();
"""


async def run(*command: str, environ: dict[str, str]) -> str:
    """Run a client until it ends well; return what it printed."""
    child = await asyncio.create_subprocess_exec(
        *command,
        env={**unmeasured(), **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(180):  # to import the SDK alone takes ten seconds
        said, complaint = await child.communicate()
    assert child.returncode == 0, complaint.decode()
    return said.decode().strip()


async def accepted_of(script: str, suffix: str, folder: Path) -> tuple[str, Simulator]:
    """Let a client loose on a proxy as it comes; what it printed, and what the API saw."""
    settings = SimulatorSettings(
        interval=INTERVAL,
        tolerance=LENIENT,
        any_client=True,
        any_client_spec=ClientSpec(secret=SECRET, opaque=True),
    )
    simulator = Simulator(settings, monotonic=time.monotonic, wall=time.time)
    file = folder / f"client{suffix}"
    file.write_text(script, encoding="utf-8")
    runtime = str(program("node")) if suffix == ".js" else sys.executable
    environ = {"HOME": str(folder), "NODE_PATH": str(SDK)}
    async with (
        simulator.serve(HOST) as api,
        proxy_for(api.url, pacing={"interval": INTERVAL}) as proxy,
    ):
        printed = await run(runtime, str(file), proxy.url, SECRET, environ=environ)
    return printed, simulator


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(PYTHON_SDK, id="sdk", marks=pytest.mark.needs("PureCloudPlatformClientV2")),
        pytest.param(REQUESTS, id="requests", marks=pytest.mark.needs("requests")),
        pytest.param(HTTPX, id="httpx", marks=pytest.mark.needs("httpx")),
        pytest.param(AIOHTTP, id="aiohttp"),
        pytest.param(JAVASCRIPT_SDK, id="javascript", marks=pytest.mark.needs("node")),
    ],
)
async def test_each_export_of_a_crowd_is_accepted_once(script: str, tmp_path: Path) -> None:
    is_javascript = script is JAVASCRIPT_SDK
    if is_javascript and not SDK.exists():
        needs("the JavaScript SDK: make build/javascript/node_modules")
    printed, simulator = await accepted_of(script, ".js" if is_javascript else ".py", tmp_path)
    report = simulator.report("one")
    assert printed == str(COUNT)
    assert (report.exports, report.refused, report.duplicates) == (COUNT, 0, {})
