"""Which queue takes a path after a reload, and by which name replicas share its leases.

A pace belongs to what is sent, not to a route's name. So replicas name the leases of a queue by the
paths and methods that its route takes: a renamed route shares them with a replica that still has
the old name. And a queue inherits the last send of each queue that took one of its paths before.
"""

import hashlib
from collections.abc import Iterable, Mapping

Taken = frozenset[tuple[str, str]]  # method and path pattern


def taken_by(paths: Iterable[str], methods: Iterable[str], every: Iterable[str]) -> Taken:
    """Return what a route takes; a method `*` stands for `every` one."""
    names = set(methods)
    return frozenset(
        (method, path) for path in paths for method in (every if "*" in names else names)
    )


def lease_name(taken: Taken) -> str:
    """Return the name of the leases of a queue whose route takes that."""
    text = "\n".join(f"{method} {path}" for method, path in sorted(taken))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def predecessors(
    old: Mapping[str, Taken], new: Mapping[str, Taken]
) -> Mapping[str, tuple[str, ...]]:
    """Return, for each new paced route, the other paced routes that took some of it before."""
    return {
        name: tuple(
            other
            for other, before in old.items()
            if other != name and before & taken - old.get(name, frozenset())
        )
        for name, taken in new.items()
    }
