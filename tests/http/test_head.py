"""Heads that are refused, by plain calls."""

from collections.abc import Sequence

import pytest
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11

from proxy.http.head import check_head, check_own_head
from proxy.problems import Problem
from tests.kit.requests import request_of

PSEUDONYM = "export-proxy-1234"
PLANTED = "s3cr3t"
Field = tuple[str, str]


def check(
    fields: Sequence[Field],
    *,
    method: str = "GET",
    target: str = "/a",
    version: HttpVersion = HttpVersion11,
) -> Problem | None:
    """What refuses a head with exactly these fields, if anything does."""
    try:
        check_head(request_of(method, target, fields, version=version), PSEUDONYM)
    except Problem as problem:
        return problem
    return None


@pytest.mark.parametrize(
    "fields",
    [
        [("Host", "proxy.example")],
        [("host", "proxy.example:8080")],
        [("Host", "127.0.0.1:")],
        [("Host", "[::1]:8080")],
        [("Host", "h"), ("Transfer-Encoding", "chunked")],
        [("Host", "h"), ("Transfer-Encoding", "Chunked")],
        [("Host", "h"), ("Authorization", "Bearer a")],
        [("Host", "h"), ("Expect", "100-Continue")],
        [("Host", "h"), ("Via", "1.1 export-proxy-5678, 1.0 export-proxy")],
    ],
)
def test_a_good_head_passes(fields: list[Field]) -> None:
    assert check(fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("Host", "")],
        [("Host", "a"), ("Host", "b")],
        [("Host", "a, b")],
        [("Host", f"user:{PLANTED}@h")],
        [("Host", "h/path")],
        [("Host", "h:80:80")],
        [("Host", "h:x")],
        [("Host", "h h")],
        [("Host", "h"), ("Transfer-Encoding", "")],
        [("Host", "h"), ("Transfer-Encoding", "gzip, chunked")],
        [("Host", "h"), ("Transfer-Encoding", "chunked, chunked")],
        [("Host", "h"), ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
        [("Host", "h"), ("Transfer-Encoding", "xchunked")],
        [("Host", "h"), ("Transfer-Encoding", "chunked"), ("Content-Length", "1")],
        [("Host", "h"), ("Authorization", f"Bearer {PLANTED}"), ("authorization", "Bearer b")],
    ],
)
def test_an_ambiguous_head_is_malformed(fields: list[Field]) -> None:
    """RFC 9112 sections 3.2 and 6.1, and one caller a request."""
    problem = check(fields)
    assert problem is not None
    assert (problem.name, problem.status, problem.close) == ("bad-request", 400, True)
    assert PLANTED not in str(problem)


def test_only_http_1_0_may_leave_the_host_out() -> None:
    assert check([], version=HttpVersion10) is None
    assert check([("Host", "a b")], version=HttpVersion10) is not None


@pytest.mark.parametrize("target", [f"/a#{PLANTED}", "//evil/a", "/a/../b", "/%2e%2e/b", "*", "a"])
def test_a_target_that_could_be_read_two_ways_is_malformed(target: str) -> None:
    problem = check([("Host", "h")], target=target)
    assert problem is not None
    assert (problem.name, problem.close) == ("bad-request", True)
    assert PLANTED not in str(problem)


@pytest.mark.parametrize("expectation", ["200-ok", "", "100-continue, x"])
def test_what_cannot_be_met_is_not_expected_of_us(expectation: str) -> None:
    """RFC 9110 section 10.1.1: 417."""
    problem = check([("Host", "h"), ("Expect", expectation)])
    assert problem is not None
    assert (problem.name, problem.status, problem.close) == ("bad-request", 417, True)


def test_two_expectations_are_one_too_many() -> None:
    problem = check([("Host", "h"), ("Expect", "100-continue"), ("Expect", "100-continue")])
    assert problem is not None
    assert problem.status == 417


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_tunnels_and_echoes_are_not_offered(method: str) -> None:
    problem = check([("Host", "h")], method=method)
    assert problem is not None
    assert (problem.name, problem.status) == ("method-not-allowed", 405)
    assert "GET" in problem.headers["Allow"]
    assert method not in problem.headers["Allow"]


@pytest.mark.parametrize("via", [f"1.1 {PSEUDONYM}", f"1.1 a, 1.1 {PSEUDONYM} (us), 1.1 b"])
def test_a_request_that_was_here_before_is_looping(via: str) -> None:
    problem = check([("Host", "h"), ("Via", "1.1 first"), ("Via", via)])
    assert problem is not None
    assert (problem.name, problem.status) == ("loop", 508)


# For the proxy itself


OWN: dict[str, tuple[list[Field], str, HttpVersion, int | None]] = {
    "no host": ([], "/a", HttpVersion11, None),
    "any host": ([("Host", "evil.example")], "/a", HttpVersion10, None),
    "an older version": ([], "/a", HttpVersion(0, 9), 400),
    "another coding": ([("Transfer-Encoding", "gzip")], "/a", HttpVersion11, 400),
    "two framings": (
        [("Transfer-Encoding", "chunked"), ("Content-Length", "1")],
        "/a",
        HttpVersion11,
        400,
    ),
    "chunked in HTTP/1.0": ([("Transfer-Encoding", "chunked")], "/a", HttpVersion10, 400),
    "an expectation": ([("Expect", PLANTED)], "/a", HttpVersion11, 417),
    "two spellings of a path": ([], f"/a/../{PLANTED}", HttpVersion11, 400),
}


@pytest.mark.parametrize("case", OWN)
def test_a_head_for_the_proxy_itself_has_one_meaning_too(case: str) -> None:
    """Who may ask, and by which name, is decided elsewhere."""
    fields, target, version, status = OWN[case]
    request = request_of("GET", target, fields, version=version)
    if status is None:
        assert check_own_head(request).path == target
        return
    with pytest.raises(Problem) as refused:
        check_own_head(request)
    assert (refused.value.status, refused.value.close) == (status, True)
    assert PLANTED not in refused.value.detail
