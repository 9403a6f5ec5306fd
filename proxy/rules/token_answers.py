"""What a login server's answer grants (RFC 6749 section 5.1), as servers really write it.

`expires_in` may be a number, digits as text, absent or absurd; `scope` may be text, null, empty, or
separated by commas. Used for the answers to our own calls and for those passed on.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.rules.claims import LONGEST_LIFE, read_claims

USUAL_LIFE: Final = 3600.0  # seconds; of a token without a known end
_DIGITS: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?", re.ASCII)
_SEPARATORS: Final = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A token that was issued.

    `lifetime` is in seconds, None if the answer names no usable one; `scope` is None if the answer
    says nothing about scopes.
    """

    token: str = field(repr=False)
    lifetime: float | None
    scope: frozenset[str] | None


def read_document(body: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer; an empty one if it is anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def read_grant(document: dict[str, Any]) -> Grant | None:
    """Return what the answer grants; None without a token that could be sent as a bearer token."""
    token = document.get("access_token")
    if not isinstance(token, str) or not token or not all("!" <= char <= "~" for char in token):
        return None
    return Grant(
        token=token,
        lifetime=seconds(document.get("expires_in")),
        scope=_scopes(document.get("scope")),
    )


def seconds(value: object) -> float | None:
    """Return a lifetime of more than 0 seconds, at most `LONGEST_LIFE`; None for anything else."""
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        value = float(value)  # of very many digits: infinity
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return None
    return float(min(value, LONGEST_LIFE))


def remaining_life(token: str, now: float) -> float | None:
    """Return how long a JWT has left by its own `exp`; None if none can be read.

    `now` is wall time. The result may be negative.
    """
    claims = read_claims(token)
    expires = None if claims is None else claims.number("exp")
    return None if expires is None else min(expires - now, LONGEST_LIFE)


def life_of(grant: Grant, now: float) -> float:
    """Return for how many seconds a token that was just issued counts."""
    if grant.lifetime is not None:
        return grant.lifetime
    remaining = remaining_life(grant.token, now)
    return remaining if remaining is not None and remaining > 0 else USUAL_LIFE


def _scopes(value: object) -> frozenset[str] | None:
    if not isinstance(value, str):
        return None
    words = frozenset(word for word in _SEPARATORS.split(value) if word)
    return words or None  # RFC 6749 section 3.3: an empty scope is none at all
