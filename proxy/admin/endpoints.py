"""The handler for each request of the admin port: a table of methods and paths."""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

from proxy.admin.answers import text
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer

Handle = Callable[[Request, str], Awaitable[OwnAnswer]]

SAFE: Final = frozenset({"GET", "HEAD"})
_PLACE: Final = re.escape("{name}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Requests of one method and path; HEAD is answered like GET.

    `path` may have a place for the name of an account, written `{name}`. The handler gets the name,
    or an empty one.
    """

    method: str
    path: str
    handle: Handle
    _regex: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expression = re.escape(self.path).replace(_PLACE, "(?P<name>[^/]+)")
        object.__setattr__(self, "_regex", re.compile(expression))

    @property
    def methods(self) -> frozenset[str]:
        """The methods that it answers."""
        return SAFE if self.method == "GET" else frozenset({self.method})

    def name_in(self, path: str) -> str | None:
        """Return the name in a path, empty if there is no place for one; None for another path."""
        match = self._regex.fullmatch(path)
        return None if match is None else unquote(match.groupdict().get("name", ""))


class Found(NamedTuple):
    """The endpoint of a request, and the name in its path."""

    endpoint: Endpoint
    name: str


class Endpoints:
    """Finds the endpoint of a request."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.all = tuple(endpoints)

    def find(self, method: str, path: str) -> Found | OwnAnswer:
        """Return the endpoint of that method and raw path, or the 404 or 405."""
        allowed: set[str] = set()
        for endpoint in self.all:
            name = endpoint.name_in(path)
            if name is None:
                continue
            if method in endpoint.methods:
                return Found(endpoint, name)
            allowed |= endpoint.methods
        if not allowed:
            return text("404: Not Found", HTTPStatus.NOT_FOUND)
        allow = ("Allow", ",".join(sorted(allowed)))
        return text("405: Method Not Allowed", HTTPStatus.METHOD_NOT_ALLOWED, [allow])
