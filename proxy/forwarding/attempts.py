"""One attempt to send a request: what went out, what came back, and what that means.

What may follow, another attempt or the answer to the caller, is decided in sending.py.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from math import inf

from proxy.clock import Clock
from proxy.forwarding.api_refusals import DENIALS, MAX_REFUSAL, ApiRefusal, denial
from proxy.forwarding.exchange import Attempt, Exchange
from proxy.http.client import Client
from proxy.http.connection import Response
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.pacing.account import Account
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.slot import Answered, NotSent, Refused, Sent, Slot
from proxy.problems import Problem
from proxy.rules.needs import Needs
from proxy.rules.retry_after import http_date, retry_after
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.token import Token


@dataclass(frozen=True, slots=True)
class QueueCaller:
    """Who takes turns in a queue: a caller key, else a credential and an address."""

    id: Hashable
    weight: int = 1


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that is ready to be sent: as whom, where it waits, and what it needs.

    `caller` takes turns with the other callers of the account. `managed` is the account's own
    token, sent in the place of the caller's credential. `is_present` says if a caller is still
    there, `on_sent` is called when the request has left.
    """

    exchange: Exchange
    caller: QueueCaller
    account: Account
    queue: AccountQueue
    outgoing: Outgoing
    needs: Needs
    managed: TokenKeeper | None
    is_present: Callable[[], bool]
    on_sent: Callable[[], None] = lambda: None

    def sent(self, wall: float) -> None:
        """Note that the request left at that wall time."""
        self.exchange.sent_at = wall
        self.on_sent()


class Attempts:
    """Sends requests to the API, each once.

    `max_hold` is for how many seconds the API may ask for no requests; more is cut to it.
    """

    def __init__(self, api: Client, *, clock: Clock, metrics: Metrics, max_hold: float) -> None:
        self._api = api
        self._clock = clock
        self._metrics = metrics
        self._max_hold = max_hold
        self._seen_date = ""

    async def make(
        self, pending: PendingRequest, slot: Slot, token: Token | None
    ) -> Response | ApiRefusal | OutcomeUnknown | Unsent | Withheld:
        """Send once, and report what became of it, to the slot and to the exchange."""
        exchange = pending.exchange
        attempt: Attempt | None = "no answer"
        begun = self._clock.monotonic()
        try:
            with exchange.spending("upstream") as spell:
                outcome = await self._send(pending, slot, token)
                match outcome:
                    case Withheld():
                        spell.part, attempt = "connecting", None
                    case Unsent():
                        slot.report(NotSent())
                        attempt = "never left"
                    case OutcomeUnknown():
                        pass  # of a safe request, which may be sent once more
                    case ApiRefusal(reason="rate_limited"):
                        attempt = "refused"
                    case ApiRefusal(reason=None) | Response():
                        attempt = "answered"
                    case ApiRefusal():
                        attempt = "stale token"
        finally:
            if attempt not in {"answered", "no answer"}:
                exchange.sent_at = None  # the API did nothing, or it never left
            if attempt is not None:
                exchange.attempted(attempt, begun=begun)
        return outcome

    async def _send(
        self, pending: PendingRequest, slot: Slot, token: Token | None
    ) -> Response | ApiRefusal | OutcomeUnknown | Unsent | Withheld:
        begun = self._clock.monotonic()
        try:
            response = await self._api.send(
                _signed(pending.outgoing, token),
                may_leave=partial(self._may_leave, pending, slot, token),
                on_sent=partial(self._sent, pending, slot),
            )
            self._metrics.answered(
                pending.account.label,
                pending.exchange.route,
                response.status,
                self._clock.monotonic() - begun,
                request_id=pending.exchange.id,
            )
            self._note_skew(response)
            return await self._judge(pending, slot, response, is_managed=token is not None)
        except (Withheld, Unsent) as not_sent:
            return not_sent
        except OutcomeUnknown as unknown:
            if unknown.may_repeat and "no answer" not in pending.exchange.attempts:
                return unknown
            raise outcome_unknown(timed_out=unknown.timed_out) from None
        except BadAnswer:
            raise Problem("bad-upstream", "The API's answer is not usable.") from None

    async def _judge(
        self, pending: PendingRequest, slot: Slot, response: Response, *, is_managed: bool
    ) -> Response | ApiRefusal:
        """Return the answer, or the refusal it is; tell the slot."""
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            slot.report(Refused(self._named_wait(response)))
            return ApiRefusal(await self._read_refusal(response), "rate_limited")
        if not response.is_complete:  # or slow readers could have all connections
            pending.account.take_room()
            response.on_release(pending.account.make_room)
        slot.report(Answered())
        if is_managed and response.status in DENIALS:
            answer = await self._api.read_short(response, MAX_REFUSAL)
            if answer is not None:
                return denial(answer)
        return response

    def _sent(self, pending: PendingRequest, slot: Slot, at: float) -> None:
        slot.report(Sent(at))
        pending.sent(self._clock.wall())

    def _may_leave(self, pending: PendingRequest, slot: Slot, token: Token | None) -> bool:
        """True if the request may be written now that there is a connection for it."""
        if token and pending.managed and not pending.managed.may_be_sent(token):
            return False  # renewed or expired while it waited
        if slot.sent_at > -inf:
            return False  # a slot is for one send; what was lost comes back in its turn
        return slot.may_leave(self._clock.monotonic())

    async def _read_refusal(self, response: Response) -> Answer:
        """Read a 429; it is a refusal even if its body is broken or absurdly long."""
        try:
            return await self._api.read(response, MAX_REFUSAL)
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
            maximum=self._max_hold,
        )


def _signed(outgoing: Outgoing, token: Token | None) -> Outgoing:
    """Return the request with the managed token in the place of the caller's credential."""
    if token is None:
        return outgoing
    fields = [field for field in outgoing.fields if field[0].lower() != "authorization"]
    return replace(outgoing, fields=[*fields, ("Authorization", f"Bearer {token.value}")])


def outcome_unknown(*, timed_out: bool) -> Problem:
    """Return the answer to a request that was sent, and whose answer was lost."""
    if timed_out:
        return Problem(
            "outcome-unknown",
            "The request was sent and no answer came in time; it may have been carried out.",
            status=HTTPStatus.GATEWAY_TIMEOUT,
        )
    return Problem(
        "outcome-unknown",
        "The request was sent and the connection was lost; it may have been carried out.",
    )
