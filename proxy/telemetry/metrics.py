"""Instruments on a registry that is passed in; the only place that counts.

Code reports that something happened. Label values come from closed sets: configured names, `other`,
`login`, `none`, known methods. A caller can never add a series, nor break a scrape with a value. A
caller's request id is in exemplars only, of which each bucket keeps one.

What can be read from the live state (depths, holds, connections) is not counted here: see live.py.
"""

import platform
from collections.abc import Callable, Iterator
from typing import Final, get_args

import aiohttp
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.rules.incidents import KINDS
from proxy.rules.shares import Reason
from proxy.rules.short_names import ShownAccounts
from proxy.settings import Settings
from proxy.telemetry.buckets import DURATIONS, LATENESS, wait_bounds
from proxy.telemetry.exposition import Family, Histograms, Numbers, exposition
from proxy.telemetry.history import History
from proxy.telemetry.live import Live
from proxy.telemetry.process import ProcessMetrics

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics(Collector):
    """What the proxy counts, as things that happen.

    `interval` and `longest_wait`, in seconds, choose the buckets of the times in the queue; `wall`
    stamps exemplars.
    """

    def __init__(  # noqa: PLR0913 -- each by name, and all but one with a default
        self,
        registry: CollectorRegistry,
        *,
        interval: float = 0.5,
        longest_wait: float = 15.0,
        log_lines_dropped: Callable[[], int] = lambda: 0,
        wall: Callable[[], float] = lambda: 0.0,
        process: ProcessMetrics | None = None,
    ) -> None:
        self._process = process

        def counter(name: str, text: str, *labels: str) -> Numbers:
            made = Numbers(Family(f"export_proxy_{name}", "counter", text, labels))
            self._families.append(made)
            return made

        def gauge(name: str, text: str, *labels: str) -> Numbers:
            made = Numbers(Family(f"export_proxy_{name}", "gauge", text, labels))
            self._families.append(made)
            return made

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = DURATIONS
        ) -> Histograms:
            family = Family(f"export_proxy_{name}", "histogram", text, labels)
            made = Histograms(family, buckets, wall)
            self._families.append(made)
            return made

        self._families: list[Numbers | Histograms] = []
        self.live = Live(log_lines_dropped)
        self.history = History()
        registry.register(self.live)
        registry.register(self)
        self._requests = counter(
            "requests", "Requests answered.", "account", "route", "method", "code", "origin"
        )
        self._caller_requests = counter(
            "caller_requests",
            "Requests answered to callers with a named key, by class of status.",
            "account",
            "caller",
            "code_class",
        )
        self._durations = histogram(
            "request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            "route",
            "origin",
        )
        self._waits = histogram(
            "queue_wait_seconds",
            "Time in the queue, holds included.",
            "account",
            "route",
            "outcome",
            buckets=wait_bounds(interval, longest_wait),
        )
        self._would_wait = histogram(
            "would_wait_seconds",
            "What requests would have waited where the pace is only observed.",
            "account",
            "route",
            buckets=wait_bounds(interval, longest_wait),
        )
        self._would_refuse = counter(
            "would_refuse",
            "Requests that would have been refused where the pace is only observed.",
            "account",
            "route",
        )
        self._lateness = histogram(
            "send_lateness_seconds",
            "Seconds from when a slot was due until its request left.",
            "route",
            buckets=LATENESS,
        )
        self._early = counter(
            "early_sends", "Sends before their slot was due; must stay 0.", "account", "route"
        )
        self._answers = counter(
            "upstream_responses", "Answers of the API, by status.", "account", "route", "code"
        )
        self._upstream_durations = histogram(
            "upstream_duration_seconds", "From a send to the head of its answer.", "route"
        )
        self._retries = counter("retries", "Requests sent again, by reason.", "account", "reason")
        self._repeats = counter(
            "repeats",
            "Requests recognised as sent before: joined, replayed, in_doubt or reused.",
            "account",
            "outcome",
        )
        self._merged = counter(
            "merged_requests", "Reads answered by the send of an equal one.", "account", "route"
        )
        self._repeats_evicted = counter(
            "repeats_evicted", "Records of sent requests given up before their time.", "account"
        )
        self._incidents = counter(
            "incidents",
            "Incidents told: opened, adopted, updated, closed, dropped; and tries that failed.",
            "kind",
            "outcome",
        )
        self._holds = counter(
            "holds", "Holds begun: refused, quota or operator.", "account", "reason"
        )
        self._held = counter("held_seconds", "Seconds spent on hold.", "account")
        self._refreshes = counter(
            "token_refreshes", "Tokens asked for.", "account", "reason", "outcome"
        )
        self._unattributed = counter(
            "unattributed_logins", "Tokens issued through the proxy whose client is not known."
        )
        self._connections_refused = counter(
            "connections_refused",
            "Connections of callers that were not taken: limit, peer, handshake or descriptor.",
            "reason",
        )
        for reason in get_args(Reason):  # the first one must be an increase
            self._connections_refused[(reason,)] += 0
        self._nested = counter(
            "nested_fields",
            "Bodies in which a field that should be flat is nested.",
            "route",
            "field",
        )
        self._store_bypassed = counter(
            "store_degraded_decisions", "Sends decided without the shared store."
        )
        self._store_up = gauge("store_up", "1 while the store of the pace answers.")
        self.store_is(up=True)
        self._skew = gauge(
            "clock_skew_seconds",
            "Their clock minus ours, by the Date of the last answer.",
            "server",
        )
        self.skews: dict[str, float] = {}
        build = gauge("build_info", "Versions in use.", "version", "python", "aiohttp")
        build[__version__, platform.python_version(), aiohttp.__version__] = 1.0

    def text(self, *, is_open: bool) -> bytes:
        """Return the text of a scrape, with exemplars if in OpenMetrics."""
        process = () if self._process is None else self._process.families()
        return exposition([*self._families, *self.live.families(), *process], is_open=is_open)

    def collect(self) -> Iterator[Metric]:
        """Yield what is counted to a reader of the registry."""
        for series in self._families:
            yield series.metric()

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not collect."""
        return iter(())

    def apply(self, settings: Settings) -> None:
        """Forget the series of accounts that are configured no more."""
        configured = [account.name for account in settings.accounts]
        self.history.keep(configured)
        names = ShownAccounts(configured)
        self._waits.keep(names)
        self._would_wait.keep(names)
        for series in (
            self._requests,
            self._caller_requests,
            self._would_refuse,
            self._early,
            self._answers,
            self._retries,
            self._merged,
            self._holds,
            self._held,
            self._refreshes,
        ):
            series.keep(names)

    def request(  # noqa: PLR0913 -- one keyword a label
        self,
        *,
        account: str,
        route: str,
        method: str,
        code: int,
        origin: str,
        seconds: float,
        request_id: str,
    ) -> None:
        """Count an answer, the time it took included; code 499 means that the caller left."""
        known = method if method in METHODS else "other"
        self._requests[account, route, known, str(code), origin] += 1
        self._durations[route, origin].observe(seconds, request_id)

    def caller_request(self, account: str, caller: str, code: int) -> None:
        """Count an answer to a caller with a named key."""
        self._caller_requests[account, caller, f"{code // 100}xx"] += 1

    def waited(
        self, account: str, route: str, outcome: str, seconds: float, *, request_id: str = ""
    ) -> None:
        """Count a time in the queue that ended, and how: docs/operations.md has the outcomes."""
        self._waits[account, route, outcome].observe(seconds, request_id)

    def would_have(self, account: str, route: str, seconds: float, *, is_refused: bool) -> None:
        """Count what would have become of a request where the pace is only observed."""
        if is_refused:
            self._would_refuse[account, route] += 1
        else:
            self._would_wait[account, route].observe(seconds)

    def sent(
        self, account: str, route: str, *, lateness: float, early: bool, request_id: str = ""
    ) -> None:
        """Count a send, and how long after its slot was due it left."""
        self._lateness[(route,)].observe(lateness, request_id)
        if early:
            self._early[account, route] += 1

    def queue_opened(self, account: str, route: str) -> None:
        """Make the series exist that must stay 0, so that their absence is not taken for it."""
        self._early.setdefault((account, route), 0.0)
        self._answers.setdefault((account, route, "429"), 0.0)

    def answered(
        self, account: str, route: str, code: int, seconds: float, *, request_id: str = ""
    ) -> None:
        """Count an answer of the API."""
        self._answers[account, route, str(code)] += 1
        self._upstream_durations[(route,)].observe(seconds, request_id)

    def retried(self, account: str, reason: str) -> None:
        """Count a re-send: rate_limited, stale_token, unreachable or connection_closed."""
        self._retries[account, reason] += 1

    def repeated(self, account: str, outcome: str) -> None:
        """Count a request that was sent before: joined, replayed, in_doubt or reused."""
        self._repeats[account, outcome] += 1

    def merged(self, account: str, route: str) -> None:
        """Count a read that was answered by the send of an equal one."""
        self._merged[account, route] += 1

    def repeat_evicted(self, account: str) -> None:
        """Count a record of a sent request that was given up before its time."""
        self._repeats_evicted[(account,)] += 1

    def incidents_are_told(self) -> None:
        """Make the series exist from which a rate is taken, so that the first failure counts."""
        for kind in (*KINDS, "none"):
            for outcome in ("opened", "closed", "failed", "dropped"):
                self._incidents[kind, outcome] += 0

    def incident(self, kind: str, outcome: str) -> None:
        """Count an incident that was opened, adopted, updated, closed or dropped, or a failure."""
        self._incidents[kind, outcome] += 1

    def hold_begun(self, account: str, reason: str) -> None:
        """Count a hold; the reason is refused, quota or operator."""
        self._holds[account, reason] += 1

    def held(self, account: str, seconds: float) -> None:
        """Count seconds of a hold that are over."""
        self._held[(account,)] += seconds

    def token_refreshed(self, account: str, reason: str, outcome: str) -> None:
        """Count a token that was asked for; the outcome is ok or error."""
        self._refreshes[account, reason, outcome] += 1

    def unattributed_login(self) -> None:
        """Count a token that was issued through the proxy to nobody it can name."""
        self._unattributed[()] += 1

    def connection_refused(self, reason: Reason) -> None:
        """Count a connection of a caller that was not taken."""
        self._connections_refused[(reason,)] += 1

    def nested_field(self, route: str, field: str) -> None:
        """Count a body in which that configured field is nested."""
        self._nested[route, field] += 1

    def clock_skew(self, server: str, seconds: float) -> None:
        """Note how far a server's clock (api or login) is ahead of ours."""
        self.skews[server] = seconds
        self._skew[(server,)] = seconds

    def store_is(self, *, up: bool) -> None:
        """Note whether the shared store answers."""
        self.is_store_up = up
        self._store_up[()] = up

    def store_bypassed(self) -> None:
        """Count a send that was decided without the shared store."""
        self._store_bypassed[()] += 1
