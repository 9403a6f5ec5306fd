"""The orders of operators, shared by replicas.

The store keeps all orders in one hash (order.lua). Each change returns all of them, and is
published; then the other replicas read them. A replica also reads them when the store is back. An
order given while the store was down is obeyed at once, and stored when the store is back. If the
store has lost its state, each replica stores again what it obeys.

Invariants: an order of this replica that is not stored yet overrides the store's. Times are sent as
seconds left, so the clocks of replicas need not agree.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from math import inf
from secrets import token_hex
from typing import Final

from proxy.clock import Clock
from proxy.rules.orders import (
    LONGEST_SECONDS,
    NO_ORDERS,
    Kind,
    Order,
    Orders,
    Pause,
    Resume,
    Slowdown,
    kind_of,
)
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.wire import ErrorReply, Reply, StoreDown, Wire, Word

_KEY: Final = PREFIX + "orders"
_SOURCE: Final = files("proxy.store").joinpath("order.lua").read_text(encoding="utf-8")
_SHA: Final = hashlib.sha1(_SOURCE.encode(), usedforsecurity=False).hexdigest()
_LONGEST_MS: Final = round(LONGEST_SECONDS * 1000)
_FIELDS: Final = 4  # of an order in the answer

Known = dict[str, Orders]
Changed = Callable[[Mapping[str, Orders]], None]


class SharedOrders:
    """Keeps orders in the store; `changed` is called with all of them after each change."""

    def __init__(self, connection: Connection, *, clock: Clock, changed: Changed) -> None:
        self._connection = connection
        self._clock = clock
        self._changed = changed
        self._me = token_hex(6)
        self._born = ""  # of the state that was read last
        self._known: Known = {}
        self._untold: dict[tuple[str, Kind], Order] = {}
        connection.restorers.append(self._restore)

    def __repr__(self) -> str:
        return f"<SharedOrders: {len(self._known)} accounts, {len(self._untold)} untold>"

    # What operators need

    def refresh(self) -> None:
        """Report all orders again."""
        self._changed(self._all())
        self._run("read", lambda _: None)

    async def keep(self, key: str, order: Order) -> bool:
        """Keep an order for the account of that key; True if the other replicas are told now."""
        self._untold[key, kind_of(order)] = order
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answered(is_told: bool) -> None:  # noqa: FBT001 -- the answer is that
            if not told.done():  # the operator may have left
                told.set_result(is_told)

        self._tell(key, order, answered)
        return await told

    # What the connection tells

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel on which changes are published."""
        return (_KEY,)

    def receive(self, text: str, _: float) -> None:
        """Read the orders that another replica has changed."""
        if text != self._me:
            self._run("read", lambda _: None)

    async def self_test(self, wire: Wire) -> None:
        """Run the script once; the server keeps it. Raises StoreDown."""
        await wire.run("EVAL", _SOURCE, *self._words("read"))

    def _restore(self) -> None:
        """Store the orders that the store lacks, and read its own."""
        for (key, _), order in self._untold.items():
            self._tell(key, order, lambda _: None)
        self._run("read", lambda _: None)

    def _tell(self, key: str, order: Order, told: Callable[[bool], object]) -> None:
        name = (key, kind_of(order))

        def answered(is_told: bool) -> None:  # noqa: FBT001 -- likewise
            if is_told and self._untold.get(name) is order:
                del self._untold[name]
            told(is_told)

        op = "end" if isinstance(order, Resume) else "keep"
        self._run(op, answered, _field(*name), order)

    def _run(
        self,
        op: str,
        told: Callable[[bool], object],
        field: str = "",
        order: Order | None = None,
    ) -> None:
        words = self._words(op, field, order)

        def receive(reply: Reply | StoreDown) -> None:
            if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
                self._connection.send(("EVAL", _SOURCE, *words), receive)
                return
            if isinstance(reply, ErrorReply):
                self._connection.fail(reply.as_down())
            told(isinstance(reply, list))
            if isinstance(reply, list):
                self._read(reply)

        self._connection.send(("EVALSHA", _SHA, *words), receive)

    def _words(self, op: str, field: str = "", order: Order | None = None) -> tuple[Word, ...]:
        since, left, value = 0, 0, 0
        if isinstance(order, Pause | Slowdown):
            since = round(order.since * 1000)
            seconds = order.until - self._clock.monotonic()
            left = -1 if seconds == inf else max(0, round(seconds * 1000))
            value = round(order.interval * 1e6) if isinstance(order, Slowdown) else 0
        return (1, _KEY, _KEY, self._me, op, field, since, left, value, _LONGEST_MS)

    # What the store says

    def _read(self, reply: list[Reply]) -> None:
        words = [word.decode("ascii", "replace") for word in reply if isinstance(word, bytes)]
        if not words or len(words) != len(reply):
            return
        lost, self._born = self._born not in {"", words[0]}, words[0]
        if lost and self._say_again():
            return  # the answers to that have all of it
        self._known = _orders(words[1:], self._clock.monotonic())
        self._changed(self._all())

    def _say_again(self) -> bool:
        """Store again what is obeyed here, after the store lost its state; True if there is any."""
        now = self._clock.monotonic()
        lost = [
            (_field(key, kind_of(order)), order)
            for key, orders in self._known.items()
            for order in (orders.pause, orders.slowdown)
            if order is not None and order.until > now
        ]
        for field, order in lost:
            self._run("again", lambda _: None, field, order)
        return bool(lost)

    def _all(self) -> Known:
        """Return the orders of the store, and those not stored yet."""
        known = dict(self._known)
        for (key, _), order in self._untold.items():
            known[key] = known.get(key, NO_ORDERS).after(order)
        return known


def _field(key: str, kind: Kind) -> str:
    return f"{kind} {key}"


def _orders(words: list[str], now: float) -> Known:
    """Return the orders by account; leave out what no replica can have written."""
    known: Known = {}
    for start in range(0, len(words) - _FIELDS + 1, _FIELDS):
        field, *numbers = words[start : start + _FIELDS]
        kind, _, key = field.partition(" ")
        try:
            since, left, value = map(int, numbers)
        except ValueError:
            continue
        until = inf if left < 0 else now + left / 1000
        orders = known.get(key, NO_ORDERS)
        if kind == "pause" and not value:  # else it was ended
            known[key] = orders.after(Pause(since=since / 1000, until=until))
        elif kind == "slowdown" and until < inf:
            order = Slowdown(since=since / 1000, until=until, interval=value / 1e6)
            known[key] = orders.after(order)
    return known
