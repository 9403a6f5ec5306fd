"""The admin port: what Prometheus and a load balancer see there, and that nobody else does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from structlog.testing import capture_logs

from proxy import __version__
from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import TOKEN, proxy_for
from tests.kit.upstream import Hang, RawUpstream, Reply

EXPORTS = "/api/v2/recordings/exports"
USERS = "/api/v2/users/me"
FAST = {"interval": 0.01}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PAGES = ["/metrics", "/healthz", "/readyz", "/status", "/status.json"]


async def get(url: str, path: str, *, host: str = "localhost", accept: str = "*/*") -> Response:
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n\r\n"
    return parse_response(await exchange(HOST, port_of(url), head.encode()))


async def call(proxy: Running, method: str, target: str, token: str = TOKEN) -> Response:
    head = f"{method} {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
    return parse_response(await exchange(HOST, port_of(proxy.url), head.encode()), method)


@asynccontextmanager
async def used_proxy() -> AsyncIterator[Running]:
    """A proxy that has met every kind of traffic: paced, held, unpaced, refused, unreachable."""
    script = [Reply(429, [("Retry-After", "1")]), Reply(201), Reply(200), Reply(500)]
    async with (
        RawUpstream(script) as upstream,
        proxy_for(
            upstream.url,
            pacing=FAST,
            accounts=[{"name": "london", "client_id": "id"}],
        ) as proxy,
    ):
        assert (await call(proxy, "POST", EXPORTS)).status == 201
        assert (await call(proxy, "GET", USERS)).status == 200
        assert (await call(proxy, "PROPFIND", USERS)).status == 500
        assert (await call(proxy, "GET", '/nobody"s\\path')).status == 400
        assert (await call(proxy, "DELETE", "/api/v2/tokens/me")).status == 403
        yield proxy


# Metrics


@pytest.mark.needs("promtool")
async def test_the_metrics_pass_promtool() -> None:
    async with used_proxy() as proxy:
        text = (await get(proxy.admin_url, "/metrics")).body
    promtool = await asyncio.create_subprocess_exec(
        "promtool",
        "check",
        "metrics",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await promtool.communicate(text)
    assert (promtool.returncode, said) == (0, b"")


async def test_metrics_are_text_unless_openmetrics_is_asked_for() -> None:
    async with used_proxy() as proxy:
        text = await get(proxy.admin_url, "/metrics")
        other = await get(proxy.admin_url, "/metrics", accept=OPENMETRICS)
    assert text.values("Content-Type")[0].startswith(b"text/plain; version=")
    assert other.values("Content-Type")[0].startswith(b"application/openmetrics-text")
    assert other.body.endswith(b"# EOF\n")
    as_text = {family.name for family in read_text(text.body.decode())}
    names = {family.name for family in read_openmetrics(other.body.decode())}
    assert "export_proxy_requests" in names
    # Text has no place for when a counter began, so that is a gauge of its own there.
    assert names == {name for name in as_text if not name.endswith("_created")}


NAMES = {  # without the prefix, and without the _total of a counter
    "requests": ("counter", {"account", "route", "method", "code", "origin"}),
    "request_duration_seconds": ("histogram", {"route", "origin"}),
    "queue_wait_seconds": ("histogram", {"account", "route", "outcome"}),
    "queue_depth": ("gauge", {"account", "route"}),
    "queue_oldest_seconds": ("gauge", {"account", "route"}),
    "queue_seconds": ("gauge", {"account", "route"}),
    "in_flight": ("gauge", {"account"}),
    "send_lateness_seconds": ("histogram", {"route"}),
    "early_sends": ("counter", {"account", "route"}),
    "interval_seconds": ("gauge", {"account", "route"}),
    "upstream_responses": ("counter", {"account", "route", "code"}),
    "upstream_duration_seconds": ("histogram", {"route"}),
    "retries": ("counter", {"account", "reason"}),
    "hold_remaining_seconds": ("gauge", {"account"}),
    "hold_named_seconds": ("gauge", {"account"}),
    "holds": ("counter", {"account", "reason"}),
    "held_seconds": ("counter", {"account"}),
    "build_info": ("gauge", {"version", "python", "aiohttp"}),
}


async def test_the_metrics_have_the_types_and_labels_that_dashboards_rely_on() -> None:
    async with used_proxy() as proxy:
        text = (await get(proxy.admin_url, "/metrics")).body.decode()
    families = {family.name: family for family in read_text(text)}
    for name, (kind, labels) in NAMES.items():
        family = families[f"export_proxy_{name}"]
        assert family.type == kind, name
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        assert samples, name
        assert {key for sample in samples for key in sample.labels} - {"le"} == labels, name


async def test_the_numbers_are_those_of_the_traffic() -> None:
    async with used_proxy() as proxy:
        text = (await get(proxy.admin_url, "/metrics")).body.decode()
    values = {
        (sample.name.removeprefix("export_proxy_"), frozenset(sample.labels.items())): sample.value
        for family in read_text(text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset(labels.items())]

    exports = {"account": "other", "route": "exports"}
    own = {"origin": "proxy", "method": "DELETE", "code": "403"}
    theirs = {"origin": "upstream", "account": "other"}
    assert value("requests_total", **theirs, route="exports", method="POST", code="201") == 1
    assert value("requests_total", **theirs, route="api", method="GET", code="200") == 1
    assert value("requests_total", **theirs, route="api", method="other", code="500") == 1
    assert value("requests_total", **own, account="other", route="blocked") == 1
    assert value("upstream_responses_total", **exports, code="429") == 1
    assert value("upstream_responses_total", **exports, code="201") == 1
    assert value("queue_wait_seconds_count", **exports, outcome="sent") >= 1
    assert value("early_sends_total", **exports) == 0
    assert value("retries_total", account="other", reason="rate_limited") == 1
    assert value("holds_total", account="other", reason="refused") == 1
    assert 1 <= value("held_seconds_total", account="other") < 10
    assert value("in_flight", account="other") == 0
    assert value("interval_seconds", **exports) == 0.01
    (version,) = {dict(labels)["version"] for name, labels in values if name == "build_info"}
    assert version == __version__


# Health


async def test_health_and_readiness_are_answered_while_it_serves() -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        assert (await get(proxy.admin_url, "/healthz")).status == 200
        assert (await get(proxy.admin_url, "/readyz")).status == 200
    assert upstream.connections == 0


async def test_readiness_fails_while_it_drains_and_health_does_not() -> None:
    """What is in flight keeps both ports up for a moment after the end was announced."""
    clock, stop = FakeClock(), asyncio.Event()
    started: asyncio.Future[Running] = asyncio.get_running_loop().create_future()

    async def serve(upstream: RawUpstream) -> None:
        async with proxy_for(upstream.url) as proxy:
            started.set_result(proxy)
            await stop.wait()

    async with (
        RawUpstream(default=Reply(delay=1), clock=clock) as upstream,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(serve(upstream))
        proxy = await started
        in_flight = tasks.create_task(call(proxy, "GET", USERS))
        await upstream.received()
        stop.set()
        await asyncio.sleep(0)
        readiness = await get(proxy.admin_url, "/readyz")
        health = await get(proxy.admin_url, "/healthz")
        assert not in_flight.done()
        await clock.advance(1)
    assert (readiness.status, health.status) == (503, 200)
    assert in_flight.result().status == 200


# Status


async def test_the_status_counts_waiters() -> None:
    accounts = [{"name": "london", "client_id": "id", "interval": 2}]
    async with (
        RawUpstream(default=Reply(delay=5)) as upstream,
        proxy_for(upstream.url, pacing={"interval": 0.01}, accounts=accounts) as proxy,
        asyncio.TaskGroup() as tasks,
    ):
        sent = tasks.create_task(call(proxy, "POST", EXPORTS))
        await upstream.received()
        answer = await get(proxy.admin_url, "/status.json")
        sent.cancel()
    assert answer.values("Content-Type")[0].startswith(b"application/json")
    by_name = {account["name"]: account for account in json.loads(answer.body)["accounts"]}
    assert set(by_name) == {"london", "other"}
    assert by_name["london"]["in_flight"] == 0
    other = by_name["other"]
    assert (other["in_flight"], other["hold_remaining_seconds"]) == (1, 0)
    assert other["routes"][0].pop("predicted_seconds") <= 0.01
    assert other["routes"] == [
        {
            "name": "exports",
            "queue_depth": 0,
            "oldest_seconds": 0,
            "interval": 0.01,
            "sent": 1,
            "last_gap_seconds": None,
            "hold_remaining_seconds": 0,
            "hold_named_seconds": 0,
            "hold_limit": None,
        }
    ]


# Who may ask


@pytest.mark.parametrize("path", PAGES)
async def test_the_listen_port_serves_no_admin_page(path: str) -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        stranger = await get(proxy.url, path)
        caller = await call(proxy, "GET", path)
    for answer in (stranger, caller):
        assert answer.status in (401, 404)
        assert answer.values("Content-Type") == [b"application/problem+json"]
    assert upstream.connections == 0


@pytest.mark.parametrize("path", [EXPORTS, USERS, "/oauth/token"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_admin_port_forwards_nothing(method: str, path: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\n\r\n"
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        answer = await exchange(HOST, port_of(proxy.admin_url), head.encode())
    assert parse_response(answer).status == 404
    assert upstream.connections == 0


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
async def test_no_answer_names_the_software(host: str) -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        answers = [await get(proxy.admin_url, path, host=host) for path in (*PAGES, "/x")]
    assert all(not answer.values("Server") for answer in answers)


def read_openmetrics(text: str) -> list[Metric]:
    families = openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call] # left so
    return list(families)


@pytest.mark.parametrize("accept", ["*/*", OPENMETRICS])
async def test_the_process_is_measured_too(accept: str) -> None:
    """Under the names that every Prometheus client uses."""
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        text = (await get(proxy.admin_url, "/metrics", accept=accept)).body.decode()
    read = openmetrics.text_string_to_metric_families if "openmetrics" in accept else read_text
    families = {family.name: family for family in read(text)}
    assert families["process_cpu_seconds"].type == "counter"
    assert families["process_resident_memory_bytes"].samples[0].value > 1e7
    assert families["process_open_fds"].samples[0].value > 3
    generations = {one.labels["generation"] for one in families["python_gc_collections"].samples}
    assert generations == {"0", "1", "2"}


# What operators do


async def test_the_root_leads_to_the_status_page() -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        answer = await get(proxy.admin_url, "/")
    assert answer.status == 302
    assert answer.values("location") == [b"status"]


async def test_an_unknown_account_is_told_with_the_known_ones() -> None:
    accounts = [{"name": name, "client_id": name} for name in ("paris", "london")]
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=accounts) as proxy:
        answer = await get(proxy.admin_url, "/accounts/berlin")
    assert (answer.status, answer.body) == (404, b"No such account; known: london, paris.\n")
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        answer = await get(proxy.admin_url, "/accounts/berlin")
    assert (answer.status, answer.body) == (404, b"No such account; none is configured.\n")


async def test_each_operator_action_is_one_log_line() -> None:
    """Done or refused, with the name of the account where it is a configured one."""
    accounts = [{"name": "london", "client_id": "id"}]
    async with RawUpstream() as upstream, proxy_for(upstream.url, accounts=accounts) as proxy:
        with capture_logs() as lines:
            for method, path in (
                ("POST", "/accounts/london/refresh"),
                ("POST", "/accounts/planted-name/refresh"),
                ("POST", "/-/reload"),
                ("DELETE", "/planted-path"),
                ("GET", "/status.json"),
            ):
                head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
                await exchange(HOST, port_of(proxy.admin_url), head.encode())
    told = [line for line in lines if line["event"] == "operator action"]
    assert [(one["action"], one["account"], one["outcome"], one["code"]) for one in told] == [
        ("refresh", "london", "refused", 404),
        ("refresh", None, "refused", 404),
        ("reload", None, "refused", 404),
        ("unknown", None, "refused", 404),
    ]
    assert {one["peer"] for one in told} == {HOST}
    assert "planted" not in repr(lines)


async def test_a_refused_operator_action_is_logged_too() -> None:
    admin = {"host": "0.0.0.0"}
    async with RawUpstream() as upstream, proxy_for(upstream.url, admin=admin) as proxy:
        with capture_logs() as lines:
            head = b"POST /-/reload HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n"
            await exchange(HOST, port_of(proxy.admin_url), head)
    told = [line for line in lines if line["event"] == "operator action"]
    assert [(one["action"], one["outcome"], one["code"]) for one in told] == [
        ("reload", "refused", 403)
    ]


async def test_an_operator_that_leaves_before_the_answer_is_not_said_to_have_failed() -> None:
    account = {"name": "london", "client_id": "id", "client_secret": "s"}
    with capture_logs() as lines:
        async with (
            RawUpstream(default=Hang()) as upstream,
            proxy_for(upstream.url, accounts=[account]) as proxy,
        ):
            await upstream.received()  # the mint that the order joins
            async with await RawConnection.open(HOST, port_of(proxy.admin_url)) as operator:
                await operator.send(
                    b"POST /accounts/london/refresh HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Length: 0\r\n\r\n"
                )
                head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
                await exchange(HOST, port_of(proxy.admin_url), head)  # it was read before this

            async def is_logged() -> bool:
                return any(line["event"] == "operator action" for line in lines)

            await until(is_logged)
    (told,) = [line for line in lines if line["event"] == "operator action"]
    assert (told["action"], told["outcome"], told["code"]) == ("refresh", "unknown", 499)
