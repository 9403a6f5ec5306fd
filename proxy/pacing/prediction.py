"""How long a request would wait in a queue, as far as can be predicted.

Pace, hold and room in flight bound a wait. No wait is predicted to end before a hold's named end,
although probes go sooner.
"""

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.slot import Ticket
from proxy.rules import pace
from proxy.rules.pace import fits


def backlog_seconds(queue: AccountQueue, now: float) -> float:
    """Return the seconds until a newcomer behind all waiters would be sent."""
    return _wait_behind(queue, queue.waiters.cost, now)


def predicted_wait(queue: AccountQueue, ticket: Ticket, now: float) -> float:
    """Return the seconds until a request with this ticket would be sent."""
    return _wait_behind(queue, queue.waiters.cost_before(ticket), now)


def pushes_out(queue: AccountQueue, ticket: Ticket, now: float) -> bool:
    """True if admitting this new request would make a waiter miss its deadline.

    With one caller, new requests come last and delay none. To check every waiter takes long if many
    wait; it is needed only if the last one could miss the earliest deadline.
    """
    waiters = queue.waiters
    last = _wait_behind(queue, waiters.cost + ticket.cost, now)
    if fits(last, waiters.earliest - now):
        return False
    waiters.find_earliest()
    return not fits(last, waiters.earliest - now) and any(
        fits(_wait_behind(queue, cost, now), deadline - now)
        and not fits(_wait_behind(queue, cost + ticket.cost, now), deadline - now)
        for deadline, cost in queue.waiters.cost_at_deadlines(ticket)
    )


def _wait_behind(queue: AccountQueue, cost: float, now: float) -> float:
    """Return the wait behind requests of that cost, in intervals.

    Pace and hold bound the wait, and so does room in flight, which comes with answers: the first
    room may take a whole answer, and the others follow as the answers do. One answer that is late
    says nothing of the others while there is room beside it.
    """
    allowance, inner = queue.allowance, queue.queue
    if allowance.is_observed:
        return allowance.control.pause_left(now)
    interval, spread = queue.interval, allowance.spread
    held = max(queue.holds.named_left(), allowance.control.pause_left(now))
    soonest = max(inner.predicted_due(now, interval, spread), now + held)
    due = queue.leased.own_moment(soonest, interval)
    by_pace = pace.predicted_wait(
        now=now,
        due=due,
        cost_ahead=cost,
        interval=inner.predicted_interval(interval, spread),
    )
    in_flight = allowance.context.pacing.max_in_flight
    without_room = cost + 1 + allowance.in_flight - in_flight
    if without_room <= 0:
        return by_pace
    first = inner.answer_seconds(now)
    others = inner.average_answer_seconds if allowance.in_flight < in_flight else first
    by_room = held + first + (without_room - 1) / in_flight * others
    return max(by_pace, by_room)
