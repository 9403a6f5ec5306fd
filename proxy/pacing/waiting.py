"""How a request waits for its slot: all asynchronous code of pacing, and all its refusals.

Theory of operation. `free_slot` grants a slot that is free at once: no future, no timer, no place
in the queue. Else `admit` refuses a new request that would wait too long or finds no place, and
`slot` puts the ticket in the queue with an offer (a future) and a timer for the end of the wait,
and awaits the offer. The account (scheduler.py) sets the offer's result to a slot; a timer, a drain
or a lost store sets it to an `Ending`. If a caller has left, the account cancels its offer.

Only the store may know whether a slot is free. So a caller that may wait less than an answer of the
store takes still waits for that answer, as `undecided`; then it gets the slot, or its wait ends.

Invariants: every wait ends in exactly one outcome that is counted here. When it ends, the
ticket leaves the queue and its timer is cancelled; a slot that arrives in the very step in which
the caller is cancelled is given back.
"""

import asyncio
from math import inf
from typing import Final

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.context import PacingContext
from proxy.pacing.prediction import predicted_wait, pushes_out
from proxy.pacing.slot import Ending, Slot, Ticket, Unused, Wait, WaitUntil
from proxy.problems import Problem, draining, store_unavailable
from proxy.rules.orders import return_after_pause
from proxy.rules.pace import fits, in_words, longest_prediction
from proxy.rules.retry_after import delay_seconds

_OUTCOMES: Final = {  # under which a wait that ended without a slot is counted
    Ending.EXPIRED: "expired",
    Ending.DRAINED: "drained",
    Ending.NO_STORE: "refused",
    Ending.HELD: "refused",
}


class Waiting:
    """Admits requests to queues and waits there for them."""

    def __init__(self, context: PacingContext) -> None:
        self._context = context
        self._clock = context.clock

    def __repr__(self) -> str:
        return f"<Waiting: {self._context.arrivals} arrived>"

    def admit(self, queue: AccountQueue, ticket: Ticket, wait: Wait) -> None:
        """Refuse a new request that would wait too long, or finds no place in the queue.

        A caller that only takes a free slot is refused if none is free: the prediction does not
        know when the answers will come that make room.
        """
        self._refuse_without_service(queue)
        now = self._clock.monotonic()
        if queue.times.is_free(now):
            return
        limit = _seconds(wait, now)
        predicted = predicted_wait(queue, ticket, now)
        if now + predicted > self._context.closes_at():
            self._count(queue, ticket, "drained", 0.0)
            raise draining()
        has_place = self._has_place(queue)
        is_in_time = fits(predicted, limit) and (limit > 0 or queue.times.may_be_free())
        if has_place and is_in_time and not pushes_out(queue, ticket, now):
            return
        if queue.holds.is_clamped() and queue.times.may_be_free():
            return  # it may be the probe, if the store gives the lease
        self._count(queue, ticket, "refused", 0.0)
        raise self._full(queue, predicted, limit)

    async def slot(self, queue: AccountQueue, ticket: Ticket, wait: Wait) -> Slot | None:
        """Wait for a slot, in order of arrival; None if another send takes the request along.

        A cancelled caller gives back its place or slot; a caller that has left is cancelled. Raises
        the Problem `wait-expired` when the time is over, `draining` when the proxy shuts down.
        """
        self._refuse_without_service(queue)
        free = self.free_slot(queue, ticket, wait)
        if free is not None:
            return free
        ticket.has_returned = ticket.had_slot
        now = ticket.joined_at = self._clock.monotonic()
        if isinstance(wait, WaitUntil) and wait.at < now:
            self._count(queue, ticket, "expired", 0.0)
            raise self._expired(queue, ticket, 0.0)
        return await self._wait(queue, ticket, wait, now)

    def free_slot(self, queue: AccountQueue, ticket: Ticket, wait: Wait) -> Slot | None:
        """Grant a slot that is free now to a caller that is there; None if there is none."""
        now = self._clock.monotonic()
        ends = wait.at if isinstance(wait, WaitUntil) else inf
        if ends < now or not queue.times.is_free(now) or self._is_without_service(queue):
            return None
        if not ticket.is_present():
            return None
        if queue.allowance.is_observed and not ticket.has_joined:
            self._observe(queue, ticket, ends - now if isinstance(wait, WaitUntil) else 0.0, now)
        ticket.has_returned = ticket.had_slot
        ticket.joined_at, ticket.deadline = now, ends
        self._count(queue, ticket, "sent", 0.0)
        return queue.scheduler.grant(queue, ticket, now)

    def _observe(self, queue: AccountQueue, ticket: Ticket, limit: float, now: float) -> None:
        """Count what would have happened to a request that an observed account sends at once."""
        queue.on_paper, would = queue.on_paper.arrive(
            now,
            cost=ticket.cost,
            interval=queue.interval,
            limit=limit,
            held=queue.holds.named_left(),
            max_queue=self._context.pacing.max_queue,
        )
        self._context.metrics.would_have(
            queue.allowance.label, queue.route, would.seconds, is_refused=would.is_refused
        )

    async def _wait(
        self, queue: AccountQueue, ticket: Ticket, wait: Wait, now: float
    ) -> Slot | None:
        ends = wait.at if isinstance(wait, WaitUntil) else now
        known = now + self._context.leases.answer_timeout  # whether a slot is free
        ticket.deadline = max(ends, known)
        ticket.undecided_from = ends if ends < known else inf
        offer: asyncio.Future[Slot | Ending | None] = asyncio.get_running_loop().create_future()
        ticket.offer = offer
        expiry = self._clock.call_at(ticket.deadline, lambda: _expire(queue, offer))
        queue.waiters.add(ticket)
        queue.scheduler.pump()
        try:
            result = await offer
            if isinstance(result, Ending):
                self._count(queue, ticket, _OUTCOMES[result])
                queue.waiters.remove(ticket)  # what it is told does not count itself
                raise self._refusal(queue, ticket, result, ends - now)
        except asyncio.CancelledError:
            self._abandon(queue, ticket, offer)
            raise
        finally:
            expiry.cancel()
            queue.waiters.remove(ticket)
            queue.leased.order_lease()
        self._count(queue, ticket, "merged" if result is None else "sent")
        return result

    def _abandon(
        self, queue: AccountQueue, ticket: Ticket, offer: asyncio.Future[Slot | Ending | None]
    ) -> None:
        """Count a wait whose caller left, and give back a slot that came in the same step."""
        result = None if offer.cancelled() else offer.result()
        self._count(queue, ticket, _OUTCOMES[result] if isinstance(result, Ending) else "abandoned")
        if isinstance(result, Slot):
            result.report(Unused())

    def _is_without_service(self, queue: AccountQueue) -> bool:
        context = self._context
        return context.is_draining() or self._is_without_store(queue)

    def _is_without_store(self, queue: AccountQueue) -> bool:
        needs_lease = queue.queue.paced and not queue.allowance.is_observed
        return needs_lease and self._context.leases.is_refusing

    def _refuse_without_service(self, queue: AccountQueue) -> None:
        if self._context.is_draining():
            raise draining()
        if self._is_without_store(queue):
            raise store_unavailable()

    def _refusal(
        self, queue: AccountQueue, ticket: Ticket, ending: Ending, limit: float
    ) -> Problem:
        match ending:
            case Ending.EXPIRED:
                return self._expired(queue, ticket, limit)
            case Ending.DRAINED:
                return draining()
            case Ending.NO_STORE:
                return store_unavailable()
            case Ending.HELD:
                return self._full(queue, queue.holds.named_left(), limit)

    def _full(self, queue: AccountQueue, predicted: float, limit: float) -> Problem:
        return Problem(
            "queue-full",
            f"A request sent now would wait {in_words(predicted)}, behind {queue.depth:,} others."
            f"{self._why(queue)} Come back after Retry-After, or {self._advice(queue)}",
            retry_after=self._return_after(queue, predicted, limit),
            fields={"predicted_wait": round(predicted, 3)},
        )

    def _expired(self, queue: AccountQueue, ticket: Ticket, limit: float) -> Problem:
        newcomer = Ticket(self._context.next_arrival(), caller=ticket.caller)
        predicted = predicted_wait(queue, newcomer, self._clock.monotonic())
        return Problem(
            "wait-expired",
            f"No slot came within {limit:.1f} s.{self._why(queue)}",
            retry_after=self._return_after(queue, predicted, limit),
        )

    def _why(self, queue: AccountQueue) -> str:
        is_paused = queue.allowance.control.is_paused(self._clock.monotonic())
        return " An operator has paused the account." if is_paused else ""

    def _advice(self, queue: AccountQueue) -> str:
        """Say what would let a request in that the queue does not take now."""
        if self._has_place(queue):
            return "wait longer, as far as Prefer: wait and pacing.max_wait allow it."
        return "ask the operator to raise pacing.max_queue."

    def _has_place(self, queue: AccountQueue) -> bool:
        return queue.depth < self._context.pacing.max_queue

    def _return_after(self, queue: AccountQueue, predicted: float, limit: float) -> int:
        """Return the seconds after which to come back: never before a hold that the API named."""
        named = queue.holds.named_left()
        if queue.holds.is_clamped():
            return delay_seconds(named)
        if queue.allowance.control.is_open_ended(self._clock.monotonic()):
            return max(return_after_pause(self._context.random()), delay_seconds(named))
        excess = predicted - longest_prediction(limit)
        if excess <= 0:  # the wait was not too long; there was no place, or it came to nothing
            excess = min(predicted, queue.interval)
        seconds = queue.returns.retry_after(
            now=self._clock.monotonic(),
            excess=excess,
            interval=queue.interval,
            jitter=self._context.random(),
        )
        return max(seconds, delay_seconds(named))

    def _count(
        self, queue: AccountQueue, ticket: Ticket, outcome: str, seconds: float | None = None
    ) -> None:
        if seconds is None:
            seconds = self._clock.monotonic() - ticket.joined_at
        self._context.metrics.waited(
            queue.allowance.label, queue.route, outcome, seconds, request_id=ticket.request_id
        )


def _seconds(wait: Wait, now: float) -> float:
    """Return for how long the caller waits."""
    return wait.at - now if isinstance(wait, WaitUntil) else 0.0


def _expire(queue: AccountQueue, offer: asyncio.Future[Slot | Ending | None]) -> None:
    queue.scheduler.pump()  # a slot due at this very moment is still in time
    if not offer.done():
        offer.set_result(Ending.EXPIRED)
