"""Refused connections: counted, shown for a minute, and logged once a minute per reason.

Such a connection has no request and gets no log line of its own, since there may be thousands a
second.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.rules.shares import Reason
from proxy.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_MINUTE: Final = 60.0


@dataclass(slots=True)
class _Refused:
    """Refused connections of one reason: those in this minute, and those not logged yet."""

    began: float
    last: float
    count: int = 0
    unlogged: int = 0


class RefusedConnections:
    """Notes each connection that is refused."""

    def __init__(self, metrics: Metrics, *, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._refused: dict[Reason, _Refused] = {}

    def note(self, reason: Reason) -> None:
        """Count one."""
        self._metrics.connection_refused(reason)
        now = self._clock.monotonic()
        refused = self._refused.get(reason)
        if refused is None:
            refused = self._refused[reason] = _Refused(began=now - _MINUTE, last=now)
        refused.last = now
        refused.unlogged += 1
        if now >= refused.began + _MINUTE:
            refused.began, refused.count = now, 0
            _log.warning("connections refused", reason=reason, count=refused.unlogged)
            refused.unlogged = 0
        refused.count += 1

    def recent(self) -> Mapping[Reason, int]:
        """Return how many were refused in the last minute, by reason."""
        now = self._clock.monotonic()
        return {
            reason: refused.count
            for reason, refused in self._refused.items()
            if refused.last > now - _MINUTE
        }
