"""What all accounts of one proxy have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from proxy.clock import Clock
from proxy.pacing.holding import HoldSpan
from proxy.pacing.leases import Leases
from proxy.retries import RetryRules
from proxy.rules.limits import HoldRule
from proxy.rules.succession import Taken, lease_name
from proxy.settings import Pacing
from proxy.telemetry.metrics import Metrics

# Holds the accounts of an organization, on all routes (None) or one: its name, if it is paced.
HoldOrganization = Callable[[str, HoldSpan, tuple[str, bool] | None], None]


@dataclass(slots=True, kw_only=True)
class PacingContext:
    """What all accounts share: tools, and what `Accounts.apply` takes from the settings.

    `reserve` is how many requests of an announced quota are left unused.
    """

    clock: Clock
    metrics: Metrics
    random: Callable[[], float]
    started_at: float
    is_draining: Callable[[], bool]
    closes_at: Callable[[], float]  # when whatever waits then is refused; monotonic
    leases: Leases
    hold_organization: HoldOrganization
    pacing: Pacing = field(init=False)
    retry_rules: RetryRules = field(init=False)
    reserve: int = field(init=False)
    hold_rules: Mapping[str, HoldRule] = field(init=False)  # by route
    intervals: Mapping[str, float] = field(init=False)  # of routes with one of their own
    taken: Mapping[str, Taken] = field(default_factory=dict)  # by each paced route
    inherited: Mapping[str, float] = field(default_factory=dict)  # when it took others' paths
    arrivals: int = 0

    def lease_name(self, route: str) -> str:
        """Return the name of the leases of a route's queues; that of the route if none is paced."""
        taken = self.taken.get(route)
        return route if taken is None else lease_name(taken)

    def inherited_at(self, route: str) -> float:
        """Return when a paced route last took paths of others; they may have sent just before."""
        return self.inherited.get(route, -inf)

    def next_arrival(self) -> int:
        """Return the number of a request in order of arrival."""
        self.arrivals += 1
        return self.arrivals
