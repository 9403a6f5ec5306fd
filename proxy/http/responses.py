"""The answers of our own, on both ports.

A Problem becomes an answer here and nowhere else: `application/problem+json` (RFC 9457), or the
token endpoint's form (RFC 6749 section 5.2); a `Proxy-Status` field (RFC 9209) marks both as ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from proxy.http.messages import Answer
from proxy.problems import PROXY_NAME, Problem

_TOKEN_ERRORS: Final[Mapping[int, str]] = {
    401: "invalid_client",
    429: "temporarily_unavailable",
    503: "temporarily_unavailable",
}


@dataclass(frozen=True, slots=True)
class OwnAnswer(Answer):
    """An answer of the proxy itself; `close`: the connection ends with it."""

    close: bool = False


def problem_answer(problem: Problem, request_id: str) -> OwnAnswer:
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


def token_error_answer(problem: Problem, request_id: str) -> OwnAnswer:
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
) -> OwnAnswer:
    return OwnAnswer(
        status=problem.status,
        reason="",
        fields=[*_marks(problem, request_id).items(), ("Content-Type", content_type)],
        body=json.dumps(body).encode(),
        close=problem.close,
    )


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
