"""Which reads are the same, and which answers may be given to more than one caller.

Equal reads that wait together share one send. Two reads are equal if the API would get the same
bytes from both, except for the fields that only name a request or its program. So a caller gets
only what its own credential, cookie and preference would have given it. The answer must not depend
on those fields either, and must not be meant for one caller.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from proxy.rules.headers import Field, content_length

MAX_SHARED: Final = 1_048_576  # bytes of a body that all callers of one send may keep unread
_READS: Final = frozenset({"GET", "HEAD"})
_NOT_COMPARED: Final = frozenset(
    {"user-agent", "x-request-id", "traceparent", "tracestate", "purecloud-sdk"}
)


@dataclass(frozen=True, slots=True)
class Read:
    """A read, as it is compared with others."""

    method: str
    target: str
    fields: tuple[Field, ...]


def read_of(
    method: str, target: str, fields: Iterable[Field], body: bytes, *, has_own_token: bool
) -> Read | None:
    """Return a request as a read to compare; None if it must be sent by itself.

    `fields` are those that are forwarded. Without `has_own_token`, `Authorization` is not.
    """
    if method not in _READS or body:
        return None
    dropped = _NOT_COMPARED if has_own_token else _NOT_COMPARED | {"authorization"}
    compared = [(low, value) for name, value in fields if (low := name.lower()) not in dropped]
    for name, value in compared:
        if name == "range" or name.startswith("if-"):
            return None
        if name == "cache-control" and "no-store" in _listed(value):
            return None
    return Read(method, target, tuple(sorted(compared, key=lambda field: field[0])))


def may_be_shared(method: str, answer: Iterable[Field]) -> bool:
    """True if several callers may get an answer with these fields, once it is complete."""
    for name, value in answer:
        low = name.lower()
        if low == "set-cookie" or (low == "vary" and "*" in _listed(value)):
            return False
        if low == "content-length" and method != "HEAD" and _number(value) > MAX_SHARED:
            return False
    return True


def is_for_both(answer: Iterable[Field], sent: Sequence[Field], other: Sequence[Field]) -> bool:
    """True if the answer to `sent` does not vary by a field in which `other` differs from it."""
    varying = {one for name, value in answer if name.lower() == "vary" for one in _listed(value)}
    return all(_values(sent, name) == _values(other, name) for name in varying & _NOT_COMPARED)


def _number(value: str) -> float:
    return content_length(value) if value.isascii() and value.isdigit() else inf


def _listed(value: str) -> set[str]:
    return {one.strip().lower() for one in value.split(",")}


def _values(fields: Iterable[Field], name: str) -> list[str]:
    return [value for other, value in fields if other.lower() == name]
