"""Sending a request in turn, and again as far as that is safe.

A request is sent again only if the API refused it (429; 401 or 403 with a stale token) or if it
provably never left. It keeps its place in the order of arrival, so it goes back to the front of its
queue; so does one that lost its slot while it connected, which is no attempt. Bounds: attempts,
elapsed time, what the caller will still wait, the account's retry budget.
Never after something was sent and no answer came: it may have been carried out.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Final, Literal

from proxy.clock import Clock
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.http.client import Client
from proxy.http.connection import Response, is_closed_by_peer
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.pacing.account import Account
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.accounts import Accounts
from proxy.pacing.slot import (
    Answered,
    NotSent,
    OnlyIfFree,
    Refused,
    Sent,
    Slot,
    Ticket,
    Wait,
    WaitUntil,
)
from proxy.problems import Problem
from proxy.retries import RetryRules
from proxy.rules.needs import Needs
from proxy.rules.refresh import Reason
from proxy.rules.retry_after import delay_seconds, http_date, retry_after
from proxy.settings import Settings
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.token import Token

_MAX_KEPT: Final = (
    1_048_576  # bytes of a refusal, which is read whole to be passed on if it is final
)
# The vendor's codes for a permission that is missing; the names stand in the message only.
_MISSING_PERMISSION: Final = frozenset({"missing.permissions", "missing.any.permissions"})


_DENIALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


@dataclass(frozen=True, slots=True)
class ApiRefusal:
    """The API did nothing: it wants silence (429), or another token.

    `reason` is why sending again may help; None where it would not.
    """

    answer: Answer
    reason: Literal["rate_limited"] | Reason | None


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that is ready to be sent: as whom, where it waits, and what it needs.

    `managed` is the account's own token, sent in the place of the caller's credential.
    """

    exchange: Exchange
    account: Account
    queue: AccountQueue
    outgoing: Outgoing
    needs: Needs
    managed: TokenKeeper | None


class Sender:
    """Sends requests to the API, each in its turn."""

    def __init__(  # noqa: PLR0913 -- the parts it sends with, each by name
        self,
        settings: Settings,
        *,
        clock: Clock,
        metrics: Metrics,
        accounts: Accounts,
        drain: Drain,
        api: Client,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._accounts = accounts
        self._drain = drain
        self._api = api
        self._patience = RetryRules(settings.retry)
        self._seen_date = ""

    async def send(self, pending: PendingRequest) -> Response | Answer:
        """Return the API's answer: still to be streamed, or read whole if it was a refusal.

        Raises a Problem when there is no answer.
        """
        exchange = pending.exchange
        ticket = Ticket(
            self._accounts.context.next_arrival(),
            cost=pending.needs.cost,
            is_present=lambda: not is_closed_by_peer(exchange.request.transport),
            request_id=exchange.id,
        )
        refusal: ApiRefusal | None = None
        while True:
            token = await self._token(pending)
            try:
                slot = await self._slot(pending, ticket)
            except Problem:
                if refusal is None or self._drain.has_begun:
                    raise
                return _passed_on(refusal, pending.queue)
            with slot:
                outcome = await self._try(pending, slot, token)
            match outcome:
                case Withheld():
                    pass  # no try, so nothing is counted; it is first in the queue again
                case Unsent():
                    await self._back_off(pending)
                case ApiRefusal() as refusal:
                    if not await self._goes_back(pending, ticket, token, refusal):
                        return _passed_on(refusal, pending.queue)
                case Response() as response:
                    return response

    async def _token(self, pending: PendingRequest) -> Token | None:
        """Return a fresh token before a slot is taken, so that a slow login server burns none."""
        if pending.managed is None:
            return None
        with self._waiting_for_token(pending.exchange):
            return await pending.managed.usable(
                pending.needs.scopes, limit=pending.exchange.may_wait
            )

    async def _slot(self, pending: PendingRequest, ticket: Ticket) -> Slot:
        """Wait for a slot as long as the request may still wait and may still be sent again."""
        exchange, queue, waiting = pending.exchange, pending.queue, self._accounts.waiting
        wait = self._wait(exchange, ticket)
        if not ticket.has_joined:
            waiting.admit(queue, ticket, wait)
        begun, held = self._clock.monotonic(), queue.held_seconds()
        try:
            return await waiting.slot(queue, ticket, wait)
        finally:
            exchange.waited += self._clock.monotonic() - begun
            exchange.held += queue.held_seconds() - held

    def _wait(self, exchange: Exchange, ticket: Ticket) -> Wait:
        """Return how long the request waits for a slot; one that comes back may be too late."""
        now = self._clock.monotonic()
        until, last = now + exchange.may_wait, inf
        if exchange.attempts:
            last = exchange.arrived + self._settings.retry.max_elapsed
        if until > now or (ticket.has_joined and exchange.limit > 0):
            return WaitUntil(min(until, last))
        return OnlyIfFree() if now <= last else WaitUntil(last)

    async def _try(
        self, pending: PendingRequest, slot: Slot, token: Token | None
    ) -> Response | ApiRefusal | Unsent | Withheld:
        """Send once, and report to the slot what became of it."""
        exchange = pending.exchange
        exchange.attempts += 1
        begun = self._clock.monotonic()
        try:
            response = await self._api.send(
                _signed(pending.outgoing, token),
                may_leave=partial(self._may_leave, pending, slot, token),
                on_sent=lambda at: slot.report(Sent(at)),
            )
            self._metrics.answered(
                pending.account.label,
                exchange.route,
                response.status,
                self._clock.monotonic() - begun,
                request_id=exchange.id,
            )
            self._note_skew(response)
            if response.status == HTTPStatus.TOO_MANY_REQUESTS:
                slot.report(Refused(self._named_wait(response)))
                return ApiRefusal(await self._read_refusal(response), "rate_limited")
            if not response.is_complete:  # or who reads slowly could have all connections
                pending.account.take_room()
                response.on_release(pending.account.make_room)
            slot.report(Answered())
            if token is not None and response.status in _DENIALS:
                answer = await self._api.read_short(response, _MAX_KEPT)
                if answer is not None:
                    return ApiRefusal(answer, _renewal_reason(answer))
            return response
        except Withheld as withheld:
            exchange.attempts -= 1
            now = self._clock.monotonic()
            exchange.waited, begun = exchange.waited + now - begun, now
            return withheld
        except Unsent as unsent:
            slot.report(NotSent())
            return unsent
        except OutcomeUnknown as unknown:
            raise _outcome_unknown(unknown) from None
        except BadAnswer:
            raise Problem("bad-upstream", "The API's answer is not usable.") from None
        finally:
            exchange.upstream += self._clock.monotonic() - begun

    def _may_leave(self, pending: PendingRequest, slot: Slot, token: Token | None) -> bool:
        """Tell whether the request may be written now that there is a connection for it."""
        if token and pending.managed and not pending.managed.may_be_sent(token):
            return False  # renewed or expired while it waited
        return slot.may_leave(self._clock.monotonic())

    async def _read_refusal(self, response: Response) -> Answer:
        """Read a 429; it is a refusal even if its body is broken or absurdly long."""
        try:
            return await self._api.read(response, _MAX_KEPT)
        except (OutcomeUnknown, BadAnswer):
            return Answer(response.status, "", [], b"")

    def _note_skew(self, response: Response) -> None:
        """Compare the clocks by the first answer of each second, in which theirs has just moved."""
        text = response.headers.get("Date", "")
        if text == self._seen_date:
            return
        self._seen_date = text
        now = self._clock.wall()
        date = http_date(text, now=now)
        if date is not None:
            self._metrics.clock_skew("api", date - now)

    def _named_wait(self, response: Response) -> float | None:
        return retry_after(
            response.headers.getall("Retry-After", ()),
            date=response.headers.get("Date"),
            now=self._clock.wall(),
            maximum=self._settings.retry.max_retry_after,
        )

    async def _goes_back(
        self, pending: PendingRequest, ticket: Ticket, token: Token | None, refusal: ApiRefusal
    ) -> bool:
        """Tell whether a refused request goes back to the front of its queue, and count it."""
        exchange, account = pending.exchange, pending.account
        wait = pending.queue.predicted_wait(ticket)
        elapsed = self._clock.monotonic() - exchange.arrived
        if wait > exchange.may_wait or not self._patience.may_send_again(
            attempts=exchange.attempts, elapsed=elapsed + wait
        ):
            return False
        match refusal.reason:
            case None:
                return False
            case "rate_limited":
                goes_back, reason = account.allowance.spend_retry(), "rate_limited"
            case renewal:  # bounded by itself: once a request
                goes_back = await self._is_renewed(pending, token, renewal)
                reason = "stale_token"
        if goes_back:
            self._metrics.retried(account.label, reason)
        return goes_back

    async def _is_renewed(
        self, pending: PendingRequest, token: Token | None, reason: Reason
    ) -> bool:
        """Tell whether there is another token to send with; each request gets one renewal."""
        exchange = pending.exchange
        if pending.managed is None or token is None or exchange.was_renewed:
            return False
        exchange.was_renewed = True
        with self._waiting_for_token(exchange):
            renewed = await pending.managed.renewed(token, reason, limit=exchange.may_wait)
        return renewed is not None

    async def _back_off(self, pending: PendingRequest) -> None:
        """Let some time pass outside the queue, or give up a request that never left."""
        exchange, now = pending.exchange, self._clock.monotonic()
        pause = self._patience.after_unsent(exchange.attempts)
        if pause > exchange.may_wait or not self._patience.may_send_again(
            attempts=exchange.attempts, elapsed=now - exchange.arrived + pause
        ):
            raise Problem(
                "upstream-unreachable",
                "The API cannot be reached; nothing was sent.",
                retry_after=max(1.0, pause),
            )
        with self._drain.interrupts():
            await self._clock.sleep_until(now + pause)
        exchange.waited += pause
        self._metrics.retried(pending.account.label, "unreachable")

    @contextmanager
    def _waiting_for_token(self, exchange: Exchange) -> Iterator[None]:
        begun = self._clock.monotonic()
        try:
            with self._drain.interrupts():
                yield
        finally:
            seconds = self._clock.monotonic() - begun
            exchange.token += seconds
            exchange.waited += seconds


def _signed(outgoing: Outgoing, token: Token | None) -> Outgoing:
    """Return the request with the managed token in the place of the caller's credential."""
    if token is None:
        return outgoing
    fields = [field for field in outgoing.fields if field[0].lower() != "authorization"]
    return replace(outgoing, fields=[*fields, ("Authorization", f"Bearer {token.value}")])


def _passed_on(refusal: ApiRefusal, queue: AccountQueue) -> Answer:
    """Return the API's own refusal; a 429 says how long the hold still is."""
    answer = refusal.answer
    if answer.status != HTTPStatus.TOO_MANY_REQUESTS:
        return answer
    fields = [field for field in answer.fields if field[0].lower() != "retry-after"]
    remaining = delay_seconds(queue.hold_left())
    return replace(answer, fields=[*fields, ("Retry-After", str(remaining))])


def _renewal_reason(answer: Answer) -> Reason | None:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return "unauthorized"
    return "stale_scope" if _error_code(answer) in _MISSING_PERMISSION else None


def _error_code(answer: Answer) -> str | None:
    """Read the vendor's error code from a decoded copy of the body."""
    encodings = [
        value.lower() for name, value in answer.fields if name.lower() == "content-encoding"
    ]
    try:
        body = answer.body
        if encodings == ["gzip"]:
            body = zlib.decompressobj(31).decompress(body, _MAX_KEPT)
        elif encodings == ["deflate"]:
            body = zlib.decompressobj().decompress(body, _MAX_KEPT)
        document = json.loads(body)
    except (ValueError, RecursionError, zlib.error):
        return None
    code = document.get("code") if isinstance(document, dict) else None
    return code if isinstance(code, str) else None


def _outcome_unknown(unknown: OutcomeUnknown) -> Problem:
    if unknown.timed_out:
        return Problem(
            "outcome-unknown",
            "The request was sent and no answer came in time; it may have been carried out.",
            status=HTTPStatus.GATEWAY_TIMEOUT,
        )
    return Problem(
        "outcome-unknown",
        "The request was sent and the connection was lost; it may have been carried out.",
    )
