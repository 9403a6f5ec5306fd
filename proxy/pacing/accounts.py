"""Which accounts exist, and the state of them all.

An account is the state of one service account: its queues, its hold, what it has in flight
(account.py). It belongs to a client id, whatever its name in the configuration, and never to a
token: neither a refreshed token nor a reload resets a pace. Only a token without a known client id
has its own account. Unconfigured accounts are kept in bounded tables.

Invariant: one client id has one account, and so one queue and one pace on each route.
"""

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Generic, TypeVar, get_args
from weakref import WeakValueDictionary

from proxy.clock import Clock
from proxy.pacing.account import Account
from proxy.pacing.context import PacingContext
from proxy.pacing.holding import HoldSpan
from proxy.pacing.leases import Alone, Leases
from proxy.pacing.operators import Operators
from proxy.pacing.slot import Ending
from proxy.pacing.waiting import Waiting
from proxy.problems import Problem
from proxy.retries import RetryRules
from proxy.rules.digests import account_id, store_key
from proxy.rules.pace import return_after
from proxy.rules.short_names import ShortNames
from proxy.rules.state import OTHER, AccountState, merged
from proxy.rules.succession import Taken, predecessors, taken_by
from proxy.settings import Route, Settings
from proxy.settings.values import Method
from proxy.telemetry.metrics import Metrics

_Key = TypeVar("_Key", str, bytes)

_SWEEP_SECONDS = 0.1
_PREDICTION_SECONDS = 1.0  # Retry-After has whole seconds, and each prediction looks at everybody
_STALLED_AFTER = 2.0  # seconds; a busy event loop is late by far less


class Accounts:
    """All accounts, by key. Keys are configured names, client ids or token hashes."""

    def __init__(  # noqa: PLR0913 -- the parts pacing is made of
        self,
        settings: Settings,
        *,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
        leases: Leases | None = None,
        is_draining: Callable[[], bool] = lambda: False,
        closes_at: Callable[[], float] = lambda: inf,
    ) -> None:
        self.context = context = PacingContext(
            clock=clock,
            metrics=metrics,
            random=random,
            hold_organization=self._hold_organization,
            started_at=clock.monotonic(),
            is_draining=is_draining,
            closes_at=closes_at,
            leases=leases or Alone(),
        )
        self.waiting = Waiting(context)
        self._configured: dict[str, Account] = {}
        self.operators = Operators(context, self._configured_now)
        self._ids: dict[str, str] = {}
        self._short_names = ShortNames(settings.metrics.max_learned_labels)
        self._unconfigured: _Table[str] = _Table(
            context, settings.identity.max_learned, self._short_names.name_of
        )
        self._unidentified: _Table[bytes] = _Table(
            context, settings.identity.max_unidentified, lambda _: OTHER
        )
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on, for all that wait too.

        Queues, holds and last sends belong to a client id, whatever its name: a renamed, added or
        removed account keeps its state.
        """
        self.context.pacing = settings.pacing
        self.context.retry_rules = RetryRules(settings.retry)
        self.context.reserve = _reserve(settings)
        self.context.hold_rules = {route.name: route.hold for route in settings.routes}
        self.context.intervals = {
            route.name: route.interval for route in settings.routes if route.interval is not None
        }
        self._short_names.most = settings.metrics.max_learned_labels
        self._unconfigured.limit = settings.identity.max_learned
        self._unidentified.limit = settings.identity.max_unidentified
        known = {self._ids[name]: account for name, account in self._configured.items()}
        self._ids = {one.name: account_id(one.client_id) for one in settings.accounts}
        self._configured = {}
        for wanted in settings.accounts:
            account = known.pop(self._ids[wanted.name], None) or self._unconfigured.take(
                self._ids[wanted.name]
            )
            self._configured[wanted.name] = account
            account.rename(wanted.name, interval=wanted.interval, mode=wanted.mode)
            account.allowance.organization = wanted.organization
        for key, account in known.items():
            account.rename(self._short_names.name_of(key), interval=None)
            account.allowance.organization = None
            self._unconfigured.put(key, account)
        paced = {route.name: route.paced for route in settings.routes}
        old, new = self.context.taken, _taken_by(settings.routes)
        self.context.taken = new
        handed = predecessors(old, new)
        now = self.context.clock.monotonic()
        self.context.inherited = {
            route: now if names else self.context.inherited_at(route)
            for route, names in handed.items()
        }
        for account in self.accounts():
            account.apply(handed, taken=new, paced=paced)
        self.operators.apply(known.values())

    def _configured_now(self) -> Iterable[Account]:
        return self._configured.values()

    def configured(self, name: str) -> Account:
        """Return the account of that configured name."""
        return self._configured[name]

    def names(self) -> Iterator[str]:
        """Return the names of the configured accounts."""
        return iter(self._configured)

    def is_configured(self, name: str) -> bool:
        """True if there is an account of that name."""
        return name in self._configured

    def unconfigured(self, key: str) -> Account:
        """Return the account of that id (see `account_id`), which is not configured."""
        return self._unconfigured.get(key)

    def unidentified(self, token_hash: bytes) -> Account:
        """Return the account of a token of no known client id, or raise a Problem."""
        return self._unidentified.get(token_hash)

    def accounts(self) -> Iterator[Account]:
        """All accounts alive now, configured ones first."""
        yield from self._configured.values()
        yield from self._unconfigured
        yield from self._unidentified

    def observed(self) -> list[str]:
        """Return the names of the accounts whose pace is only observed."""
        names = [name for name, one in self._configured.items() if one.allowance.is_observed]
        return names + [OTHER] * (self.context.pacing.mode == "observe")

    def is_stalled(self) -> bool:
        """True if a slot has been due for too long and was not offered: the pacing is stalled."""
        late = self.context.clock.monotonic() - _STALLED_AFTER
        return any(account.scheduler.offers_at() < late for account in self.accounts())

    def _hold_organization(
        self, organization: str, span: HoldSpan, route: tuple[str, bool] | None
    ) -> None:
        for account in self._configured.values():
            if account.allowance.organization == organization:
                queue = None if route is None else account.queue(route[0], paced=route[1])
                account.scheduler.hold(span, queue, "refused")

    def states(self) -> tuple[AccountState, ...]:
        """Return the state of the accounts now; those not configured are shown as one."""
        now = self.context.clock.monotonic()
        return merged(account.state(now) for account in self.accounts())

    def drain(self) -> None:
        """Refuse all that wait; `is_draining` says so to all that come."""
        for account in self.accounts():
            account.end_waits(Ending.DRAINED)


def _reserve(settings: Settings) -> int:
    return 0 if settings.quota is None else settings.quota.reserve


def _taken_by(routes: Iterable[Route]) -> dict[str, Taken]:
    return {
        route.name: taken_by(route.paths, route.methods, get_args(Method))
        for route in routes
        if route.paced
    }


class _Table(Generic[_Key]):
    """A bounded table of accounts that are not configured.

    An account is dropped only when it is idle: nothing waits, nothing is in flight, its next slot
    and its hold are past. Then the drop changes nothing. A full table is swept for idle accounts at
    most every `_SWEEP_SECONDS`, however many strangers come. `Retry-After` of a refused one is when
    the first account is predicted to be idle.

    A request keeps its account even while the account is idle (its body is still coming, or it
    pauses before another attempt). Until the request ends, a dropped account is found again; else
    one caller would have two queues on one route.
    """

    def __init__(self, context: PacingContext, limit: int, label_of: Callable[[_Key], str]) -> None:
        self.limit = limit
        self._context = context
        self._label_of: Callable[[_Key], str] = label_of
        self._kept: dict[_Key, Account] = {}
        self._alive: WeakValueDictionary[_Key, Account] = WeakValueDictionary()
        self._next_sweep = -inf
        self._room_at = self._next_prediction = -inf

    def __iter__(self) -> Iterator[Account]:
        return iter(self._alive.values())

    def get(self, key: _Key) -> Account:
        account = self._kept.get(key)
        if account is None:
            if len(self._kept) >= self.limit:
                self._make_room()
            account = self._alive.get(key) or self._made(key)
            self._kept[key] = self._alive[key] = account
        return account

    def take(self, key: _Key) -> Account:
        """Remove and return the account of that key; a new one if there is none."""
        account = self._alive.pop(key, None)
        self._kept.pop(key, None)
        return account or self._made(key)

    def put(self, key: _Key, account: Account) -> None:
        """Add an account that was kept elsewhere before."""
        self._kept[key] = self._alive[key] = account

    def _made(self, key: _Key) -> Account:
        return Account(self._context, store_key(key), self._label_of(key))

    def _make_room(self) -> None:
        now = self._context.clock.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS
            self._kept = {
                key: account for key, account in self._kept.items() if account.idle_from() > now
            }
        surplus = len(self._kept) - self.limit
        if surplus >= 0:
            if now >= self._next_prediction:
                self._next_prediction = now + _PREDICTION_SECONDS
                ends = sorted(account.predicted_idle(now) for account in self._kept.values())
                self._room_at = ends[surplus]
            excess = max(_SWEEP_SECONDS, self._room_at - now)
            raise Problem(
                "queue-full",
                "Too many different callers at once.",
                retry_after=return_after(excess, jitter=self._context.random()),
            )
