"""Counters of incidents at the service desk."""

from proxy.rules.incidents import KINDS
from proxy.telemetry.families import Families


class IncidentMetrics:
    """Counts incidents by their kind and outcome."""

    def __init__(self, families: Families) -> None:
        self._incidents = families.counter(
            "incidents",
            "Incidents reported: opened, adopted, updated, closed, dropped; and failed attempts.",
            "kind",
            "outcome",
        )

    def begin(self) -> None:
        """Create the series that a rate needs, so that the first failure counts."""
        for kind in (*KINDS, "none"):
            for outcome in ("opened", "closed", "failed", "dropped"):
                self._incidents[kind, outcome] += 0

    def count(self, kind: str, outcome: str) -> None:
        """Count an incident that was opened, adopted, updated, closed or dropped, or a failure."""
        self._incidents[kind, outcome] += 1
