"""What operators order for an account: to pause, or to send at longer intervals.

Theory of operation. An account obeys at most one pause and one interval at a time; a new order
replaces the old one of its kind. While an account is paused the proxy sends nothing for it, not
even a probe: only the operator, or the end the operator set, ends the pause. The interval in force
is the larger of the configured one and the ordered one. The end of an order stays known, as the
moment since which the account may send again; so a send is not counted as late because of the
order.

Invariants: an order can only delay sends. It does not affect holds: to resume an account ends its
pause, and no hold of the API. `now` is always an argument, in monotonic seconds; `since` is wall
time, and only shown.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, Final, Literal

from proxy.rules.state import PauseState, SlowdownState

LONGEST_SECONDS: Final = 86_400.0  # a day: a forgotten order ends by itself
LONGEST_INTERVAL: Final = 3_600.0
_RETURN_AFTER: Final = 30  # seconds: the end of the pause is not known, so ask now and then
_RETURN_SPREAD: Final = 30  # up to this many more, so that callers do not return together


class BadOrder(Exception):
    """An order that cannot be obeyed; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Send nothing until then; `inf` is until an operator resumes the account."""

    since: float
    until: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Keep at least `interval` seconds between two sends until then."""

    since: float
    until: float
    interval: float


@dataclass(frozen=True, slots=True)
class Resume:
    """End the pause."""


Order = Pause | Slowdown | Resume
Kind = Literal["pause", "slowdown"]


def kind_of(order: Order) -> Kind:
    """Return the order's kind; a new order replaces the last one of its kind."""
    return "slowdown" if isinstance(order, Slowdown) else "pause"


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders for one account: at most one pause and one interval."""

    pause: Pause | None = None
    slowdown: Slowdown | None = None

    def after(self, order: Order) -> "Orders":
        """Return the orders with one more order."""
        match order:
            case Pause():
                return replace(self, pause=order)
            case Slowdown():
                return replace(self, slowdown=order)
            case Resume():
                return replace(self, pause=None)


NO_ORDERS: Final = Orders()


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The orders an account obeys, and what it obeyed before.

    `paused_at` is when the present pause began, `eased_at` when an order last ended, both in
    monotonic seconds.
    """

    orders: Orders = NO_ORDERS
    paused_at: float = inf
    eased_at: float = -inf
    past_seconds: float = 0.0

    def is_paused(self, now: float) -> bool:
        """True while nothing may be sent."""
        return self.orders.pause is not None and now < self.orders.pause.until

    def opens_at(self, now: float) -> float:
        """Return the moment from which requests may be sent; `-inf` if there was no order."""
        pause = self.orders.pause
        return max(now, self.eased_at, -inf if pause is None else pause.until)

    def pause_left(self, now: float) -> float:
        """Return the seconds until the pause ends by itself, 0 if it does not."""
        pause = self.orders.pause
        return 0.0 if pause is None or pause.until == inf else max(0.0, pause.until - now)

    def is_open_ended(self, now: float) -> bool:
        """True while a pause without an end lasts."""
        return self.is_paused(now) and self.pause_left(now) <= 0

    def interval(self, now: float, configured: float) -> float:
        """Return the interval in force."""
        slowdown = self.orders.slowdown
        if slowdown is None or now >= slowdown.until:
            return configured
        return max(configured, slowdown.interval)

    def pace_left(self, now: float, left: float, left_as_configured: float) -> float:
        """Return for how many seconds a send delays the next one, as the interval will change.

        `left` is that by the interval in force, `left_as_configured` that by the configured one.
        """
        slowdown = self.orders.slowdown
        if slowdown is None or now >= slowdown.until:
            return left
        return min(left, max(slowdown.until - now, left_as_configured))

    def held_seconds(self, now: float) -> float:
        """Return the seconds paused so far, those of the present pause included."""
        pause = self.orders.pause
        if pause is None:
            return self.past_seconds
        return self.past_seconds + max(0.0, min(now, pause.until) - self.paused_at)

    def ends_at(self) -> float:
        """Return when the next order ends by itself; `inf` if none does."""
        return min((order.until for order in _each(self.orders)), default=inf)

    def pause_state(self, now: float) -> PauseState | None:
        """Return what is known of the pause, None if there is none."""
        pause = self.orders.pause
        if pause is None or not self.is_paused(now):
            return None
        left = None if pause.until == inf else pause.until - now
        return PauseState(since=pause.since, remaining_seconds=left)

    def slowdown_state(self, now: float) -> SlowdownState | None:
        """Return what is known of the interval that an operator ordered, None if there is none."""
        order = self.orders.slowdown
        if order is None or order.until <= now:
            return None
        return SlowdownState(
            since=order.since, remaining_seconds=order.until - now, interval=order.interval
        )

    def obeying(self, orders: Orders, now: float) -> "Control":
        """Return the control after these orders replaced all earlier ones."""
        old = self.at(now)
        is_paused, was_paused = orders.pause is not None, old.orders.pause is not None
        has_eased = (was_paused and not is_paused) or _interval(orders) < _interval(old.orders)
        return Control(
            orders=orders,
            paused_at=(old.paused_at if was_paused else now) if is_paused else inf,
            eased_at=now if has_eased else old.eased_at,
            past_seconds=old.past_seconds if is_paused and was_paused else old.held_seconds(now),
        ).at(now)

    def at(self, now: float) -> "Control":
        """Return the control without the orders that are over."""
        over = [order.until for order in _each(self.orders) if order.until <= now]
        if not over:
            return self
        pause, slowdown = self.orders.pause, self.orders.slowdown
        goes_on = pause is not None and pause.until > now
        return replace(
            self,
            orders=Orders(
                pause if goes_on else None,
                slowdown if slowdown is not None and slowdown.until > now else None,
            ),
            paused_at=self.paused_at if goes_on else inf,
            eased_at=max(self.eased_at, *over),
            past_seconds=self.past_seconds if goes_on else self.held_seconds(now),
        )


FREE_HAND: Final = Control()


def _each(orders: Orders) -> Iterable[Pause | Slowdown]:
    return [order for order in (orders.pause, orders.slowdown) if order is not None]


def _interval(orders: Orders) -> float:
    return 0.0 if orders.slowdown is None else orders.slowdown.interval


def return_after_pause(jitter: float) -> int:
    """Return the seconds after which a caller refused in a pause without end should come back.

    `jitter` is in [0, 1).
    """
    return _RETURN_AFTER + int(jitter * (_RETURN_SPREAD + 1))


# What operators send


def read_pause(document: Mapping[str, Any]) -> float:
    """Return for how many seconds to pause; `inf` is until the account is resumed.

    Raises BadOrder.
    """
    _check_fields(document, {"for"})
    if document.get("for") is None:
        return inf
    return _number(document, "for", most=LONGEST_SECONDS)


def read_slowdown(document: Mapping[str, Any], *, configured: float) -> tuple[float, float]:
    """Return the interval, and for how many seconds to keep it. Raises BadOrder."""
    _check_fields(document, {"seconds", "for"})
    for name in ("seconds", "for"):
        if document.get(name) is None:
            raise BadOrder(f"{name}: is required")
    interval = _number(document, "seconds", most=LONGEST_INTERVAL)
    if interval < configured:
        raise BadOrder(f"seconds: must not be below the configured interval of {configured:g}")
    return interval, _number(document, "for", most=LONGEST_SECONDS)


def check_no_fields(document: Mapping[str, Any]) -> None:
    """Raise BadOrder if there is any field."""
    _check_fields(document, set())


def _check_fields(document: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(document) - known)
    if unknown:
        allowed = f"known: {', '.join(sorted(known))}" if known else "none is known"
        raise BadOrder(f"{unknown[0][:40]!r}: unknown field; {allowed}")


def _number(document: Mapping[str, Any], name: str, *, most: float) -> float:
    value = document[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadOrder(f"{name}: must be a number of seconds")
    if not 0 < value <= most:
        raise BadOrder(f"{name}: must be above 0 and at most {most:g}")
    return float(value)
