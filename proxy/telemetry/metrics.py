"""What happens to requests, accounts and tokens, counted.

Code reports that something happened. Label values come from closed sets: configured names, `other`,
`login`, `none`, known methods. A caller can never add a series, nor break a scrape with a value. A
caller's request id is in exemplars only, of which each bucket keeps one.

`incidents` and `servers` are parts with modules of their own. What can be read from the live state
(depths, holds, connections) is not counted: see live.py.
"""

import platform
from collections.abc import Callable
from typing import Final, get_args

import aiohttp
from prometheus_client import CollectorRegistry

from proxy import __version__
from proxy.rules.shares import Reason
from proxy.rules.short_names import ShownAccounts
from proxy.settings import Settings
from proxy.telemetry.buckets import LATENESS, wait_bounds
from proxy.telemetry.exposition import exposition
from proxy.telemetry.families import Families
from proxy.telemetry.history import History
from proxy.telemetry.incidents import IncidentMetrics
from proxy.telemetry.live import Live
from proxy.telemetry.process import ProcessMetrics
from proxy.telemetry.servers import ServerMetrics

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The proxy's counters, with one method per event.

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
        self._families = Families(wall)
        counter, histogram = self._families.counter, self._families.histogram
        self.live = Live(log_lines_dropped)
        self.history = History()
        registry.register(self.live)
        registry.register(self._families)
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
            "Time requests would have waited, where the pace is only observed.",
            "account",
            "route",
            buckets=wait_bounds(interval, longest_wait),
        )
        self._would_refuse = counter(
            "would_refuse",
            "Requests the proxy would have refused, where the pace is only observed.",
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
            "merged_requests", "Reads answered by sending an equal one.", "account", "route"
        )
        self._repeats_evicted = counter(
            "repeats_evicted", "Records of sent requests dropped before their time.", "account"
        )
        self.incidents = IncidentMetrics(self._families)
        self._holds = counter(
            "holds", "Holds begun: refused, quota or operator.", "account", "reason"
        )
        self._held = counter("held_seconds", "Seconds spent on hold.", "account")
        self._refreshes = counter(
            "token_refreshes", "Tokens requested.", "account", "reason", "outcome"
        )
        self._unattributed = counter(
            "unattributed_logins", "Tokens issued through the proxy whose client is not known."
        )
        self._connections_refused = counter(
            "connections_refused",
            "Callers' connections the proxy refused: limit, peer, handshake or descriptor.",
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
        self.servers = ServerMetrics(self._families)
        build = self._families.gauge(
            "build_info", "Versions in use.", "version", "python", "aiohttp"
        )
        build[__version__, platform.python_version(), aiohttp.__version__] = 1.0

    def text(self, *, is_open: bool) -> bytes:
        """Return the text of a scrape, with exemplars if in OpenMetrics."""
        process = () if self._process is None else self._process.families()
        return exposition([*self._families.all, *self.live.families(), *process], is_open=is_open)

    def apply(self, settings: Settings) -> None:
        """Forget the series of accounts that are no longer configured."""
        configured = [account.name for account in settings.accounts]
        self.history.keep(configured)
        names = ShownAccounts(configured)
        for series in self._families.all:
            if series.has_account:
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
        """Count a finished wait in the queue; docs/operations.md has the outcomes."""
        self._waits[account, route, outcome].observe(seconds, request_id)

    def would_have(self, account: str, route: str, seconds: float, *, is_refused: bool) -> None:
        """Count what would have happened to a request, where the pace is only observed."""
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
        """Create the series that must stay 0, so that 0 differs from absence."""
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
        """Count a read that was answered by sending an equal one."""
        self._merged[account, route] += 1

    def repeat_evicted(self, account: str) -> None:
        """Count a record of a sent request that was dropped before its time."""
        self._repeats_evicted[(account,)] += 1

    def hold_begun(self, account: str, reason: str) -> None:
        """Count a hold; the reason is refused, quota or operator."""
        self._holds[account, reason] += 1

    def held(self, account: str, seconds: float) -> None:
        """Count seconds spent on hold."""
        self._held[(account,)] += seconds

    def token_refreshed(self, account: str, reason: str, outcome: str) -> None:
        """Count a token that was asked for; the outcome is ok or error."""
        self._refreshes[account, reason, outcome] += 1

    def unattributed_login(self) -> None:
        """Count a token issued through the proxy to a client it cannot name."""
        self._unattributed[()] += 1

    def connection_refused(self, reason: Reason) -> None:
        """Count a caller's connection that was refused."""
        self._connections_refused[(reason,)] += 1

    def nested_field(self, route: str, field: str) -> None:
        """Count a body in which that configured field is nested."""
        self._nested[route, field] += 1
