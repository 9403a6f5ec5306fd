"""The checks of a request's head, before anything else is done for it.

aiohttp's parser refuses broken framing by itself; these checks refuse what it accepts and a strict
server must not (RFC 9112 sections 3.2 and 6.1, RFC 9110 sections 7.2 and 10.1.1). A refusal repeats
nothing that a caller wrote.
"""

import re
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11

from proxy.http.request import Request
from proxy.problems import Problem
from proxy.rules.headers import has_passed
from proxy.rules.targets import BadTarget, Target, parse_target

_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._~%!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})  # the parser lets 0.9 and 2.0 pass
_REFUSED_METHODS: Final = frozenset({"CONNECT", "TRACE"})


def check_head(request: Request, pseudonym: str) -> Target:
    """Return the request's target, or raise the Problem that refuses it."""
    _check_version(request)
    headers = request.headers
    if request.method in _REFUSED_METHODS:
        raise Problem(
            "method-not-allowed",
            "This is not a forward proxy: set it as the SDK's gateway or base URL instead.",
            headers={"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"},
            close=True,
        )
    _check_framing(request)
    _check_host(request)
    if len(headers.getall("Authorization", ())) > 1:
        raise _malformed("There are several Authorization fields.")
    _check_expectation(request)
    if has_passed(pseudonym, headers.getall("Via", ())):
        raise Problem("loop", "The request has already passed through this proxy.")
    return _read_target(request)


def check_own_head(request: Request) -> Target:
    """Return the target of a request that is for the proxy itself, or raise the Problem.

    Its Host and who may ask are checked elsewhere.
    """
    _check_version(request)
    _check_framing(request)
    _check_expectation(request)
    return _read_target(request)


def _check_version(request: Request) -> None:
    if request.version not in _VERSIONS:
        raise _malformed("The proxy speaks only HTTP/1.1 and HTTP/1.0.")


def _check_framing(request: Request) -> None:
    coding = request.headers.getall("Transfer-Encoding", ())
    if not coding:
        return
    if [value.lower() for value in coding] != ["chunked"]:
        raise _malformed("Transfer-Encoding must be exactly 'chunked'.")
    if "Content-Length" in request.headers:
        raise _malformed("Transfer-Encoding and Content-Length exclude each other.")
    if request.version < HttpVersion11:
        raise _malformed("HTTP/1.0 has no Transfer-Encoding.")


def _check_expectation(request: Request) -> None:
    expectations = request.headers.getall("Expect", ())
    if expectations and [value.lower() for value in expectations] != ["100-continue"]:
        raise Problem("bad-request", "Expect may only be 100-continue.", status=417, close=True)


def _read_target(request: Request) -> Target:
    try:
        return parse_target(request.target)
    except BadTarget as error:
        raise _malformed(str(error)) from None


def _check_host(request: Request) -> None:
    hosts = request.headers.getall("Host", ())
    if len(hosts) > 1 or (hosts and _AUTHORITY.fullmatch(hosts[0]) is None):
        raise _malformed("There must be one Host field, with one valid host.")
    if not hosts and request.version >= HttpVersion11:
        raise _malformed("The Host field is missing.")


def _malformed(detail: str) -> Problem:
    return Problem("bad-request", detail, close=True)
