"""Merging of reads: equal reads that wait together share one send.

Theory of operation. Each request waits in its queue with a ticket of its own, so it keeps its own
place, turn and deadline. Equal requests form a `Group`. When one of them gets a slot while others
wait, a separate task sends it. In the step in which the bytes leave, the others leave the queue and
wait for the answer, too. Callers may leave at any moment: the answer goes to the remaining ones; if
none remains, the task breaks it off.

Once an answer has come whole, each request gets it, if it may be shared (rules/merging.py). Any
other answer goes to the one request that was sent, or to another if its caller left. The requests
without an answer go back to their places in the queue: together if the API did nothing (a refusal,
an idle connection that it closed), else each is sent by itself.

Invariants: a request only gets the answer to a send that began after the request had arrived. A
slot that a group takes is reported, whatever happens to the task. Nothing refers to a group once
its requests are over.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from proxy.forwarding.api_refusals import ApiRefusal
from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.outcomes import share_outcome
from proxy.forwarding.relay import read_or_keep
from proxy.http.client import Client
from proxy.http.messages import Answer, OutcomeUnknown, Unsent, Withheld
from proxy.http.received import Response
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.slot import Slot, Ticket, Unused
from proxy.problems import Problem
from proxy.rules.headers import Field
from proxy.rules.merging import MAX_SHARED, Read, is_for_both, may_be_shared, read_of

Outcome = Response | Answer | ApiRefusal | OutcomeUnknown | Unsent | Withheld
Send = Callable[[PendingRequest], Coroutine[Any, Any, Outcome]]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class SharedSend:
    """One send, and the requests that it is for: the first is the one that is sent."""

    __slots__ = ("_fields", "_first", "_is_taken", "_members", "done", "task")

    def __init__(self, first: Ticket, fields: list[Field]) -> None:
        self.done: asyncio.Future[Outcome | Problem] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._first = first
        self._fields = fields
        self._members = {first}
        self._is_taken = False

    def __repr__(self) -> str:
        return f"<SharedSend: for {len(self._members)}>"

    @property
    def is_shared(self) -> bool:
        """True if more than one request waits for the answer."""
        return len(self._members) > 1

    def take_along(self, ticket: Ticket) -> None:
        """Add a request that waits for the answer."""
        self._members.add(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Remove a request; after the last, break off an answer that no request has taken."""
        self._members.discard(ticket)
        if self._members:
            return
        if not self.done.done():
            task, self.task = self.task, None  # how it was cancelled refers back to here
            if task is not None:
                task.cancel()
        elif not self._is_taken and not self.done.cancelled() and self.done.exception() is None:
            result = self.done.result()
            if isinstance(result, Response):
                result.release()

    async def outcome(self, ticket: Ticket, fields: list[Field]) -> Outcome | None:
        """Wait for the outcome, for the request with that ticket and those fields.

        None if the answer is not for this request.
        """
        try:
            found = await asyncio.shield(self.done)
            return self._outcome_for(ticket, fields, found)
        finally:
            self.leave(ticket)

    def _outcome_for(
        self, ticket: Ticket, fields: list[Field], found: Outcome | Problem
    ) -> Outcome | None:
        is_first = ticket is self._first
        match found:
            case Response():  # one may stream it
                if self._is_taken or not (is_first or self._first not in self._members):
                    return None
                self._is_taken = True
                return found
            case Problem():
                if is_first:
                    raise found.anew()
                return None
            case Answer() if not is_first and not is_for_both(found.fields, self._fields, fields):
                return None
            case Answer() | ApiRefusal() | OutcomeUnknown() | Unsent() | Withheld():
                return found


class Group:
    """Equal reads of one queue; each waits with a ticket, or for a send that takes it along."""

    __slots__ = ("_api", "_sends", "_spawn", "_tickets")

    def __init__(self, api: Client, spawn: Spawn) -> None:
        self._api = api
        self._spawn = spawn
        self._tickets: dict[Ticket, None] = {}  # by arrival
        self._sends: dict[Ticket, SharedSend] = {}

    def __repr__(self) -> str:
        return f"<Group: {len(self._tickets)} requests>"

    @property
    def is_empty(self) -> bool:
        """True if no request is in the group."""
        return not self._tickets

    def join(self, ticket: Ticket) -> None:
        """Take in a request."""
        self._tickets[ticket] = None
        ticket.group = self

    def leave(self, ticket: Ticket) -> None:
        """Remove a request, wherever it waits; from now on it is sent by itself."""
        self._tickets.pop(ticket, None)
        ticket.group = None
        sent = self._sends.pop(ticket, None)
        if sent is not None:
            sent.leave(ticket)

    def others_wait(self, ticket: Ticket) -> bool:
        """True if another one is in the queue."""
        return any(one is not ticket and one.is_waiting for one in self._tickets)

    async def send(
        self, pending: PendingRequest, ticket: Ticket, slot: Slot, send: Send
    ) -> Outcome:
        """Send one request for all that wait when it leaves."""
        shared = SharedSend(ticket, pending.outgoing.fields)
        # What refers to the shared send is the task's alone, so that both go when it is over.
        watched = pending._replace(on_sent=lambda: self._take_along(shared))
        shared.task = self._spawn(self._run(shared, watched, slot, send))
        shared.task.add_done_callback(lambda _: slot.report(Unused()))  # it may never have begun
        return await self._outcome_of(shared, pending, ticket)

    async def outcome(self, pending: PendingRequest, ticket: Ticket) -> Outcome:
        """Wait for the outcome of the send that took a request along."""
        return await self._outcome_of(self._sends.pop(ticket), pending, ticket)

    async def _outcome_of(
        self, shared: SharedSend, pending: PendingRequest, ticket: Ticket
    ) -> Outcome:
        outcome = await shared.outcome(ticket, pending.outgoing.fields)
        if outcome is None:
            self.leave(ticket)
            return Withheld()
        return outcome

    def _take_along(self, shared: SharedSend) -> None:
        for ticket in self._tickets:
            if ticket.is_waiting:
                ticket.take_along()
                self._sends[ticket] = shared
                shared.take_along(ticket)

    async def _run(
        self, shared: SharedSend, watched: PendingRequest, slot: Slot, send: Send
    ) -> None:
        await share_outcome(shared.done, self._sent(shared, watched, slot, send))

    async def _sent(
        self, shared: SharedSend, watched: PendingRequest, slot: Slot, send: Send
    ) -> Outcome:
        with slot:
            outcome = await send(watched)
        if isinstance(outcome, Response) and shared.is_shared:
            with watched.exchange.spending("upstream"):
                return await self._whole(watched.outgoing.method, outcome)
        return outcome

    async def _whole(self, method: str, response: Response) -> Answer | Response:
        """Read an answer that may be shared; any other is still to be streamed."""
        if not may_be_shared(method, response.head()[1]):
            return response
        return await read_or_keep(self._api, response, MAX_SHARED)


class Merging:
    """The groups of equal reads."""

    def __init__(self, *, api: Client, spawn: Spawn) -> None:
        self._api = api
        self._spawn = spawn
        self._groups: dict[tuple[AccountQueue, Read], Group] = {}

    def __repr__(self) -> str:
        return f"<Merging: {len(self._groups)} groups>"

    @contextmanager
    def joined(self, pending: PendingRequest, read: Read, ticket: Ticket) -> Iterator[Group]:
        """Keep a request in the group of equal reads for the block."""
        key = pending.queue, read
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(self._api, self._spawn)
        group.join(ticket)
        try:
            yield group
        finally:
            group.leave(ticket)
            if group.is_empty and self._groups.get(key) is group:
                del self._groups[key]


def read_to_merge(pending: PendingRequest) -> Read | None:
    """Return a request as a read to compare; None if it must be sent by itself."""
    if not pending.may_merge:
        return None
    outgoing = pending.outgoing
    return read_of(
        outgoing.method,
        outgoing.target,
        outgoing.fields,
        outgoing.body,
        has_own_token=pending.managed is None,
    )
