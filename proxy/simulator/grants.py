"""Who may do what: the scopes a client holds as time passes, and the scope an export needs.

No I/O and no clock. A scope counts from the moment its change has propagated; a token keeps
the scopes of the moment it was minted, so only a newer token shows the change.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE

CHANNEL_FIELDS: Final = ("channel", "mediaType")
DIGITAL_CHANNELS: Final = frozenset(
    {"whatsapp", "sms", "webchat", "webmessaging", "email", "facebook"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantOrder:
    """A request for a grant, in JSON. Propagation is in seconds."""

    client_id: str
    scope: str
    propagation: float

    @classmethod
    def from_json(cls, body: object) -> Self:
        """Read a decoded body; ValueError says what is wrong with it."""
        match body:
            case {"client_id": str(client_id), "scope": str(scope), **rest}:
                propagation = _finite(rest.get("propagation", 0))
                return cls(client_id=client_id, scope=scope, propagation=propagation)
            case _:
                raise ValueError("client_id and scope must be strings")


class Grants:
    """Scopes per client: those it starts with, and those granted since."""

    def __init__(self, starting_scopes: Callable[[str], frozenset[str]]) -> None:
        self._starting_scopes = starting_scopes
        self._effective: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def grant(self, client_id: str, scope: str, *, effective_at: float) -> None:
        """Grant a scope from a monotonic time on; granting it again only brings it forward."""
        times = self._effective[client_id]
        times[scope] = min(effective_at, times.get(scope, effective_at))

    def held(self, client_id: str, now: float) -> frozenset[str]:
        granted = self._effective.get(client_id, {})
        arrived = {scope for scope, since in granted.items() if since <= now}
        return self._starting_scopes(client_id) | arrived


def _finite(value: object) -> float:
    match value:
        case int() | float() if not isinstance(value, bool) and math.isfinite(value):
            return value
        case _:
            raise ValueError("propagation must be a number of seconds")


def required_scope(body: object) -> str:
    """Name the scope that exporting `body`, a decoded JSON value, needs.

    The first channel field present decides. A request that names no digital channel is for voice.
    """
    return DIGITAL_SCOPE if _channel(body) in DIGITAL_CHANNELS else VOICE_SCOPE


def _channel(body: object) -> str:
    if not isinstance(body, dict):
        return ""
    value = next((body[name] for name in CHANNEL_FIELDS if name in body), "")
    return value.casefold() if isinstance(value, str) else ""
