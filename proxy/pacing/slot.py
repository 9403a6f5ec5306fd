"""A request's ticket in a queue, the slot it gets, and what is reported of that slot.

A ticket is a place in the order of arrival. A slot is the right to send one request now. Its holder
asks `may_leave` immediately before the send, since much may happen while it connects, and reports
through one method, `Slot.report`. The account that granted the slot takes the report.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from math import inf
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from proxy.rules.limits import NO_LIMIT, Limit
from proxy.rules.quota import Quota

_A_MOMENT: Final = 0.005  # seconds for which the check that the caller is there stays valid


class Sent(NamedTuple):
    """The request's bytes were handed to the transport at that monotonic time."""

    at: float


@dataclass(frozen=True, slots=True)
class NotSent:
    """The request provably never left."""


class Answered(NamedTuple):
    """An answer came that is not a refusal; it may announce a quota."""

    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Refusing:
    """A 429 came, and its body is still being read: nothing may leave until it is `Refused`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A 429 came that asks for a wait in seconds (None: it names no usable time)."""

    seconds: float | None
    limit: Limit = NO_LIMIT


@dataclass(frozen=True, slots=True)
class Unused:
    """The holder gives the slot back; after another last report this changes nothing."""


Report = Sent | NotSent | Answered | Refusing | Refused | Unused


class WaitUntil(NamedTuple):
    """The caller waits until that monotonic time."""

    at: float


@dataclass(frozen=True, slots=True)
class OnlyIfFree:
    """The caller takes a slot that is free now, and does not wait for one."""


Wait = WaitUntil | OnlyIfFree


class Ending(Enum):
    """Why a wait ended without a slot, for a caller that is still there."""

    EXPIRED = "the time is over"
    DRAINED = "the proxy shuts down"
    NO_STORE = "no store keeps the pace"
    HELD = "a hold outlasts the wait"


class Ticket:
    """A request's place in the order of arrival; it keeps its number when it is sent again.

    `caller` takes turns with the other callers of the queue, with a `weight` of 1 or more.
    `had_slot` says that the ticket had a slot, `has_returned` that it came back to the queue.
    The first slot of tickets with one `group` serves all of them.
    `offer` is set while the ticket is in a queue; its result is the slot, or why there is none, or
    None for a request that is taken along.
    `deadline` is the last moment at which a slot is of use. From `undecided_from` on, the ticket
    only waits to learn from the store whether a slot is free.
    """

    __slots__ = (
        "caller",
        "cost",
        "deadline",
        "group",
        "had_slot",
        "has_returned",
        "is_present",
        "joined_at",
        "number",
        "offer",
        "request_id",
        "undecided_from",
        "weight",
    )

    def __init__(  # noqa: PLR0913 -- a ticket has that much to say, by name
        self,
        number: int,
        *,
        caller: Hashable = None,
        weight: int = 1,
        cost: float = 1.0,
        is_present: Callable[[], bool] = lambda: True,
        request_id: str = "",
    ) -> None:
        self.number = number
        self.request_id = request_id
        self.caller = caller
        self.weight = weight
        self.group: object | None = None
        self.had_slot = False
        self.has_returned = False
        self.cost = cost
        self.is_present = is_present
        self.joined_at = -inf
        self.deadline = inf
        self.undecided_from = inf
        self.offer: asyncio.Future[Slot | Ending | None] | None = None

    def __repr__(self) -> str:
        return f"<Ticket {self.number}: {'waiting' if self.offer else 'not waiting'}>"

    @property
    def has_joined(self) -> bool:
        """True if the ticket was in the queue before, so it goes to the front when it returns."""
        return self.joined_at > -inf

    @property
    def is_waiting(self) -> bool:
        """True if the ticket is in a queue and its wait has not ended."""
        return self.offer is not None and not self.offer.done()

    def end(self, ending: Ending) -> None:
        """End the wait without a slot, unless it has ended."""
        if self.offer is not None and not self.offer.done():
            self.offer.set_result(ending)

    def take_along(self) -> None:
        """End the wait: the send of a request of the same group is for this one, too."""
        if self.offer is not None and not self.offer.done():
            self.offer.set_result(None)

    def __lt__(self, other: "Ticket") -> bool:
        return self.number < other.number


class SlotGranter(Protocol):
    """What a slot knows of the account that granted it."""

    def may_send(self, slot: "Slot", now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        ...

    def settle(self, slot: "Slot", report: Report) -> None:
        """Process the slot's report."""
        ...


class Slot:
    """The right to send one request now; report its outcome.

    As a context manager it reports `Unused` at the end. `due_at` is when the slot could be given to
    this request, `not_before` when the pace allowed it.
    """

    __slots__ = (
        "_granter",
        "_ticket",
        "due_at",
        "granted_at",
        "is_open",
        "is_refusing",
        "not_before",
        "sent_at",
    )

    def __init__(
        self,
        granter: SlotGranter,
        ticket: Ticket,
        *,
        at: float,
        due_at: float,
        not_before: float,
    ) -> None:
        self.granted_at = at
        self._granter = granter
        self._ticket = ticket
        self.is_open = True
        self.is_refusing = False
        self.due_at = due_at
        self.not_before = not_before
        self.sent_at = -inf

    def __repr__(self) -> str:
        return f"<Slot of request {self.request_id}: {'open' if self.is_open else 'closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self.is_open:
            self.report(Unused())

    @property
    def cost(self) -> float:
        """What a send costs, in intervals."""
        return self._ticket.cost

    @property
    def request_id(self) -> str:
        """Whose slot it is."""
        return self._ticket.request_id

    def may_leave(self, now: float) -> bool:
        """True if the slot may still be used.

        Since the grant the API may have refused another request, the pace may have changed, the
        lease may have run out, the caller may have left, or its deadline may have passed.
        """
        return (
            self._granter.may_send(self, now)
            and now <= self._ticket.deadline
            and (now < self.granted_at + _A_MOMENT or self._ticket.is_present())
        )

    def report(self, report: Report) -> None:
        """Report the outcome of the slot."""
        self._granter.settle(self, report)
