"""Metrics: a caller can add no series, no value can break a scrape, and the text is right."""

from collections import Counter as Tally
from collections.abc import Iterable
from math import inf

import pytest
import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Sample

from proxy.clock import SystemClock
from proxy.pacing.accounts import Accounts
from proxy.rules.state import AccountState, QueueState, TokenState
from proxy.telemetry.buckets import wait_bounds
from proxy.telemetry.live import Snapshot
from proxy.telemetry.metrics import Metrics
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for, settings_for, settings_of
from tests.kit.upstream import RawUpstream, Reply

MANY = 2_000
HOSTILE = 'a"b\\c\nd{x="1"} 2\ud800\udcff\u2028\0'
TOKEN = TokenState(
    expires_in=100.0,
    scopes=("a",),
    missing=("b", "c"),
    next_refresh_in=5.0,
    issued_at=1.0,
    rejected=True,
)


@pytest.fixture(autouse=True)
def without_created() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # left so


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def count_everything(metrics: Metrics, name: str, request_id: str = "id-1") -> None:
    """Let everything happen once, and set every gauge, for one account, route and method."""
    metrics.request(
        account=name,
        route=name,
        method=name,
        code=200,
        origin="upstream",
        seconds=0.3,
        request_id=request_id,
    )
    metrics.waited(name, name, "sent", 0.7, request_id=request_id)
    metrics.sent(name, name, lateness=0.002, early=True, request_id=request_id)
    metrics.queue_opened(name, name)
    metrics.answered(name, name, 202, 0.1, request_id=request_id)
    metrics.caller_request(name, name, 200)
    metrics.would_have(name, name, 0.7, is_refused=False)
    metrics.would_have(name, name, 0.7, is_refused=True)
    metrics.retried(name, "rate_limited")
    metrics.repeated(name, "joined")
    metrics.repeat_evicted(name)
    metrics.merged(name, name)
    metrics.unattributed_login()
    metrics.connection_refused("limit")
    metrics.incidents.count("hold", "opened")
    metrics.hold_begun(name, "refused")
    metrics.held(name, 1.5)
    metrics.token_refreshed(name, "startup", "ok")
    metrics.nested_field(name, name)
    metrics.servers.clock_skew("api", -0.25)
    metrics.servers.store_bypassed()
    metrics.live.snapshot = Snapshot(
        taken_at=1_800_000_000.0,
        accounts=(
            AccountState(
                name=name,
                routes=(QueueState(name=name, queue_depth=3, oldest_seconds=1.5, interval=0.5),),
                in_flight=2,
                hold_remaining_seconds=4.0,
                token=TOKEN,
            ),
        ),
        connections=(5, 7),
        is_stalled=True,
    )


def samples(families: Iterable[Metric]) -> Tally[tuple[object, ...]]:
    return Tally(
        (family.name, family.type, family.documentation, *key(sample))
        for family in families
        for sample in family.samples
    )


def key(sample: Sample) -> tuple[object, ...]:
    exemplar = sample.exemplar
    said = None if exemplar is None else (*exemplar.labels.items(), exemplar.value)
    return sample.name, frozenset(sample.labels.items()), sample.value, said


def read_open(text: bytes) -> list[Metric]:
    return list(openmetrics_parser.text_string_to_metric_families(text.decode()))  # type: ignore[no-untyped-call]  # left so


# What the text says


def test_the_text_is_that_of_the_library(registry: CollectorRegistry, metrics: Metrics) -> None:
    for name in ("london", "paris", 'quo"te\\and\nline'):
        count_everything(metrics, name)
    ours, theirs = metrics.text(is_open=False), generate_latest(registry)
    assert samples(read_text(ours.decode())) == samples(read_text(theirs.decode()))
    open_theirs = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # left so
    assert samples(read_open(metrics.text(is_open=True))) == samples(read_open(open_theirs))


def test_the_text_is_that_of_the_library_before_anything_happened(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    ours, theirs = metrics.text(is_open=False).decode(), generate_latest(registry).decode()
    assert samples(read_text(ours)) == samples(read_text(theirs))


def test_histograms_carry_the_request_id_as_an_exemplar(metrics: Metrics) -> None:
    count_everything(metrics, "london", request_id="the-one")
    families = read_open(metrics.text(is_open=True))
    carrying = {
        family.name: sample.exemplar.labels
        for family in families
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert carrying == {
        f"export_proxy_{name}": {"request_id": "the-one"}
        for name in (
            "request_duration_seconds",
            "queue_wait_seconds",
            "send_lateness_seconds",
            "upstream_duration_seconds",
        )
    }
    assert b"the-one" not in metrics.text(is_open=False)


@pytest.mark.parametrize(
    ("interval", "longest", "bounds"),
    [
        (0.5, 15.0, (0.005, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 12.0, 15.0)),
        (4.0, 100.0, (0.005, 2.0, 4.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0, 60.0, 100.0)),
        (0.01, 2.0, (0.005, 0.01, 0.02, 1.0, 2.0)),
        (5.0, 0.0, (0.005, 2.5, 5.0)),
        (1.0, 1.0, (0.005, 0.5, 1.0)),
    ],
)
def test_waits_are_sorted_around_the_pace_and_the_longest_wait(
    interval: float, longest: float, bounds: tuple[float, ...]
) -> None:
    assert wait_bounds(interval, longest) == bounds


@pytest.mark.parametrize("name", ["queue_wait_seconds", "request_duration_seconds"])
def test_ten_seconds_and_fourteen_are_told_apart(registry: CollectorRegistry, name: str) -> None:
    """With the defaults; and an account has twenty buckets at most."""
    metrics = Metrics(registry, interval=0.5, longest_wait=3600.0)
    count_everything(metrics, "london")
    (family,) = (
        family
        for family in read_text(metrics.text(is_open=False).decode())
        if family.name == f"export_proxy_{name}"
    )
    bounds = {float(one.labels["le"]) for one in family.samples if one.name.endswith("_bucket")}
    assert [bound for bound in bounds if 10 < bound < 14]
    assert max(bounds - {inf}) == 3600
    assert len(bounds) <= 20


def test_everything_that_is_counted_is_counted_in_these_tests(metrics: Metrics) -> None:
    """So that a family that is new, and has an account, is looked at as well."""
    count_everything(metrics, "london")
    families = read_text(metrics.text(is_open=False).decode())
    counted = [family for family in families if family.type in {"counter", "histogram"}]
    never = {"export_proxy_log_lines_dropped"}  # which is read, not counted
    assert {one.name for one in counted if not any(s.value for s in one.samples)} == never


def test_series_of_accounts_that_are_gone_are_forgotten(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    for name in ("london", "paris", "other"):
        count_everything(metrics, name)
    metrics.live.snapshot = Snapshot()
    metrics.apply(settings_of("london"))
    for text in (metrics.text(is_open=False).decode(), generate_latest(registry).decode()):
        accounts = {
            sample.labels["account"]
            for family in read_text(text)
            for sample in family.samples
            if "account" in sample.labels
        }
        assert accounts == {"london", "other"}
    count_everything(metrics, "paris")  # and begin at nothing when they come back
    assert (
        registry.get_sample_value(
            "export_proxy_retries_total", {"account": "paris", "reason": "rate_limited"}
        )
        == 1
    )


# What must not break it


def test_a_hostile_value_is_made_harmless(registry: CollectorRegistry, metrics: Metrics) -> None:
    count_everything(metrics, HOSTILE, request_id="id-1")
    count_everything(metrics, HOSTILE, request_id="id-2")
    for text in (metrics.text(is_open=False), generate_latest(registry)):
        families = list(read_text(text.decode()))
        names = {s.labels["account"] for f in families for s in f.samples if "account" in s.labels}
        assert names == {HOSTILE.encode("utf-8", "replace").decode()}
    assert read_open(metrics.text(is_open=True))
    metrics.apply(settings_of())
    assert b"holds_total{" not in metrics.text(is_open=False)


def test_methods_nobody_knows_are_one(metrics: Metrics) -> None:
    for number in range(MANY):
        metrics.request(
            account="other",
            route="none",
            method=f"M{number}",
            code=404,
            origin="proxy",
            seconds=0.001,
            request_id=f"id-{number}",
        )
    text = metrics.text(is_open=False).decode()
    line = 'export_proxy_requests_total{account="other",route="none",method="other",code="404"'
    assert text.count("export_proxy_requests_total{") == 1
    assert f'{line},origin="proxy"}} {MANY}.0\n' in text


def test_two_thousand_tokens_and_paths_add_no_series(metrics: Metrics) -> None:
    """Strangers have a line each, and one name for them all; no path is in what is counted."""
    settings = settings_for("http://localhost", identity={"max_unidentified": MANY})
    accounts = Accounts(settings, clock=SystemClock(), metrics=metrics, random=lambda: 0.0)

    def meet(number: int) -> None:
        account = accounts.unidentified(f"token-{number}".encode())
        queue = account.queue("exports", paced=True)
        count_everything(metrics, account.label, request_id=f"/path/{number}")
        assert queue.times.pace_due() > 0

    meet(0)
    before = series_of(snapshot(metrics, accounts))
    for number in range(1, MANY):
        meet(number)
    assert len(list(accounts.accounts())) == MANY
    assert series_of(snapshot(metrics, accounts)) == before


def snapshot(metrics: Metrics, accounts: Accounts) -> bytes:
    metrics.live.snapshot = Snapshot(accounts=accounts.states())
    return metrics.text(is_open=False)


@pytest.mark.no_cover
async def test_requests_that_are_all_different_add_no_series() -> None:
    """Through the whole proxy: strange methods and paths, and a token each for those forwarded."""
    async with (
        RawUpstream(default=Reply(200)) as upstream,
        proxy_for(upstream.url, identity={"max_unidentified": MANY}) as proxy,
    ):
        with structlog.testing.capture_logs():  # to print them would take longest
            await ask_as_strangers(proxy.url, range(10))
            before = await scrape(proxy.admin_url)
            await ask_as_strangers(proxy.url, range(10, 300))
        after = await scrape(proxy.admin_url)
        assert len(list(proxy.accounts.accounts())) == 300
    assert series_of(after.body) == series_of(before.body)
    assert 'export_proxy_requests_total{account="other"' in after.body.decode()


async def scrape(admin_url: str) -> Response:
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return parse_response(await exchange(HOST, port_of(admin_url), head))


async def ask_as_strangers(url: str, numbers: range) -> None:
    """Send three requests for each number, of which the API sees one."""
    port = port_of(url)
    for number in numbers:
        for method, path in (("GET", "/api/v2/users"), (f"X{number}", "/x"), ("GET", "/nowhere")):
            head = (
                f"{method} {path}/{number} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                f"Authorization: Bearer token-{number}\r\n\r\n"
            )
            assert parse_response(await exchange(HOST, port, head.encode())).status


def series_of(text: bytes) -> set[str]:
    """Return names and labels, without the numbers."""
    return {
        line.rpartition(" ")[0] for line in text.decode().splitlines() if not line.startswith("#")
    }
