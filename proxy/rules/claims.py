"""What a token says of itself, read without verifying it.

This is enough to judge the freshness of a token we fetched ourselves, and to find the issuer whose
key must verify a caller's token; it never proves an identity. Reading is strict, so that the later
verifier reads the same values: one value per name, and at most `MAX_TOKEN` characters.

Obeys RFC 7515 section 3.1 (compact form) and RFC 7519 section 4 (claims).
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_TOKEN: Final = 8192
LONGEST_LIFE: Final = 172_800.0  # seconds; the vendor's largest token lifetime, two days

_FAR: Final = 1e12  # seconds; NumericDates beyond the year 33658 are nonsense
# RFC 8693 section 4.2 (scope), and what other servers call the same.
_SCOPE_CLAIMS: Final = ("scope", "scp", "permissions")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")  # RFC 7515 section 2: and no padding


@dataclass(frozen=True, slots=True)
class Claims:
    """Header and payload of a JWT, not verified."""

    header: Mapping[str, Any]
    payload: Mapping[str, Any]

    def number(self, name: str) -> float | None:
        """Return a NumericDate (RFC 7519 section 2), None if it is absent or not usable."""
        value = self.payload.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if abs(value) < _FAR else None  # which NaN is not

    def scopes(self) -> frozenset[str] | None:
        """Return the token's scopes; None if it has no claim about scopes."""
        present = [self.payload[name] for name in _SCOPE_CLAIMS if name in self.payload]
        if not present:
            return None
        return frozenset(scope for value in present for scope in _words(value))


def read_claims(token: str) -> Claims | None:
    """Return the claims of a JWT in compact form; None if it is anything else."""
    if len(token) > MAX_TOKEN:
        return None
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 -- header, payload, signature
        return None
    header, payload = _object(parts[0]), _object(parts[1])
    return None if header is None or payload is None else Claims(header, payload)


def mentions(token: str, issuer: str) -> bool:
    """True if a token that cannot be read has this name in its payload.

    A loose search, good for refusing a token that claims an issuer; never for trusting it.
    """
    payload = token.partition(".")[2].partition(".")[0].rstrip("=")
    try:
        text = base64.urlsafe_b64decode((payload + "AAA")[: (len(payload) + 3) // 4 * 4])
    except ValueError:
        return False
    return issuer.encode() in text


def held_scopes(claims: Claims | None, answer_scope: str | None) -> frozenset[str] | None:
    """Return the scopes of a token: by its claims, else by the token answer's `scope`.

    None if unknown (an opaque token): then no scope is known to be missing.
    """
    scopes = None if claims is None else claims.scopes()
    if scopes is None and answer_scope is not None:
        return frozenset(answer_scope.split())
    return scopes


def _words(value: object) -> Sequence[str]:
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list):
        return [word for word in value if isinstance(word, str)]
    return ()


def _object(part: str) -> dict[str, Any] | None:
    """Decode a base64url-encoded JSON object; None for anything else, or if a name comes twice."""
    if _BASE64URL.fullmatch(part) is None:
        return None
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is given twice")
    return names
