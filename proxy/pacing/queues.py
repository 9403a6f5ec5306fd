"""The queues of one account, and what a reload of the paced routes does to them.

A pace belongs to paths, not to a route's name. When a route takes paths that another one took
before, the queue of that other route goes on for them:

- if its route was removed, it becomes the queue of the new route, waiters included;
- if its route remains, it is divided once it is empty: until then it sends for both routes;
- if the new route has a queue already, both keep one pace until the old one is empty.

Invariants: requests for one path never have two paces. A divided or later opened queue keeps the
interval from the last send of the queue before it.
"""

from collections.abc import Container, Iterable, Iterator, Mapping

from proxy.pacing.account_queue import AccountQueue, Scheduler
from proxy.pacing.allowance import Allowance


class Queues:
    """The queues of one account, by route."""

    def __init__(self, scheduler: Scheduler, allowance: Allowance) -> None:
        self._scheduler = scheduler
        self._allowance = allowance
        self._by_route: dict[str, AccountQueue] = {}
        self._undivided: dict[str, AccountQueue] = {}  # sends for that route until it is empty
        self._joined: list[tuple[AccountQueue, AccountQueue]] = []  # one pace; the old one first

    def __repr__(self) -> str:
        return f"<Queues of {self._allowance.label}: {', '.join(self._by_route)}>"

    def __iter__(self) -> Iterator[AccountQueue]:
        return iter(self._by_route.values())

    def get(self, route: str, *, paced: bool) -> AccountQueue:
        """Return the queue in which requests of that route wait."""
        queue = self._by_route.get(route)
        if queue is not None:
            return queue
        undivided = self._undivided.get(route)
        if undivided is not None and undivided.is_in_use:
            return undivided
        context = self._allowance.context
        queue = AccountQueue(self._scheduler, self._allowance, route, paced=paced)
        queue.queue.close_until(context.inherited_at(route) + queue.interval)
        if undivided is not None:
            queue.inherit(self._undivided.pop(route))
        self._open(route, queue)
        return queue

    def _open(self, route: str, queue: AccountQueue) -> None:
        self._by_route[route] = queue
        self._allowance.context.metrics.queue_opened(self._allowance.label, route)

    def hand_over(
        self, predecessors: Mapping[str, Iterable[str]], *, paced: Container[str]
    ) -> None:
        """Hand queues over to the routes that take their paths now.

        `predecessors` names, for each new route, the old ones that took some of its paths; `paced`
        are the new paced routes.
        """
        before = self._undivided | self._by_route
        self._undivided = {
            route: queue for route, queue in self._undivided.items() if route in paced
        }
        for route, names in predecessors.items():
            for name in names:
                queue = before.get(name)
                if queue is None:
                    continue
                if name not in paced and self._by_route.get(name) is queue:
                    self._rename(name, route)
                else:
                    self._share(queue, route)

    def _rename(self, old: str, new: str) -> None:
        """Give the queue of a removed route to a new one that has no queue."""
        queue, undivided = self._by_route[old], self._undivided.pop(new, None)
        if new in self._by_route:
            self._share(queue, new)
            return
        if undivided is not None and undivided is not queue:
            self._join(undivided, queue)
        queue.rename(new)
        self._open(new, self._by_route.pop(old))

    def _share(self, queue: AccountQueue, route: str) -> None:
        """Make a queue keep one pace with a route's queue until it is empty, or stand in for it."""
        own, undivided = self._by_route.get(route), self._undivided.get(route)
        if own is not None and own is not queue:
            self._join(queue, own)
        elif own is None:
            if undivided is not None and undivided is not queue:
                self._join(undivided, queue)
            self._undivided[route] = queue

    def _join(self, old: AccountQueue, new: AccountQueue) -> None:
        new.inherit(old)
        self._joined.append((old, new))
        old.join(new)
        new.join(old)

    def spent(self, queue: AccountQueue) -> None:
        """Report a send of that queue to those that keep one pace with it."""
        for other in queue.joined:
            other.keep_pace_of(queue)
        for old, new in [pair for pair in self._joined if not pair[0].is_in_use]:
            self._joined.remove((old, new))
            old.part(new)
            new.part(old)
