"""What callers were told, held against what the API did: nothing doubled, nothing lost unexplained.

Where an answer says that nothing was created, or that something was, the API's own count must say
so too; where it says that nobody knows, once at most.
"""

import json
from collections.abc import Mapping

from tests.kit.client import Response

CUT_SHORT = "cut short"
LEFT = "left"  # the caller, without an answer

_NEVER, _ONCE, _ONCE_AT_MOST = {0}, {1}, {0, 1}
_APPLIED = {
    "202": _ONCE,
    "500": _ONCE,
    CUT_SHORT: _ONCE,
    LEFT: _ONCE_AT_MOST,
    "502 outcome-unknown": _ONCE_AT_MOST,
    "504 outcome-unknown": _ONCE_AT_MOST,
    "502 bad-upstream": _ONCE_AT_MOST,
    "503 upstream-unreachable, come back": _NEVER,
    "503 token-unavailable, come back": _NEVER,
    "503 draining, come back": _NEVER,
    "429 queue-full, come back": _NEVER,
    "429 wait-expired, come back": _NEVER,
    "429, come back": _NEVER,
}


def told(response: Response) -> str:
    """Say in a few words what an answer tells its caller."""
    if not response.complete:
        return CUT_SHORT
    words = str(response.status)
    if response.values("content-type") == [b"application/problem+json"]:
        words += " " + json.loads(response.body)["type"].removeprefix("urn:export-proxy:")
    return words + (", come back" if response.values("retry-after") else "")


def unexplained(answers: Mapping[str, str], applied: Mapping[str, int]) -> list[str]:
    """List the requests whose answer and effect do not go together; both by the request's key."""
    wrong = [
        f"{key}: told {answer!r}, applied {applied.get(key, 0)} times"
        for key, answer in answers.items()
        if applied.get(key, 0) not in _APPLIED.get(answer, ())
    ]
    return wrong + [f"{key}: nobody sent it" for key in applied.keys() - answers.keys()]
