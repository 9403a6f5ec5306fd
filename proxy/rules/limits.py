"""What a 429 says about the limit that was hit, and which requests the hold covers.

The vendor's error body (`ErrorBody`) may name the limit: `limit.namespace` is a service of the
platform, `limit.key` what is counted, per token, client or organization
(https://developer.genesys.cloud/organization/organization/limits). A body of another shape names
none.
"""

from dataclasses import dataclass
from typing import Final, Literal

HoldRule = Literal["auto", "account", "route"]

_ACCOUNT_NAMESPACES: Final = frozenset({"platform.api", "auth.api"})
_ORGANIZATION: Final = "org."  # how the key of a limit begins that all clients share
_LONGEST: Final = 100  # characters of a key or namespace; the vendor's longest have about 50


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit that was hit, as far as the API named it."""

    key: str | None = None
    namespace: str | None = None

    @property
    def name(self) -> str | None:
        """The limit's name for people."""
        return self.key or self.namespace


NO_LIMIT: Final = Limit()


@dataclass(frozen=True, slots=True)
class Reach:
    """Which requests a hold covers: one route or all, one account or those of an organization."""

    is_route: bool
    is_organization: bool


def limit_of(document: object) -> Limit:
    """Return the limit that an error body names; odd values count as absent."""
    limit = document.get("limit") if isinstance(document, dict) else None
    if not isinstance(limit, dict):
        return NO_LIMIT
    return Limit(key=_text(limit.get("key")), namespace=_text(limit.get("namespace")))


def reach_of(limit: Limit, rule: HoldRule, *, named: float | None, maximum: float) -> Reach:
    """Return what a hold covers after a 429 that named `named` seconds (None: no usable time).

    Without a namespace, a wait above `maximum` seconds is taken as the quota of that one route, as
    daily limits are.
    """
    match rule:
        case "account":
            is_route = False
        case "route":
            is_route = True
        case "auto":
            if limit.namespace is not None:
                is_route = limit.namespace not in _ACCOUNT_NAMESPACES
            else:
                is_route = named is not None and named > maximum
    is_organization = limit.key is not None and limit.key.startswith(_ORGANIZATION)
    return Reach(is_route=is_route, is_organization=is_organization)


def _text(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable():
        return value
    return None
