"""Every answer the proxy makes itself: one row a problem, and nothing else.

A problem is raised where it is found and becomes a response in one place, `Problem.response`:
`application/problem+json` (RFC 9457), a `Proxy-Status` field (RFC 9209) that marks it as ours, and
`Retry-After` exactly when nothing was created and sending again later makes sense.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from math import ceil
from typing import Final

from aiohttp import web

PROXY_NAME: Final = "export-proxy"


class Again(Enum):
    """Whether sending again later is safe and makes sense: what Retry-After then says."""

    YES = "yes"
    NO = "no"
    DEPENDS = "depends"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: what callers can rely on for a problem of this name.

    `proxy_error` is the error type of RFC 9209 section 2.3. `variants` are the statuses it may have
    instead of `status`.
    """

    status: int
    title: str
    again: Again
    proxy_error: str
    variants: tuple[int, ...] = ()


KINDS: Final[Mapping[str, Kind]] = {
    "bad-request": Kind(
        400, "The request is malformed", Again.NO, "http_request_error", variants=(417,)
    ),
    "unauthenticated": Kind(401, "No usable credential", Again.NO, "http_request_denied"),
    "missing-scope": Kind(403, "The token lacks a scope", Again.DEPENDS, "http_request_denied"),
    "route-denied": Kind(403, "This path is closed here", Again.NO, "http_request_denied"),
    "not-found": Kind(404, "No route for this path", Again.NO, "http_request_denied"),
    "method-not-allowed": Kind(405, "Not a method of this path", Again.NO, "http_request_denied"),
    "timeout": Kind(408, "The body came too slowly", Again.NO, "http_request_error"),
    "too-large": Kind(
        413, "The request is too large", Again.NO, "http_request_error", variants=(431,)
    ),
    "nested-field": Kind(422, "A field must be flat", Again.NO, "http_request_denied"),
    "queue-full": Kind(429, "The line is too long", Again.YES, "http_request_denied"),
    "wait-expired": Kind(429, "No slot within the limit", Again.YES, "http_request_denied"),
    "internal": Kind(500, "A bug in the proxy", Again.NO, "proxy_internal_error"),
    "outcome-unknown": Kind(
        502, "Sent, but the answer was lost", Again.NO, "connection_terminated", variants=(504,)
    ),
    "bad-upstream": Kind(502, "The API's answer is not usable", Again.NO, "http_protocol_error"),
    "token-rejected": Kind(
        502, "The login server refuses the credentials", Again.NO, "proxy_configuration_error"
    ),
    "upstream-unreachable": Kind(
        503, "The API cannot be reached", Again.YES, "destination_unavailable"
    ),
    "token-unavailable": Kind(503, "No valid token for now", Again.YES, "destination_unavailable"),
    "keys-unavailable": Kind(503, "No signing keys yet", Again.YES, "destination_unavailable"),
    "store-unavailable": Kind(
        503, "The shared store is down", Again.YES, "proxy_internal_response"
    ),
    "overloaded": Kind(503, "Too many bytes are waiting", Again.YES, "proxy_internal_response"),
    "draining": Kind(503, "The proxy is shutting down", Again.YES, "proxy_internal_response"),
    "loop": Kind(508, "The request came round in a circle", Again.NO, "proxy_loop_detected"),
}


class Problem(Exception):
    """An answer of our own, raised where its reason is found.

    `name` is a key of `KINDS`; `detail` is a sentence for the person who reads the answer, and
    holds nothing of what the caller sent. `retry_after` is in seconds, rounded up here.
    """

    def __init__(  # noqa: PLR0913 -- one keyword for each part of an answer
        self,
        name: str,
        detail: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        **fields: object,
    ) -> None:
        super().__init__(detail)
        kind = KINDS[name]
        if kind.again is (Again.NO if retry_after is not None else Again.YES):
            raise ValueError(f"{name}: Retry-After given or missing against the table")
        if status not in {None, kind.status, *kind.variants}:
            raise ValueError(f"{name}: no status of the table")
        self.name = name
        self.kind = kind
        self.detail = detail
        self.status = kind.status if status is None else status
        self.retry_after = None if retry_after is None else max(1, ceil(retry_after))
        self.headers = dict(headers or {})
        self.close = close
        self.fields = fields

    @property
    def type(self) -> str:
        """The URN by which the problem is told apart."""
        return f"urn:{PROXY_NAME}:{self.name}"

    def response(self, request_id: str) -> web.Response:
        """Return the answer for the request of that id; it closes the connection if asked to."""
        body = {
            "type": self.type,
            "title": self.kind.title,
            "status": self.status,
            "detail": self.detail,
            "instance": request_id,
            **self.fields,
        }
        response = OwnResponse(
            body=json.dumps(body).encode(),
            status=self.status,
            headers={**self.marks(request_id), "Content-Type": "application/problem+json"},
        )
        if self.close:
            response.force_close()
        return response

    def marks(self, request_id: str) -> dict[str, str]:
        """Return the header fields that every answer of our own has."""
        timed_out = self.status == HTTPStatus.GATEWAY_TIMEOUT
        error = "http_response_timeout" if timed_out else self.kind.proxy_error
        marks = {
            "Proxy-Status": f'{PROXY_NAME}; error={error}; details="{self.name}"',
            "X-Request-Id": request_id,
            "Cache-Control": "no-store",
            **self.headers,
        }
        if self.retry_after is not None:
            marks["Retry-After"] = str(self.retry_after)
        return marks


class OwnResponse(web.Response):
    """A response that does not name the software and versions it is made with."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


def unauthenticated(detail: str) -> Problem:
    """Return the refusal of a caller without a usable credential (RFC 6750 section 3)."""
    return Problem(
        "unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="export-proxy"'}
    )
