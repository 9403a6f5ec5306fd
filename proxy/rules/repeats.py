"""Which request is the same as an earlier one, and what is kept of a request for that.

A caller whose answer was lost sends the same request again, and the API would carry it out twice.
So the proxy keeps a `Record`, under two digests: one of its Idempotency-Key if it has one, and one
of method, raw target and body. Both digests include the caller, so no caller gets another's answer.

| how it ended | what is kept, and for how long |
| --- | --- |
| refused, never sent, or any 4xx | nothing |
| no usable answer, 502 or 504 | that it is in doubt, for the window |
| an answer that was not delivered | the answer for the window; in doubt if it is too large |
| an answer that was delivered | the answer under its key alone, for `keep` |

See draft-ietf-httpapi-idempotency-key-header.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from typing import Final

MAX_ANSWER: Final = 65_536  # bytes of a body that is kept; an export's answer has some hundred
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_UNKNOWN: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer that can be given again, without Set-Cookie."""

    status: int
    reason: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(
        cls, status: int, reason: str, fields: list[tuple[str, str]], body: bytes
    ) -> "KeptAnswer":
        """Keep an answer without its cookies."""
        kept = tuple(field for field in fields if field[0].lower() != "set-cookie")
        return cls(status, reason, kept, body)


@dataclass(frozen=True, slots=True)
class InDoubt:
    """The request was sent, and its outcome is not known."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A replica handles the request: it waits, or `is_sent` and its answer is awaited."""

    is_sent: bool


State = KeptAnswer | InDoubt | UnderWay


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept of a request; times are wall time.

    `until` is when it is forgotten. `is_delivered` says that a caller had the answer.
    """

    sameness: bytes
    request_id: str
    sent_at: float
    until: float
    state: State
    is_delivered: bool = False


@dataclass(frozen=True, slots=True)
class Digests:
    """The names of a request: `key` is that of its Idempotency-Key, if it has one."""

    key: bytes | None
    sameness: bytes

    @property
    def name(self) -> bytes:
        """The name under which the request is looked up."""
        return self.sameness if self.key is None else self.key


def scope_of(account: str, authorization: str, address: str) -> bytes:
    """Return the digest of a caller; `address` is empty for one that is known by a key."""
    return _digest(b"caller", account.encode(), authorization.encode(), address.encode())


def digests_of(scope: bytes, key: str, method: str, target: str, body: bytes) -> Digests:
    """Return the names of a request; `key` is empty if it has no Idempotency-Key."""
    sameness = _digest(
        b"same", scope, method.encode(), target.encode(errors="surrogateescape"), body
    )
    named = _digest(b"key", scope, key.encode(errors="surrogateescape")) if key else None
    return Digests(named, sameness)


def is_reused(record: Record, digests: Digests) -> bool:
    """True if the request uses the key of a different request."""
    return digests.key is not None and record.sameness != digests.sameness


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a sent request ended: with this answer (None: too large to keep, or none)."""

    status: int | None
    answer: KeptAnswer | None
    is_delivered: bool


def kept_of(
    ended: Ended, digests: Digests, *, window: float, keep: float
) -> Iterator[tuple[bytes, State, float]]:
    """Yield the records to keep of a request: name, record, and for how many seconds."""
    names = [digests.sameness] if digests.key is None else [digests.key, digests.sameness]
    if ended.status is None or ended.status in _UNKNOWN:
        yield from ((name, InDoubt(), window) for name in names)
    elif 400 <= ended.status <= 499:  # noqa: PLR2004 -- the API did nothing
        return
    elif not ended.is_delivered:
        yield from ((name, ended.answer or InDoubt(), window) for name in names)
    elif digests.key is not None:
        if ended.answer is None:
            yield digests.key, InDoubt(), window
        else:
            yield digests.key, ended.answer, keep


def _digest(*parts: bytes) -> bytes:
    """Return one digest of several texts; each follows its length, so none runs into the next."""
    return sha256(b"".join([b"%d:%b" % (len(part), part) for part in parts])).digest()
