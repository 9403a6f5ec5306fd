"""The answers the proxy makes itself: the table as callers know it, and what each row becomes."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from aiohttp import web

from proxy.problems import KINDS, Problem, unauthenticated

# The types of RFC 9209 section 2.3 that a problem of ours may have.
REQUEST = "http_request_error"
DENIED = "http_request_denied"
UNAVAILABLE = "destination_unavailable"
INTERNAL = "proxy_internal_response"

# name: status, what Proxy-Status calls it, whether it has Retry-After (None: it depends)
TABLE: dict[str, tuple[int, str, bool | None]] = {
    "bad-request": (400, REQUEST, False),
    "unauthenticated": (401, DENIED, False),
    "missing-scope": (403, DENIED, None),
    "route-denied": (403, DENIED, False),
    "not-found": (404, DENIED, False),
    "method-not-allowed": (405, DENIED, False),
    "timeout": (408, REQUEST, False),
    "too-large": (413, REQUEST, False),
    "nested-field": (422, DENIED, False),
    "queue-full": (429, DENIED, True),
    "wait-expired": (429, DENIED, True),
    "internal": (500, "proxy_internal_error", False),
    "outcome-unknown": (502, "connection_terminated", False),
    "bad-upstream": (502, "http_protocol_error", False),
    "token-rejected": (502, "proxy_configuration_error", False),
    "upstream-unreachable": (503, UNAVAILABLE, True),
    "token-unavailable": (503, UNAVAILABLE, True),
    "keys-unavailable": (503, UNAVAILABLE, True),
    "store-unavailable": (503, INTERNAL, True),
    "overloaded": (503, INTERNAL, True),
    "draining": (503, INTERNAL, True),
    "loop": (508, "proxy_loop_detected", False),
}
PLAIN = [name for name, row in TABLE.items() if not row[2]]
AGAIN = [name for name, row in TABLE.items() if row[2] is not False]


def body_of(response: web.Response) -> dict[str, Any]:
    assert isinstance(response.body, bytes)
    document: dict[str, Any] = json.loads(response.body)
    return document


def test_there_are_no_other_problems() -> None:
    assert set(KINDS) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_row_becomes_an_answer(name: str) -> None:
    status, proxy_error, again = TABLE[name]
    response = Problem(name, "A sentence.", retry_after=7 if again else None).response("id-1")
    assert response.status == status
    document = body_of(response)
    assert document.pop("title")
    assert document == {
        "type": f"urn:export-proxy:{name}",
        "status": status,
        "detail": "A sentence.",
        "instance": "id-1",
    }
    headers = response.headers
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["X-Request-Id"] == "id-1"
    assert headers["Proxy-Status"] == f'export-proxy; error={proxy_error}; details="{name}"'
    assert headers["Cache-Control"] == "no-store"
    assert headers.get("Retry-After") == ("7" if again else None)


def test_titles_are_not_shared() -> None:
    """RFC 9457 section 3.1.3: a title is of the type, the same each time."""
    assert len({kind.title for kind in KINDS.values()}) == len(TABLE)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[2] is False])
def test_what_may_have_been_done_never_asks_to_be_sent_again(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Problem(name, "A sentence.", retry_after=1)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[2] is True])
def test_what_is_safe_to_send_again_says_when(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Problem(name, "A sentence.")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "1"), (0.2, "1"), (1, "1"), (1.001, "2"), (59.5, "60"), (60, "60")],
)
def test_retry_after_is_whole_seconds_never_sooner_and_at_least_one(
    seconds: float, expected: str
) -> None:
    headers = Problem("queue-full", "A sentence.", retry_after=seconds).response("id").headers
    assert headers["Retry-After"] == expected


def test_a_missing_scope_may_have_a_date_or_none() -> None:
    assert "Retry-After" not in Problem("missing-scope", "No.").response("id").headers
    later = Problem("missing-scope", "Not yet.", retry_after=15).response("id")
    assert later.headers["Retry-After"] == "15"


def test_facts_are_fields_of_the_document() -> None:
    problem = Problem("queue-full", "Too long.", retry_after=3, predicted_wait=17.25)
    assert body_of(problem.response("id"))["predicted_wait"] == 17.25


@pytest.mark.parametrize(
    ("name", "status"), [("bad-request", 417), ("too-large", 431), ("outcome-unknown", 504)]
)
def test_some_have_a_second_status(name: str, status: int) -> None:
    response = Problem(name, "A sentence.", status=status).response("id")
    document = body_of(response)
    assert (response.status, document["status"]) == (status, status)
    assert document["type"] == f"urn:export-proxy:{name}"


def test_silence_and_a_lost_connection_are_told_apart() -> None:
    """RFC 9209 section 2.3: http_response_timeout, connection_terminated."""
    silence = Problem("outcome-unknown", "Sent.", status=HTTPStatus.GATEWAY_TIMEOUT)
    lost = Problem("outcome-unknown", "Sent.")
    assert "error=http_response_timeout;" in silence.response("id").headers["Proxy-Status"]
    assert "error=connection_terminated;" in lost.response("id").headers["Proxy-Status"]


def test_only_what_asks_for_it_closes_the_connection() -> None:
    closing = Problem("draining", "Going.", retry_after=1, close=True).response("id")
    assert closing.keep_alive is False
    assert Problem("not-found", "Nothing.").response("id").keep_alive is None


def test_further_fields_of_the_head_are_kept() -> None:
    problem = Problem("method-not-allowed", "No.", headers={"Allow": "GET, POST"})
    assert problem.response("id").headers["Allow"] == "GET, POST"


def test_a_caller_without_a_credential_is_told_what_to_bring() -> None:
    """RFC 9110 section 11.6.1: a 401 has a challenge."""
    response = unauthenticated("A bearer token is required.").response("id")
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="export-proxy"'
