"""One service account: its name, its queues, and its state.

Its scheduler decides who may send when (scheduler.py); its allowance says what it may do on all its
routes together (allowance.py).
"""

from collections.abc import Container, Iterable, Mapping
from math import inf

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.allowance import Allowance, Mode
from proxy.pacing.context import PacingContext
from proxy.pacing.prediction import backlog_seconds
from proxy.pacing.scheduler import AccountScheduler
from proxy.pacing.slot import Ending
from proxy.rules.state import AccountState


class Account:
    """One service account: its queues, its hold, what it has in flight."""

    def __init__(self, context: PacingContext, key: str, label: str) -> None:
        self.allowance = Allowance(context, key, label)
        self.scheduler = AccountScheduler(self.allowance)

    def __repr__(self) -> str:
        waiting = sum(queue.depth for queue in self.queues)
        return f"<Account {self.label}: {waiting} waiting, {self.allowance.in_flight} in flight>"

    @property
    def label(self) -> str:
        """The account's name for people."""
        return self.allowance.label

    @property
    def key(self) -> str:
        """The account's unique key; it holds no secret."""
        return self.allowance.key

    def rename(self, label: str, *, interval: float | None, mode: Mode | None = None) -> None:
        """Take another name, and another interval and mode of its own."""
        self.allowance.label = label
        self.allowance.own_interval, self.allowance.own_mode = interval, mode

    @property
    def queues(self) -> tuple[AccountQueue, ...]:
        """The account's queues, one for each route it has used."""
        return tuple(self.scheduler.queues)

    def queue(self, route: str, *, paced: bool) -> AccountQueue:
        """Return the queue in which requests of that route wait."""
        return self.scheduler.queues.get(route, paced=paced)

    def apply(
        self,
        predecessors: Mapping[str, Iterable[str]],
        *,
        taken: Container[str],
        paced: Mapping[str, bool],
    ) -> None:
        """Hand queues over to the routes that take their paths now (queues.py).

        `taken` are the new paced routes; `paced` says for each route, by name, whether it is paced.
        """
        self.scheduler.queues.hand_over(predecessors, paced=taken)
        for queue in self.scheduler.queues:
            queue.leased.apply(paced=paced.get(queue.route, queue.paced))
        self.scheduler.pump()

    def end_waits(self, ending: Ending) -> None:
        """End every wait without a slot."""
        for queue in self.scheduler.queues:
            queue.waiters.end(ending)

    # State

    def idle_from(self) -> float:
        """When the account can be dropped without losing its pace or hold (`inf`: in use)."""
        if self.allowance.in_flight or any(queue.depth for queue in self.queues):
            return inf
        return self._rests_until()

    def predicted_idle(self, now: float) -> float:
        """When it may be idle if no other request comes, and the answers under way come at once."""
        backlogs = [now + backlog_seconds(queue, now) for queue in self.queues if queue.is_in_use]
        return max(now, self._rests_until(), *backlogs)

    def _rests_until(self) -> float:
        ends = [(queue.holding.until, queue.times.pace_due()) for queue in self.queues]
        return max(0.0, self.allowance.holding.until, *(max(pair) for pair in ends))

    def state(self, now: float) -> AccountState:
        """Return what is known of the account."""
        queues = self.queues
        return AccountState(
            name=self.label,
            routes=tuple(
                queue.state(now, predicted=backlog_seconds(queue, now)) for queue in queues
            ),
            in_flight=self.allowance.in_flight,
            hold_remaining_seconds=self.allowance.holding.state.remaining(now),
            hold_named_seconds=max(
                self.allowance.holding.state.named_remaining(now),
                *(queue.holding.state.named_remaining(now) for queue in queues),
                0.0,
            ),
            hold_limit=self.allowance.holding.limit,
            quota_remaining=self.allowance.quota_remaining(now),
            observed=self.allowance.is_observed,
            paused=self.allowance.control.pause_state(now),
            slowed=self.allowance.control.slowdown_state(now),
        )
