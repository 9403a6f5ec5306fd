"""A real Prometheus, with the configuration and the rules that are shipped, scrapes a real run.

Whatever the dashboard and the alerts ask must be answerable: with data where the run made some, and
with nothing exactly where nothing is wrong.
"""

import asyncio
import hashlib
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from proxy.clock import SystemClock
from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for
from tests.kit.upstream import free_port

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARD = CONFIG / "grafana" / "dashboards" / "export-proxy.json"
EXPORTS = "/api/v2/recordings/exports"
VOICE = b'{"mediaType": "voice"}'
NOBODY = b"{}"
CHAT = b'{"channel": "webchat"}'
NESTED = b'{"mediaType": "voice", "options": {"legal_hold": true}}'
ACCOUNTS = ("london", "paris")
HOLD_SECONDS = 200.0
INTERVAL = 0.3  # so long that even a busy machine sends at the pace of several queues
SCRAPES = 6  # one a second: a scrape has as long as it is to the next

clock = SystemClock()

# What the run makes: a route of London is on hold for long, since the API names a wait above
# max_retry_after, and Paris lacks a scope.
FIRING = {"ExportProxyLongHold": {"london"}, "ExportProxyScopeMissing": {"paris"}}
BY_THE_MACHINE = "ExportProxyLateSends"  # a busy one may make it fire
VARIABLES = {
    "$__rate_interval": "10s",
    "$account": ".*",
    "$datasource": "prometheus",
    "$instance": ".+",
    "$job": "export-proxy",
}
STRANGERS = 10  # all of them are shown as `other`


def dashboard_queries() -> dict[str, list[str]]:
    """The queries of each panel, with the dashboard's variables filled in."""
    queries: dict[str, list[str]] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            queries.setdefault(panel["title"], []).append(query)
    return queries


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((CONFIG / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


# A run


@dataclass
class Run:
    """The proxy before the stand-in API."""

    proxy: Running
    simulator: Simulator
    callers: asyncio.TaskGroup

    async def send(self, account: str, body: bytes = VOICE) -> Response:
        return await self.send_with(f"key-of-{account}", body)

    async def send_with(self, credential: str, body: bytes) -> Response:
        head = (
            f"POST {EXPORTS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {credential}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return parse_response(
            await exchange(HOST, port_of(self.proxy.url), head.encode() + body, timeout=60)
        )

    async def keep_asking(self, token: str) -> Response:
        """Keep a queue of its own busy, as a caller of an account that is not configured."""
        while True:
            await asyncio.gather(*(self.send_with(token, NOBODY) for _ in range(3)))

    async def get_into_trouble(self) -> list[asyncio.Task[Response]]:
        """Cause every kind of traffic; return the callers that still wait."""
        for account in ACCOUNTS:
            assert (await self.send(account)).status == 202
            assert (await self.send(account)).status == 202
        assert (await self.send("paris", NESTED)).status in {202, 400, 422}
        assert (await self.send("paris", CHAT)).status == 403
        self.simulator.eat_quota("id-of-london", HOLD_SECONDS)
        return [self.callers.create_task(self.send("london")) for _ in range(3)]

    async def go_on(self) -> Response:
        """Keep Paris busy."""
        while True:
            await asyncio.gather(*(self.send("paris") for _ in range(3)))


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Run]:
    scopes = {"london": {VOICE_SCOPE, DIGITAL_SCOPE}, "paris": {VOICE_SCOPE}}
    simulator = Simulator(
        SimulatorSettings(
            interval=0.01,  # so that a stall of this machine puts nobody on hold
            clients={
                f"id-of-{name}": ClientSpec(secret="s", scopes=frozenset(held))
                for name, held in scopes.items()
            },
        ),
        monotonic=time.monotonic,
        wall=time.time,
    )
    accounts = [
        {
            "name": name,
            "client_id": f"id-of-{name}",
            "client_secret": "s",
            "keys": [f"sha256:{hashlib.sha256(f'key-of-{name}'.encode()).hexdigest()}"],
        }
        for name in ACCOUNTS
    ]
    pacing = {"interval": INTERVAL, "max_wait": 250}
    (folder / "desk.json").write_text('{"bearer": "any"}')
    async with (
        simulator.serve(HOST) as api,
        proxy_for(
            api.url,
            accounts=accounts,
            pacing=pacing,
            retry={"max_elapsed": 500, "max_retry_after": HOLD_SECONDS / 2},
            incidents={"url": api.url, "credentials_file": folder / "desk.json"},
        ) as proxy,
        asyncio.TaskGroup() as callers,
    ):
        yield Run(proxy, simulator, callers)


# Prometheus


@dataclass
class Prometheus:
    """Asks over its HTTP API."""

    url: str
    http: aiohttp.ClientSession

    async def ask(self, path: str, **parameters: str) -> Any:
        async with self.http.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            said = await answer.json()
        assert said["status"] == "success", (parameters, said)
        return said["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples an expression gives now; each has a number."""
        data = await self.ask("query", query=expression)
        assert data["resultType"] == "vector", expression
        for sample in data["result"]:
            float(sample["value"][1])
        result: list[dict[str, Any]] = data["result"]
        return result

    async def has_scraped(self, times: int) -> None:
        """Wait until it has scraped so often with success, the last time included."""
        expression = 'sum_over_time(up{job="export-proxy"}[1m]) * up{job="export-proxy"}'
        async with asyncio.timeout(60):
            while True:
                try:
                    counted = await self.query(expression)
                except aiohttp.ClientError:
                    counted = []  # not up yet
                if counted and float(counted[0]["value"][1]) >= times:
                    break
                await clock.sleep_until(clock.monotonic() + 0.1)


@asynccontextmanager
async def prometheus(folder: Path, admin_url: str) -> AsyncIterator[Prometheus]:
    """Run it with the shipped files, of which the port scraped and the haste are changed."""
    shutil.copy(CONFIG / "alerts.yml", folder)
    document = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = document["scrape_configs"]
    job["static_configs"] = [{"targets": [urlsplit(admin_url).netloc]}]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(document))
    port = free_port()
    child = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
    )
    try:
        async with aiohttp.ClientSession() as http:
            yield Prometheus(f"http://{HOST}:{port}", http)
    finally:
        child.terminate()
        await child.wait()


@pytest.mark.needs("prometheus")
async def test_every_panel_and_every_alert_says_what_the_run_was(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(running(tmp_path))
        server = await stack.enter_async_context(prometheus(tmp_path, run.proxy.admin_url))
        assert (await run.send("london")).status == 202  # so that there is something to begin with
        await server.has_scraped(1)
        waiting = await run.get_into_trouble()
        waiting.append(run.callers.create_task(run.go_on()))
        waiting += [
            run.callers.create_task(run.keep_asking(f"stranger-{number}"))
            for number in range(STRANGERS)
        ]
        answer = await run.send("paris")
        await server.has_scraped(SCRAPES)

        await check_panels(server)
        await check_shares(server)
        await check_alerts(server)
        await check_targets(server)
        await check_exemplars(server, answer)
        for task in waiting:
            task.cancel()


async def check_panels(server: Prometheus) -> None:
    queries = dashboard_queries()
    assert len(queries) > 25
    for title, expressions in queries.items():
        for expression in expressions:
            assert await server.query(expression), (title, expression)
    value = await values_of(server)
    assert value["Waiting"] >= 3
    assert value["On hold"] == 1
    assert value["Lacking a scope"] == 1
    assert value["Early sends"] == 0
    assert value["Replicas up"] == 1


async def check_shares(server: Prometheus) -> None:
    """No share is above 100 %, although several queues send under the name `other`."""
    sends = 'sum(rate(export_proxy_upstream_responses_total{account="other"}[10s]))'
    ((_, others),) = [sample["value"] for sample in await server.query(sends)]
    assert float(others) > 1.2 / INTERVAL, "the strangers sent no faster than one queue"
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shares = [
        panel["title"]
        for panel in panels
        if panel.get("fieldConfig", {}).get("defaults", {}).get("unit") == "percentunit"
    ]
    assert len(shares) >= 3
    for title in shares:
        for expression in dashboard_queries()[title]:
            values = [float(one["value"][1]) for one in await server.query(expression)]
            assert all(0 <= value <= 1 for value in values), (title, values)


async def values_of(server: Prometheus) -> Mapping[str, float]:
    """The numbers of the panels with one query that gives one."""
    found = {}
    for title, expressions in dashboard_queries().items():
        samples = await server.query(expressions[0])
        if len(expressions) == 1 and len(samples) == 1:
            found[title] = float(samples[0]["value"][1])
    return found


async def check_alerts(server: Prometheus) -> None:
    loaded = (await server.ask("rules"))["groups"][0]["rules"]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in alerts()}
    for rule in loaded:
        assert rule["health"] == "ok", rule
    for rule in alerts():
        found = await server.query(rule["expr"])
        for metric in re.findall(r"\bexport_proxy_\w+|\bup\b", rule["expr"]):
            assert await server.query(metric), (rule["alert"], metric)
        accounts = {sample["metric"].get("account") for sample in found}
        expected = FIRING.get(rule["alert"], set())
        assert accounts == expected or rule["alert"] == BY_THE_MACHINE, rule["alert"]


async def check_targets(server: Prometheus) -> None:
    (target,) = (await server.ask("targets"))["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


async def check_exemplars(server: Prometheus, answer: Response) -> None:
    """A caller's request is found by the id its answer had."""
    (request_id,) = answer.values("X-Request-Id")
    now = clock.wall()
    found = await server.ask(
        "query_exemplars",
        query='{__name__=~"export_proxy_.*_bucket"}',
        start=str(now - 60),
        end=str(now + 1),
    )
    names = {
        series["seriesLabels"]["__name__"]
        for series in found
        for exemplar in series["exemplars"]
        if exemplar["labels"]["request_id"]
    }
    assert request_id
    assert names == {
        "export_proxy_request_duration_seconds_bucket",
        "export_proxy_queue_wait_seconds_bucket",
        "export_proxy_send_lateness_seconds_bucket",
        "export_proxy_upstream_duration_seconds_bucket",
    }


# The files


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
async def test_the_files_pass_promtool(arguments: tuple[str, ...]) -> None:
    promtool = await asyncio.create_subprocess_exec(
        "promtool",
        *arguments,
        cwd=CONFIG,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await promtool.communicate()
    assert promtool.returncode == 0, said.decode()


def test_the_cluster_is_scraped_like_a_single_proxy() -> None:
    """Nothing but the targets differs, and those are the replicas, which answer to their names."""
    single = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    cluster = yaml.safe_load((CONFIG / "cluster" / "prometheus.yml").read_text())
    compose = yaml.safe_load((CONFIG.parent / "docker-compose.yml").read_text())
    replica = yaml.safe_load((CONFIG / "cluster" / "proxy.yaml").read_text())
    (targets,) = cluster["scrape_configs"][0]["static_configs"]
    names = {target.removesuffix(":9180") for target in targets["targets"]}
    assert names <= set(compose["services"])
    assert names == set(replica["admin"]["allowed_hosts"])
    cluster["scrape_configs"][0]["static_configs"] = single["scrape_configs"][0]["static_configs"]
    assert cluster == single


def test_every_alert_is_tested_and_has_a_runbook() -> None:
    tests = yaml.safe_load((CONFIG / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    quiet = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if not case["exp_alerts"]
    }
    names = {rule["alert"] for rule in alerts()}
    operations = (CONFIG.parent / "docs" / "operations.md").read_text()
    assert fired == names
    assert quiet == names
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert f"\n### {rule['alert']}\n" in operations


def test_the_dashboard_is_chosen_by_data_source_job_and_instance() -> None:
    """Every query asks for the job and the instance that were chosen, at the chosen data source."""
    dashboard = json.loads(DASHBOARD.read_text())
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "account"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            metrics = re.findall(r"\b(?:(?:export_proxy|process|python)_\w+|up)\b", target["expr"])
            chosen = target["expr"].count('{job=~"$job", instance=~"$instance"')
            assert chosen == len(metrics) > 0, target["expr"]
    shown = json.dumps(dashboard)
    assert all(name in shown for name in ("process_cpu", "process_resident", "process_open_fds"))
