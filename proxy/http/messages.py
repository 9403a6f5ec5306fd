"""Requests to a server, answers read whole, and the exceptions for what can go wrong.

Exactly one of four exceptions ends a request without an answer: `Unsent` (provably nothing left),
`Withheld` (it was no longer allowed to leave once there was a connection), `OutcomeUnknown` (it may
have been applied) or `BadAnswer` (answered, but not in valid HTTP). Their texts never hold a
header.
"""

from dataclasses import dataclass
from typing import NamedTuple

from proxy.rules.headers import Field


class Unsent(Exception):
    """The request provably never left: DNS, connect or TLS failed, or no connection was free."""


class Withheld(Exception):
    """The request did not leave: when there was a connection it was no longer allowed to."""


class OutcomeUnknown(Exception):
    """The request was sent and no answer came.

    `timed_out` is False for a lost connection. `may_repeat`: the method is safe, and the connection
    came from the pool and was lost before a byte of the answer; servers close idle ones.
    """

    def __init__(self, *, timed_out: bool, may_repeat: bool = False) -> None:
        super().__init__("no answer in time" if timed_out else "the connection was lost")
        self.timed_out = timed_out
        self.may_repeat = may_repeat


class BadAnswer(Exception):
    """The answer is not HTTP, or has a status that must not be passed on."""


class Outgoing(NamedTuple):
    """A request as it is sent; `path` and `query` are raw."""

    method: str
    path: str
    query: str
    fields: list[Field]
    body: bytes

    @property
    def target(self) -> str:
        """The request target in origin-form."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read whole, bytes as they came."""

    status: int
    reason: str
    fields: list[Field]
    body: bytes
