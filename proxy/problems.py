"""Every answer the proxy makes itself, as a value: one row per problem, and nothing else.

Code raises a problem where it finds the reason; `http/responses.py` renders it. A problem has
`Retry-After` exactly when nothing was created and sending again later makes sense. No code decides
by the name of a problem.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Final, Literal

from proxy.rules.incidents import TroubleKind

PROXY_NAME: Final = "export-proxy"


Name = Literal[
    "bad-request",
    "unauthenticated",
    "missing-scope",
    "route-denied",
    "not-found",
    "method-not-allowed",
    "timeout",
    "too-large",
    "in-doubt",
    "nested-field",
    "key-reused",
    "queue-full",
    "wait-expired",
    "internal",
    "outcome-unknown",
    "bad-upstream",
    "token-rejected",
    "upstream-unreachable",
    "token-unavailable",
    "keys-unavailable",
    "store-unavailable",
    "overloaded",
    "draining",
    "loop",
]


class Again(Enum):
    """Whether sending again later is safe and makes sense; if so the answer has Retry-After."""

    YES = "yes"
    NO = "no"
    DEPENDS = "depends"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: what callers can rely on for a problem of this name.

    `proxy_error` is the error type of RFC 9209 section 2.3. `variants` are the statuses it may have
    instead of `status`, `trouble` the kind of incident that it indicates.
    """

    status: int
    title: str
    again: Again
    proxy_error: str
    variants: tuple[int, ...] = ()
    trouble: TroubleKind | None = None


KINDS: Final[Mapping[Name, Kind]] = {
    "bad-request": Kind(
        400, "The request is malformed", Again.NO, "http_request_error", variants=(417,)
    ),
    "unauthenticated": Kind(401, "No usable credential", Again.NO, "http_request_denied"),
    "missing-scope": Kind(
        403,
        "The token lacks a scope",
        Again.DEPENDS,
        "http_request_denied",
        trouble="scope_missing",
    ),
    "route-denied": Kind(403, "This path is closed here", Again.NO, "http_request_denied"),
    "not-found": Kind(404, "No route for this path", Again.NO, "http_request_denied"),
    "method-not-allowed": Kind(
        405, "This path has no such method", Again.NO, "http_request_denied"
    ),
    "timeout": Kind(408, "The body came too slowly", Again.NO, "http_request_error"),
    "in-doubt": Kind(
        409,
        "An equal request may have been carried out",
        Again.NO,
        "http_request_denied",
        trouble="in_doubt",
    ),
    "too-large": Kind(
        413, "The request is too large", Again.NO, "http_request_error", variants=(431,)
    ),
    "nested-field": Kind(422, "A field must be flat", Again.NO, "http_request_denied"),
    "key-reused": Kind(
        422, "The Idempotency-Key belongs to another request", Again.NO, "http_request_denied"
    ),
    "queue-full": Kind(429, "The queue is too long", Again.YES, "http_request_denied"),
    "wait-expired": Kind(429, "No slot within the limit", Again.YES, "http_request_denied"),
    "internal": Kind(500, "A bug in the proxy", Again.NO, "proxy_internal_error"),
    "outcome-unknown": Kind(
        502,
        "Sent, but the answer was lost",
        Again.NO,
        "connection_terminated",
        variants=(504,),
        trouble="in_doubt",
    ),
    "bad-upstream": Kind(502, "The API's answer is not usable", Again.NO, "http_protocol_error"),
    "token-rejected": Kind(
        502,
        "The login server refuses the credentials",
        Again.NO,
        "proxy_configuration_error",
        trouble="credentials_rejected",
    ),
    "upstream-unreachable": Kind(
        503,
        "The API cannot be reached",
        Again.YES,
        "destination_unavailable",
        trouble="unreachable",
    ),
    "token-unavailable": Kind(
        503, "No valid token at present", Again.YES, "destination_unavailable"
    ),
    "keys-unavailable": Kind(503, "No signing keys yet", Again.YES, "destination_unavailable"),
    "store-unavailable": Kind(
        503, "The shared store is down", Again.YES, "proxy_internal_response"
    ),
    "overloaded": Kind(503, "Too many bytes are waiting", Again.YES, "proxy_internal_response"),
    "draining": Kind(503, "The proxy is shutting down", Again.YES, "proxy_internal_response"),
    "loop": Kind(508, "The request is looping through this proxy", Again.NO, "proxy_loop_detected"),
}


class Problem(Exception):
    """An answer of our own, raised where its reason is found.

    `detail` is a sentence for the person who reads the answer, and holds nothing of what the caller
    sent. `retry_after` is in seconds, rounded up here. `fields` are further members of the body;
    `close` ends the caller's connection after the answer.
    """

    def __init__(  # noqa: PLR0913 -- one keyword for each part of an answer
        self,
        name: Name,
        detail: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        kind = KINDS[name]
        if kind.again is (Again.NO if retry_after is not None else Again.YES):
            raise ValueError(f"{name}: Retry-After given or missing against the table")
        if status not in {None, kind.status, *kind.variants}:
            raise ValueError(f"{name}: no status of the table")
        self.name: Final = name
        self.kind = kind
        self.detail = detail
        self.status = kind.status if status is None else status
        self.retry_after = None if retry_after is None else max(1, ceil(retry_after))
        self.headers = dict(headers or {})
        self.close = close
        self.fields = dict(fields or {})

    def anew(self) -> "Problem":
        """Return an equal problem that was never raised.

        A kept problem that is raised makes a reference cycle: its traceback refers to its keeper.
        """
        return Problem(
            self.name,
            self.detail,
            retry_after=self.retry_after,
            status=self.status,
            headers=self.headers,
            close=self.close,
            fields=self.fields,
        )

    @property
    def type(self) -> str:
        """The URN that identifies the problem."""
        return f"urn:{PROXY_NAME}:{self.name}"


def draining() -> Problem:
    """Return the refusal while the proxy shuts down; nothing was sent."""
    return Problem(
        "draining", "The proxy is shutting down; nothing was sent.", retry_after=1, close=True
    )


def store_unavailable() -> Problem:
    """Return the refusal while the store of the pace is down; nothing was sent."""
    return Problem("store-unavailable", "The store that keeps the pace is down.", retry_after=1)


def unauthenticated(detail: str) -> Problem:
    """Return the refusal of a caller without a usable credential (RFC 6750 section 3)."""
    return Problem(
        "unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="export-proxy"'}
    )
