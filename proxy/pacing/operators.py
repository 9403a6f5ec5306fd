"""Orders of operators for configured accounts, and making the accounts obey.

The decisions are in rules/orders.py. An account obeys at once. With a store the order is kept
there, and the other replicas obey as soon as the store tells them; while it is down, this replica
obeys alone, and tells the store when it is back (store/orders.py).

Invariants: an order belongs to a client id, so it survives a reload. An account that is removed
from the configuration obeys no orders, since no operator could end them.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Protocol

from proxy.clock import Timer
from proxy.pacing.account import Account
from proxy.pacing.context import PacingContext
from proxy.rules.orders import NO_ORDERS, Order, Orders, Pause, Resume, Slowdown


class OrderStore(Protocol):
    """What operators need of a store that replicas share."""

    def refresh(self) -> None:
        """Report all orders again, since there may be new accounts."""
        ...

    async def keep(self, key: str, order: Order) -> bool:
        """Keep an order for the account of that key.

        True if the other replicas are told now; else they are told when the store is back.
        """
        ...


class Operators:
    """Takes orders for accounts, and makes the accounts obey them."""

    def __init__(self, context: PacingContext, accounts: Callable[[], Iterable[Account]]) -> None:
        self.store: OrderStore | None = None
        self._context = context
        self._clock = context.clock
        self._accounts = accounts
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        ordered = sum(one.allowance.control.orders != NO_ORDERS for one in self._accounts())
        return f"<Operators: orders for {ordered} accounts>"

    async def pause(self, account: Account, seconds: float) -> bool:
        """Send nothing for the account for that many seconds (`inf`: until it is resumed).

        Here and below: True if all replicas obey, False if the others are told later.
        """
        until = self._clock.monotonic() + seconds
        return await self._order(account, Pause(since=self._clock.wall(), until=until))

    async def resume(self, account: Account) -> bool:
        """End the pause of the account, if there is one."""
        return await self._order(account, Resume())

    async def slow_down(self, account: Account, interval: float, seconds: float) -> bool:
        """Keep at least that interval on the account's paced routes for that many seconds."""
        until = self._clock.monotonic() + seconds
        order = Slowdown(since=self._clock.wall(), until=until, interval=interval)
        return await self._order(account, order)

    async def _order(self, account: Account, order: Order) -> bool:
        self._obey(account, account.allowance.control.orders.after(order))
        self._set_timer()
        return self.store is None or await self.store.keep(account.allowance.key, order)

    def obey_shared(self, orders: Mapping[str, Orders]) -> None:
        """Obey the orders in the store; an account that is not among the keys has none."""
        for account in self._accounts():
            self._obey(account, orders.get(account.allowance.key, NO_ORDERS))
        self._set_timer()

    def apply(self, removed: Iterable[Account]) -> None:
        """Note a reload, and which accounts are no longer configured."""
        for account in removed:
            self._obey(account, NO_ORDERS)
        if self.store is not None:
            self.store.refresh()

    def _obey(self, account: Account, orders: Orders) -> None:
        now, allowance = self._clock.monotonic(), account.allowance
        old, before = allowance.control, allowance.interval
        allowance.control = old.obeying(orders, now)
        if allowance.control == old:
            return
        if allowance.control.is_paused(now) and not old.is_paused(now):
            self._context.metrics.hold_begun(account.label, "operator")
        if allowance.interval > before and self._context.leases.replicas > 1:
            # The last send may be another replica's, which told the store the shorter distance.
            for queue in account.queues:
                if queue.paced:
                    queue.leased.keep_distance(1)
        account.scheduler.pump()

    def _set_timer(self) -> None:
        """Look again when the next order ends."""
        if self._timer is not None:
            self._timer.cancel()
        ends = min((one.allowance.control.ends_at() for one in self._accounts()), default=inf)
        self._timer = None if ends == inf else self._clock.call_at(ends, self._look)

    def _look(self) -> None:
        now = self._clock.monotonic()
        for account in self._accounts():
            if account.allowance.control.ends_at() <= now:
                account.allowance.control = account.allowance.control.at(now)
                account.scheduler.pump()
        self._timer = None
        self._set_timer()
