"""Our own answers as callers see them."""

import json
from http import HTTPStatus
from typing import Any

import pytest

from proxy.http.responses import OwnAnswer, problem_answer, token_error_answer
from proxy.problems import KINDS, Again, Name, Problem, unauthenticated

# The types of RFC 9209 section 2.3 that a problem of ours may have.
REQUEST = "http_request_error"
DENIED = "http_request_denied"
UNAVAILABLE = "destination_unavailable"
INTERNAL = "proxy_internal_response"

PROXY_ERRORS: dict[Name, str] = {
    "bad-request": REQUEST,
    "unauthenticated": DENIED,
    "missing-scope": DENIED,
    "route-denied": DENIED,
    "not-found": DENIED,
    "method-not-allowed": DENIED,
    "timeout": REQUEST,
    "in-doubt": DENIED,
    "too-large": REQUEST,
    "nested-field": DENIED,
    "key-reused": DENIED,
    "queue-full": DENIED,
    "wait-expired": DENIED,
    "internal": "proxy_internal_error",
    "outcome-unknown": "connection_terminated",
    "bad-upstream": "http_protocol_error",
    "token-rejected": "proxy_configuration_error",
    "upstream-unreachable": UNAVAILABLE,
    "token-unavailable": UNAVAILABLE,
    "keys-unavailable": UNAVAILABLE,
    "store-unavailable": INTERNAL,
    "overloaded": INTERNAL,
    "draining": INTERNAL,
    "loop": "proxy_loop_detected",
}


def body_of(response: OwnAnswer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(response.body)
    return document


@pytest.mark.parametrize("name", KINDS)
def test_a_row_becomes_an_answer(name: Name) -> None:
    proxy_error = PROXY_ERRORS[name]
    status, again = KINDS[name].status, KINDS[name].again is Again.YES
    response = problem_answer(
        Problem(name, "A sentence.", retry_after=7 if again else None), "id-1"
    )
    assert response.status == status
    document = body_of(response)
    assert document.pop("title")
    assert document == {
        "type": f"urn:export-proxy:{name}",
        "status": status,
        "detail": "A sentence.",
        "instance": "id-1",
    }
    headers = dict(response.fields)
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["X-Request-Id"] == "id-1"
    assert headers["Proxy-Status"] == f'export-proxy; error={proxy_error}; details="{name}"'
    assert headers["Cache-Control"] == "no-store"
    assert headers.get("Retry-After") == ("7" if again else None)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "1"), (0.2, "1"), (1, "1"), (1.001, "2"), (59.5, "60"), (60, "60")],
)
def test_retry_after_is_whole_seconds_never_sooner_and_at_least_one(
    seconds: float, expected: str
) -> None:
    headers = problem_answer(Problem("queue-full", "A sentence.", retry_after=seconds), "id").fields
    assert dict(headers)["Retry-After"] == expected


def test_a_missing_scope_may_have_a_date_or_none() -> None:
    none = problem_answer(Problem("missing-scope", "No."), "id")
    assert "Retry-After" not in dict(none.fields)
    later = problem_answer(Problem("missing-scope", "Not yet.", retry_after=15), "id")
    assert dict(later.fields)["Retry-After"] == "15"


def test_facts_are_fields_of_the_document() -> None:
    problem = Problem("queue-full", "Too long.", retry_after=3, fields={"predicted_wait": 17.25})
    assert body_of(problem_answer(problem, "id"))["predicted_wait"] == 17.25


@pytest.mark.parametrize(
    ("name", "status"), [("bad-request", 417), ("too-large", 431), ("outcome-unknown", 504)]
)
def test_some_have_a_second_status(name: Name, status: int) -> None:
    response = problem_answer(Problem(name, "A sentence.", status=status), "id")
    document = body_of(response)
    assert (response.status, document["status"]) == (status, status)
    assert document["type"] == f"urn:export-proxy:{name}"


def test_silence_and_a_lost_connection_are_told_apart() -> None:
    """RFC 9209 section 2.3: http_response_timeout, connection_terminated."""
    silence = Problem("outcome-unknown", "Sent.", status=HTTPStatus.GATEWAY_TIMEOUT)
    lost = Problem("outcome-unknown", "Sent.")
    assert "error=http_response_timeout;" in problem_answer(silence, "id").fields[0][1]
    assert "error=connection_terminated;" in problem_answer(lost, "id").fields[0][1]


def test_only_what_asks_for_it_closes_the_connection() -> None:
    closing = problem_answer(Problem("draining", "Going.", retry_after=1, close=True), "id")
    assert closing.close
    assert not problem_answer(Problem("not-found", "Nothing."), "id").close


def test_further_fields_of_the_head_are_kept() -> None:
    problem = Problem("method-not-allowed", "No.", headers={"Allow": "GET, POST"})
    assert dict(problem_answer(problem, "id").fields)["Allow"] == "GET, POST"


def test_a_caller_without_a_credential_is_told_what_to_bring() -> None:
    """RFC 9110 section 11.6.1: a 401 has a challenge."""
    response = problem_answer(unauthenticated("A bearer token is required."), "id")
    assert response.status == 401
    assert dict(response.fields)["WWW-Authenticate"] == 'Bearer realm="export-proxy"'


@pytest.mark.parametrize(
    ("problem", "status", "error"),
    [
        (Problem("bad-request", "Twice."), 400, "invalid_request"),
        (unauthenticated("Wrong."), 401, "invalid_client"),
        (Problem("wait-expired", "Too many.", retry_after=60), 429, "temporarily_unavailable"),
        (Problem("token-rejected", "Refused."), 502, "server_error"),
        (Problem("draining", "Going.", retry_after=1), 503, "temporarily_unavailable"),
    ],
)
def test_the_token_endpoint_has_errors_of_its_own_form(
    problem: Problem, status: int, error: str
) -> None:
    """RFC 6749 section 5.2; the fields of the head are those of any refusal."""
    response = token_error_answer(problem, "id-1")
    assert response.status == status
    assert body_of(response) == {"error": error, "error_description": problem.detail}
    headers = dict(problem_answer(problem, "id-1").fields)
    names = {"Proxy-Status", "X-Request-Id", "Cache-Control", "Retry-After", "WWW-Authenticate"}
    assert {name: dict(response.fields).get(name) for name in names} == {
        name: headers.get(name) for name in names
    }
    assert dict(response.fields)["Content-Type"] == "application/json"
