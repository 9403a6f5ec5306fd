"""Sending a request in its turn, and again if that is safe.

A request is sent again only if the API refused it (429; 401 or 403 with a stale token) or if it
provably never left. It keeps its place in the order of arrival, so it goes back to the front of its
queue; so does a request that lost its slot while it connected, which does not count as an attempt.
A send that equal reads share (merging.py) counts as an attempt of each. Bounds: attempts, elapsed
time, how long the caller still waits, and the account's retry budget.
A request that was sent and got no answer is never sent again, since it may have been carried out.
The only exception is a safe request, if the API closed an idle connection just as it was used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf

from proxy.clock import Clock
from proxy.forwarding.api_refusals import ApiRefusal
from proxy.forwarding.attempts import Attempts, PendingRequest, outcome_unknown
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.merging import Group, Merging, Outcome, read_to_merge
from proxy.http.messages import Answer, OutcomeUnknown, Unsent, Withheld
from proxy.http.received import Response
from proxy.pacing.accounts import Accounts
from proxy.pacing.prediction import predicted_wait
from proxy.pacing.slot import OnlyIfFree, Slot, Ticket, Wait, WaitUntil
from proxy.problems import Problem
from proxy.retries import RetryRules
from proxy.rules.refresh import Reason
from proxy.settings import Settings
from proxy.telemetry.callers import Callers
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.token import Token


class Sender:
    """Sends requests to the API, each in its turn."""

    def __init__(  # noqa: PLR0913 -- the parts it sends with, each by name
        self,
        settings: Settings,
        *,
        clock: Clock,
        metrics: Metrics,
        callers: Callers,
        accounts: Accounts,
        drain: Drain,
        attempts: Attempts,
        merging: Merging,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._callers = callers
        self._accounts = accounts
        self._drain = drain
        self._attempts = attempts
        self._merging = merging
        self._rules = RetryRules(settings.retry)

    async def send(self, pending: PendingRequest) -> Response | Answer:
        """Return the API's answer: still to be streamed, or read whole if it was a refusal.

        Raises a Problem when there is no answer.
        """
        exchange = pending.exchange
        ticket = Ticket(
            self._accounts.context.next_arrival(),
            cost=pending.needs.cost,
            is_present=pending.is_present,
            request_id=exchange.id,
            caller=pending.caller.id,
            weight=pending.caller.weight,
        )
        read = read_to_merge(pending)
        if read is None:
            return await self._send(pending, ticket, None)
        with self._merging.joined(pending, read, ticket) as group:
            return await self._send(pending, ticket, group)

    async def _send(  # noqa: C901 -- a case for each outcome
        self, pending: PendingRequest, ticket: Ticket, group: Group | None
    ) -> Response | Answer:
        exchange = pending.exchange
        refusal: ApiRefusal | None = None
        while True:
            managed = pending.managed
            token = None if managed is None else await self._token(pending, managed)
            try:
                wait = self._wait(exchange, ticket)
                free = self._accounts.waiting.free_slot(pending.queue, ticket, wait)
                slot = free or await self._slot(pending, ticket, wait)
            except Problem:
                if refusal is None or self._drain.has_begun:
                    raise
                return refusal.passed_on(pending.queue.holds.named_left())
            outcome: Outcome
            if slot is not None and (group is None or not group.others_wait(ticket)):
                with slot:
                    outcome = await self._attempts.make(pending, slot, token)
            else:
                assert group is not None  # noqa: S101 -- for the type checker
                outcome = await self._merged(pending, ticket, token, slot=slot, group=group)
            exchange.is_merged = slot is None
            match outcome:
                case Response() | Answer():
                    return self._final(pending, outcome)
                case OutcomeUnknown():
                    self._repeat(pending)
                case Unsent():
                    await self._back_off(pending)
                case ApiRefusal() as refusal:
                    if not await self._goes_back(pending, ticket, token, refusal):
                        return self._final(
                            pending, refusal.passed_on(pending.queue.holds.named_left())
                        )
                case Withheld():
                    pass  # it was no attempt, so nothing is counted; it is first again

    async def _merged(
        self,
        pending: PendingRequest,
        ticket: Ticket,
        token: Token | None,
        *,
        slot: Slot | None,
        group: Group,
    ) -> Outcome:
        """Send once for all that wait, or wait for the send that takes the request along."""
        if slot is None:
            return await self._taken_along(pending, ticket, group)
        send = partial(self._attempts.make, slot=slot, token=token)
        return await group.send(pending, ticket, slot, send)

    async def _taken_along(self, pending: PendingRequest, ticket: Ticket, group: Group) -> Outcome:
        """Wait for the outcome of an equal request's send, which counts as an attempt."""
        exchange, begun = pending.exchange, self._clock.monotonic()
        with exchange.spending("upstream"):
            outcome = await group.outcome(pending, ticket)
        match outcome:
            case ApiRefusal(reason="rate_limited"):
                exchange.attempted("refused", begun=begun)
            case ApiRefusal(reason=None) | Answer() | Response():
                exchange.attempted("answered", begun=begun)
            case ApiRefusal():
                exchange.attempted("stale token", begun=begun)
            case OutcomeUnknown() | Unsent() | Withheld():
                return Withheld()  # it was no attempt of this one
        if isinstance(outcome, ApiRefusal):
            exchange.lacks = outcome.lacks
        return outcome

    def _final(self, pending: PendingRequest, answer: Answer | Response) -> Answer | Response:
        if pending.exchange.is_merged:
            self._metrics.merged(pending.account.label, pending.exchange.route)
        return answer

    async def _token(self, pending: PendingRequest, managed: TokenKeeper) -> Token:
        """Return a fresh token before a slot is taken, so that a slow login server wastes none."""
        exchange = pending.exchange
        with self._waiting_for_token(exchange):
            return await managed.usable(pending.needs.scopes, limit=exchange.may_wait)

    async def _slot(self, pending: PendingRequest, ticket: Ticket, wait: Wait) -> Slot | None:
        """Wait for a slot as long as the request may still wait and may still be sent again.

        None if the send of an equal request takes it along. A request that gets no slot, and whose
        answer was lost before, ends as `outcome-unknown`.
        """
        exchange, queue, waiting = pending.exchange, pending.queue, self._accounts.waiting
        if not ticket.has_joined:
            waiting.admit(queue, ticket, wait)
        held, begun = queue.held_seconds(), self._clock.monotonic()
        try:
            with (
                exchange.spending("queue"),
                self._callers.waiting(exchange.account_label, exchange.caller_label),
            ):
                return await waiting.slot(queue, ticket, wait)
        except Problem:
            if "no answer" in exchange.attempts:
                raise outcome_unknown(timed_out=False) from None
            raise
        finally:
            # An operator may have paused the account in a hold of the API.
            seconds = queue.held_seconds() - held
            exchange.held += min(seconds, self._clock.monotonic() - begun)

    def _wait(self, exchange: Exchange, ticket: Ticket) -> Wait:
        """Return how long the request waits for a slot; a returning one may be too late."""
        now = self._clock.monotonic()
        until, last = now + exchange.may_wait, inf
        if exchange.first_sent is not None:
            last = exchange.first_sent + self._settings.retry.max_elapsed
        if until > now or (ticket.has_joined and exchange.limit > 0):
            return WaitUntil(min(until, last))
        return OnlyIfFree() if now <= last else WaitUntil(last)

    async def _goes_back(
        self, pending: PendingRequest, ticket: Ticket, token: Token | None, refusal: ApiRefusal
    ) -> bool:
        """True if a refused request goes back to the front of its queue; counts the retry."""
        exchange, account = pending.exchange, pending.account
        wait = predicted_wait(pending.queue, ticket, self._clock.monotonic())
        if wait > exchange.may_wait or not self._rules.may_send_again(
            attempts=len(exchange.attempts), elapsed=exchange.since_first_send + wait
        ):
            return False
        match refusal.reason:
            case None:
                return False
            case "rate_limited":
                if exchange.is_merged:
                    return True  # another one is sent for it, or is refused
                if account.allowance.is_observed:
                    return False  # nothing waits for the end of a hold
                goes_back, reason = account.allowance.spend_retry(), "rate_limited"
            case renewal:  # has its own bound: once per request
                goes_back = await self._is_renewed(pending, token, renewal)
                reason = "stale_token"
        if goes_back and not exchange.is_merged:
            self._metrics.retried(account.label, reason)
        return goes_back

    async def _is_renewed(
        self, pending: PendingRequest, token: Token | None, reason: Reason
    ) -> bool:
        """True if there is another token to send with; each request gets one renewal."""
        exchange = pending.exchange
        had_renewal = exchange.attempts.count("stale token") > 1
        if pending.managed is None or token is None or had_renewal:
            return False
        with self._waiting_for_token(exchange):
            renewed = await pending.managed.renewed(token, reason, limit=exchange.may_wait)
        return renewed is not None

    def _repeat(self, pending: PendingRequest) -> None:
        """Let a safe request whose answer was lost go back to the front of its queue, once."""
        exchange = pending.exchange
        if not self._rules.may_send_again(
            attempts=len(exchange.attempts), elapsed=exchange.since_first_send
        ):
            raise outcome_unknown(timed_out=False)
        self._metrics.retried(pending.account.label, "connection_closed")

    async def _back_off(self, pending: PendingRequest) -> None:
        """Wait outside the queue before another attempt, or give up."""
        exchange, attempts = pending.exchange, len(pending.exchange.attempts)
        pause = self._rules.after_unsent(attempts)
        if pause > exchange.may_wait or not self._rules.may_send_again(
            attempts=attempts, elapsed=exchange.since_first_send + pause
        ):
            if "no answer" in exchange.attempts:
                raise outcome_unknown(timed_out=False)
            raise Problem(
                "upstream-unreachable",
                "The API cannot be reached; nothing was sent.",
                retry_after=max(1.0, pause),
            )
        with self._drain.interrupts(), exchange.spending("pause"):
            await self._clock.sleep_until(self._clock.monotonic() + pause)
        self._metrics.retried(pending.account.label, "unreachable")

    @contextmanager
    def _waiting_for_token(self, exchange: Exchange) -> Iterator[None]:
        with exchange.spending("token"), self._drain.interrupts():
            yield
