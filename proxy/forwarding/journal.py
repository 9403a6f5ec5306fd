"""The record of requests: each gets an id when it comes, and is counted and logged at its end."""

import random
import re
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.forwarding.exchange import Exchange
from proxy.http.request import Request
from proxy.incidents.watch import Watch
from proxy.problems import Problem
from proxy.rules.line_budget import Owner
from proxy.rules.repeats import SAFE_METHODS
from proxy.rules.short_names import is_configured
from proxy.telemetry.callers import Callers
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.refusals import Refusals

_log = structlog.get_logger(__name__)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Journal:
    """Keeps the record in metrics, the last refusals and the log.

    `may_log` bounds the lines of requests, `log` takes them.
    """

    def __init__(  # noqa: PLR0913 -- the parts it writes to, each by name
        self,
        *,
        clock: Clock,
        metrics: Metrics,
        refusals: Refusals,
        callers: Callers,
        watch: Watch,
        may_log: Callable[[Owner], bool],
        log: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._refusals = refusals
        self._callers = callers
        self._watch = watch
        self._may_log = may_log
        self._log = log

    def open(self, request: Request) -> Exchange:
        """Return the exchange of a request that has just come."""
        return Exchange(request, _request_id(request), self._clock)

    def accepted(self, exchange: Exchange) -> None:
        """Note a request that is about to wait for its turn."""
        if self._watch.is_on and exchange.subject is not None:
            self._watch.arrived(exchange.account_label, exchange.subject)

    def refused(self, exchange: Exchange, problem: Problem) -> None:
        """Note an answer of our own."""
        exchange.ended_here(problem.name)
        exchange.trouble = problem.kind.trouble
        account = exchange.account_label
        self._refusals.note(account, problem, at=self._clock.wall())
        self._callers.refused(account, exchange.caller_label, self._clock.monotonic())

    def failed(self, exchange: Exchange) -> None:
        """Log the exception that is being handled, which is a bug."""
        _log.exception("request failed", request_id=exchange.id)

    def over(self, exchange: Exchange, code: int) -> None:
        """Count and log a request that is over."""
        seconds = exchange.elapsed
        self._metrics.request(
            account=exchange.account_label,
            route=exchange.route,
            method=exchange.request.method,
            code=code,
            origin=exchange.origin,
            seconds=seconds,
            request_id=exchange.id,
        )
        if self._watch.is_on:
            self._tell_watch(exchange)
        if exchange.key_name is not None:
            self._metrics.caller_request(exchange.account_label, exchange.key_name, code)
        if self._may_log(_owner(exchange)):
            self._log("request", exchange.facts(code=code, seconds=seconds))

    def _tell_watch(self, exchange: Exchange) -> None:
        """Note trouble that may become an incident."""
        account = exchange.account_label
        if exchange.origin == "upstream" and exchange.first_sent is not None:
            self._watch.answered(account, begun=exchange.first_sent)
        trouble = exchange.trouble or ("scope_missing" if exchange.lacks else None)
        is_safe = exchange.request.method in SAFE_METHODS
        if trouble is not None and not (trouble == "in_doubt" and is_safe):
            self._watch.troubled(account, trouble, exchange.subject, exchange.id)


def _owner(exchange: Exchange) -> Owner:
    """Return the owner of the log line: the account, or the address if no account is known."""
    account = exchange.account
    if account is None:
        return Owner(exchange.request.peer, is_configured=False)
    known = is_configured(account.label)
    return Owner(account.label if known else account.key, is_configured=known)


def _request_id(request: Request) -> str:
    own = request.headers.get("X-Request-Id", "")
    if own and _REQUEST_ID.fullmatch(own):
        return own
    return f"{random.getrandbits(128):032x}"  # it only needs to be unique
