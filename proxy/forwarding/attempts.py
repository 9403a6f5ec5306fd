"""One attempt to send a request: what was sent, what came back, and what that means.

What follows, another attempt or the answer to the caller, is decided in sending.py.
"""

from collections.abc import Callable, Hashable
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Final, NamedTuple

from proxy.clock import Clock
from proxy.forwarding.api_refusals import (
    DENIALS,
    MAX_REFUSAL,
    ApiRefusal,
    denial,
    document_of,
    without_body,
)
from proxy.forwarding.exchange import Attempt, Exchange
from proxy.http.client import Client
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.http.received import Response
from proxy.pacing.account import Account
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.slot import Answered, NotSent, Refused, Refusing, Sent, Slot
from proxy.problems import Problem
from proxy.rules.codings import readable_codings
from proxy.rules.limits import NO_LIMIT, limit_of
from proxy.rules.needs import Needs
from proxy.rules.quota import Quota
from proxy.rules.retry_after import http_date, retry_after
from proxy.settings import Quota as QuotaFields
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.token import Token

_TOO_MANY: Final = HTTPStatus.TOO_MANY_REQUESTS.value  # an enum is slow to look up
_BODY_SECONDS: Final = 1.0  # for the body of a 429, in which the whole account stands still


class QueueCaller(NamedTuple):
    """The caller that takes turns in a queue: a caller key, else a credential and an address."""

    id: Hashable
    weight: int = 1


class PendingRequest(NamedTuple):
    """A request that is ready to be sent: as whom, where it waits, and what it needs.

    `caller` takes turns with the other callers of the account. `managed` is the account's own
    token, sent instead of the caller's credential. `may_merge` says whether an equal request may
    get the same answer, `is_present` whether a caller is still there; `on_sent` is called when the
    request has left.
    """

    exchange: Exchange
    caller: QueueCaller
    account: Account
    queue: AccountQueue
    outgoing: Outgoing
    needs: Needs
    managed: TokenKeeper | None
    is_present: Callable[[], bool]
    on_sent: Callable[[], None] | None = None
    may_merge: bool = False

    def sent(self, wall: float) -> None:
        """Note that the request left at that wall time."""
        self.exchange.sent_at = wall
        if self.on_sent is not None:
            self.on_sent()


class Attempts:
    """Sends requests to the API, each once.

    `quota` names the header fields in which the API announces a quota; None: ignore quotas.
    """

    def __init__(
        self, api: Client, *, clock: Clock, metrics: Metrics, quota: QuotaFields | None
    ) -> None:
        self._api = api
        self._clock = clock
        self._metrics = metrics
        self._quota = quota
        self._seen_date = ""

    async def make(
        self, pending: PendingRequest, slot: Slot, token: Token | None
    ) -> Response | ApiRefusal | OutcomeUnknown | Unsent | Withheld:
        """Send once, and report the outcome to the slot and to the exchange."""
        exchange = pending.exchange
        attempt: Attempt | None = "no answer"
        spell = exchange.spending("upstream")
        try:
            with spell:
                outcome = await self._send(pending, slot, token, begun=spell.begun)
                match outcome:
                    case Response():
                        attempt = "answered"
                    case Withheld():
                        spell.part, attempt = "connecting", None
                    case Unsent():
                        slot.report(NotSent())
                        attempt = "never left"
                    case OutcomeUnknown():
                        pass  # of a safe request, which may be sent once more
                    case ApiRefusal(reason="rate_limited"):
                        attempt = "refused"
                    case ApiRefusal(reason=None):
                        attempt = "answered"
                    case ApiRefusal():
                        attempt = "stale token"
        finally:
            if attempt not in {"answered", "no answer"}:
                exchange.sent_at = None  # the API did nothing, or it never left
            if attempt is not None:
                exchange.attempted(attempt, begun=spell.begun)
        return outcome

    async def _send(
        self, pending: PendingRequest, slot: Slot, token: Token | None, *, begun: float
    ) -> Response | ApiRefusal | OutcomeUnknown | Unsent | Withheld:
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
            if response.status == _TOO_MANY:
                return await self._refused(slot, response)
            self._answered(pending, slot, response)
            if token is not None and response.status in DENIALS:
                return await self._denied(pending, response)
            return response
        except (Withheld, Unsent) as not_sent:
            return not_sent
        except OutcomeUnknown as unknown:
            if unknown.may_repeat and "no answer" not in pending.exchange.attempts:
                return unknown
            raise outcome_unknown(timed_out=unknown.timed_out) from None
        except BadAnswer:
            raise Problem("bad-upstream", "The API's answer is not usable.") from None

    def _answered(self, pending: PendingRequest, slot: Slot, response: Response) -> None:
        """Report an answer to the slot; it takes room in flight until it is complete."""
        if not response.is_complete:  # or slow readers could have all connections
            pending.account.scheduler.take_room()
            response.on_release(pending.account.scheduler.make_room)
        slot.report(Answered(self._quota_in(response)))

    async def _denied(self, pending: PendingRequest, response: Response) -> Response | ApiRefusal:
        """Return what a 401 or 403 to the managed token means; the answer if it is too long."""
        answer = await self._read_denial(response)
        if answer is None:
            return response
        found = denial(answer)
        pending.exchange.lacks = found.lacks
        return found

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

    async def _refused(self, slot: Slot, response: Response) -> ApiRefusal:
        """Hold what the 429 covers: its body may say so, if it comes in time.

        Until then nothing of the account is sent, even if the caller leaves meanwhile.
        """
        named = self._named_wait(response)
        slot.report(Refusing())
        late = self._clock.call_at(
            self._clock.monotonic() + _BODY_SECONDS, lambda: slot.report(Refused(named))
        )
        limit = NO_LIMIT
        try:
            answer = await self._read_refusal(response)
            limit = limit_of(document_of(answer))
        finally:
            late.cancel()
            if slot.is_open:
                slot.report(Refused(named, limit))
        return ApiRefusal(answer, "rate_limited")

    def _quota_in(self, response: Response) -> Quota | None:
        if self._quota is None or self._quota.count not in response.headers:
            return None
        fields = (self._quota.count, self._quota.allowed, self._quota.reset)
        return Quota.parse(*(response.headers.getall(name, ()) for name in fields))

    async def _read_denial(self, response: Response) -> Answer | None:
        """Read a 401 or 403, which counts even if its body breaks off; None if it is too long."""
        try:
            return await self._api.read_short(response, MAX_REFUSAL)
        except OutcomeUnknown:
            return without_body(response)

    async def _read_refusal(self, response: Response) -> Answer:
        """Read a 429; it is a refusal even if its body is broken or absurdly long."""
        try:
            return await self._api.read(response, MAX_REFUSAL)
        except (OutcomeUnknown, BadAnswer):
            return without_body(response)

    def _note_skew(self, response: Response) -> None:
        """Compare the clocks at the first answer whose `Date` shows a new second."""
        text = response.headers.get("Date", "")
        if text == self._seen_date:
            return
        self._seen_date = text
        now = self._clock.wall()
        date = http_date(text, now=now)
        if date is not None:
            self._metrics.servers.clock_skew("api", date - now)

    def _named_wait(self, response: Response) -> float | None:
        return retry_after(
            response.headers.getall("Retry-After", ()),
            date=response.headers.get("Date"),
            now=self._clock.wall(),
            maximum=inf,
        )


def _signed(outgoing: Outgoing, token: Token | None) -> Outgoing:
    """Return the request with the managed token instead of the caller's credential.

    It accepts only codings that we can read, since a 403's body may say that the token is stale.
    """
    if token is None:
        return outgoing
    replaced = {"authorization", "accept-encoding"}
    wishes = [value for name, value in outgoing.fields if name.lower() == "accept-encoding"]
    fields = [field for field in outgoing.fields if field[0].lower() not in replaced]
    fields.append(("Accept-Encoding", readable_codings(wishes)))
    return outgoing._replace(fields=[*fields, ("Authorization", f"Bearer {token.value}")])


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
