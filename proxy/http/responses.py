"""The answers that leave the listen port: the API's, relayed, and our own.

A Problem becomes a response here and nowhere else: `application/problem+json` (RFC 9457), or the
token endpoint's form (RFC 6749 section 5.2); a `Proxy-Status` field (RFC 9209) marks both as ours.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from proxy.problems import PROXY_NAME, Problem

_TOKEN_ERRORS: Final[Mapping[int, str]] = {
    401: "invalid_client",
    429: "temporarily_unavailable",
    503: "temporarily_unavailable",
}


class OwnResponse(web.Response):
    """A response that does not name the software and versions it is made with."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


class RelayedResponse(web.StreamResponse):
    """An answer of the API: nothing the API did not send is invented, Date aside.

    A forwarded answer without Date gets one (RFC 9110 section 6.6.1).
    """

    def leaves_whole(self) -> None:
        """Hold the head back until the body is there; both leave in one piece."""
        self._send_headers_immediately = False

    async def _prepare_headers(self) -> None:
        invented = [name for name in ("Content-Type", "Server") if name not in self.headers]
        await super()._prepare_headers()
        for name in invented:
            self.headers.popall(name, None)


def problem_response(problem: Problem, request_id: str) -> OwnResponse:
    """Return the answer for the request of that id; it closes the connection if asked to."""
    body = {
        "type": problem.type,
        "title": problem.kind.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request_id,
        **problem.fields,
    }
    return _rendered(problem, request_id, body, "application/problem+json")


def token_error_response(problem: Problem, request_id: str) -> OwnResponse:
    """Return the same in the form a token endpoint gives its errors."""
    is_ours = problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    default = "server_error" if is_ours else "invalid_request"
    body = {
        "error": _TOKEN_ERRORS.get(problem.status, default),
        "error_description": problem.detail,
    }
    return _rendered(problem, request_id, body, "application/json")


def _rendered(
    problem: Problem, request_id: str, body: Mapping[str, object], content_type: str
) -> OwnResponse:
    response = OwnResponse(
        body=json.dumps(body).encode(),
        status=problem.status,
        headers={**_marks(problem, request_id), "Content-Type": content_type},
    )
    if problem.close:
        response.force_close()
    return response


def _marks(problem: Problem, request_id: str) -> dict[str, str]:
    """Return the header fields that every refusal of ours has."""
    timed_out = problem.status == HTTPStatus.GATEWAY_TIMEOUT
    error = "http_response_timeout" if timed_out else problem.kind.proxy_error
    marks = {
        "Proxy-Status": f'{PROXY_NAME}; error={error}; details="{problem.name}"',
        "X-Request-Id": request_id,
        "Cache-Control": "no-store",
        **problem.headers,
    }
    if problem.retry_after is not None:
        marks["Retry-After"] = str(problem.retry_after)
    return marks
