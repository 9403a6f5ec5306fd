"""Refused connections: counted, shown for a minute, and logged once a minute per reason.

Such a connection has no request and gets no log line of its own, since there may be thousands a
second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.rules.shares import Reason
from proxy.rules.tally import RecentCount
from proxy.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_MINUTE: Final = 60.0


@dataclass(slots=True)
class _Refused:
    """Refused connections of one reason: the recent ones, and those not logged yet."""

    recent: RecentCount = field(default_factory=RecentCount)
    unlogged: int = 0
    next_line_at: float = -inf


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
        refused = self._refused.setdefault(reason, _Refused())
        refused.recent.add(now)
        refused.unlogged += 1
        if now >= refused.next_line_at:
            _log.warning("connections refused", reason=reason, count=refused.unlogged)
            refused.unlogged, refused.next_line_at = 0, now + _MINUTE

    def recent(self) -> Mapping[Reason, int]:
        """Return how many were refused in the last minute, by reason."""
        now = self._clock.monotonic()
        counts = {reason: refused.recent.total(now) for reason, refused in self._refused.items()}
        return {reason: count for reason, count in counts.items() if count}
