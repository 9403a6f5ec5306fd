"""Calls of the admin port of a running proxy, for the command line.

Every failure is one sentence for the person at the terminal.
"""

import json
import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from yarl import URL

ADMIN_URL: Final = "http://127.0.0.1:9180"  # where the admin port is unless configured
_SECONDS: Final = 10.0  # for one answer
_SHOWN: Final = 400  # characters of what another program wrote


class NoAnswer(Exception):
    """The admin port gave no usable answer; the message says why."""


async def get(url: str, *segments: str) -> Mapping[str, Any]:
    """Return the JSON object at that path below the URL. Raises `NoAnswer`."""
    return await _ask("GET", url, *segments)


async def post(
    url: str, *segments: str, document: Mapping[str, Any], token: str | None
) -> Mapping[str, Any]:
    """Post a JSON object, with the admin token if there is one. Raises `NoAnswer`."""
    fields = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await _ask("POST", url, *segments, json=document, headers=fields)


async def _ask(method: str, url: str, *segments: str, **request: Any) -> Mapping[str, Any]:
    try:
        target = URL(url).joinpath(*segments)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_SECONDS)) as session,
            session.request(method, target, allow_redirects=False, **request) as response,
        ):
            status, kind, body = response.status, response.content_type, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise NoAnswer(f"{url} cannot be reached: {_reason(error)}") from None
    if status != HTTPStatus.OK:
        text = printable(body.decode("utf-8", "replace").strip()) if kind == "text/plain" else ""
        raise NoAnswer(f"{url} answers {status}" + (f": {text}" if text else ""))
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswer(f"{url} does not answer like a proxy")
    return answer


def printable(text: str) -> str:
    """Return a text without control characters, cut to a bounded length."""
    return "".join(char if char.isprintable() else "?" for char in text)[:_SHOWN]


def _reason(error: Exception) -> str:  # noqa: PLR0911 -- one each
    match error:
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | ValueError():
            return "it is not a URL such as http://127.0.0.1:9180"
        case aiohttp.ClientSSLError():
            return "TLS failed"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) if number > 0:
            return os.strerror(number)  # the text of the event loop varies
        case aiohttp.ClientConnectorError():
            return error.os_error.strerror or "nothing listens there"
        case TimeoutError():
            return f"there was no answer within {_SECONDS:.0f} s"
        case aiohttp.ClientConnectionError():
            return "the connection broke off"
        case OSError():
            return error.strerror or "the connection failed"
        case _:
            return "the answer is not HTTP"
