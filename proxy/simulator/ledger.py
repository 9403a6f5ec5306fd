"""The arrivals of each account in order, and the report made from them.

No I/O and no clock: arrivals come stamped with monotonic seconds. The gaps of a report are between
all arrivals on paced paths, refused ones included: a pacing client promises what it sends, not what
the API accepts.
"""

import math
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from proxy.simulator.limiter import Accepted, Decision, Reason, Refused

UNATTRIBUTED = "(nobody)"
"""The account of arrivals whose token nobody issued."""
QUOTA_WINDOW = 60.0


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One request. Mutable in one field: the status is known only when it is answered."""

    at: float
    method: str
    path: str
    paced: bool
    decision: Decision | None
    """None if the limiter was not asked: an unpaced path, or a token that is not valid."""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the other books say of an account."""

    tokens_minted: int
    exports: int
    duplicates: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountReport:
    """What an account did on the paced paths, as far as remembered. Gaps are seconds."""

    accepted: int
    refused: int
    early: int
    storm: int
    eaten: int
    smallest_gap: float | None
    median_gap: float | None
    span: float
    """From the first arrival to the last."""
    ahead: float | None
    """How far the worst arrival k ran ahead of the pace: the largest
    (k - j) x interval - (arrival k - arrival j) over all j < k; not above the tolerance if the
    account kept it, and None below two arrivals."""
    statuses: dict[int, int]
    exports: int
    duplicates: dict[str, int]
    tokens_minted: int


@dataclass(frozen=True, slots=True)
class Quota:
    """How much of the announced quota is used, and the seconds until some comes back."""

    used: int
    reset: int


class Ledger:
    """Every account's arrivals, the newest `size` of each."""

    def __init__(self, size: int) -> None:
        self._arrivals: defaultdict[str, deque[Arrival]] = defaultdict(lambda: deque(maxlen=size))

    def note(self, account: str, arrival: Arrival) -> None:
        self._arrivals[account].append(arrival)

    def accounts(self) -> list[str]:
        return list(self._arrivals)

    def arrivals(self, account: str) -> list[Arrival]:
        return list(self._arrivals.get(account, ()))

    def quota(self, account: str, now: float) -> Quota:
        recent = takewhile(
            lambda arrival: now - arrival.at < QUOTA_WINDOW,
            reversed(self._arrivals.get(account, deque())),
        )
        counted = [arrival.at for arrival in recent if arrival.decision == Accepted()]
        oldest = min(counted, default=now)
        return Quota(len(counted), math.ceil(oldest + QUOTA_WINDOW - now))

    def reset(self) -> None:
        self._arrivals.clear()


def summarise(arrivals: Iterable[Arrival], *, interval: float, counts: Counts) -> AccountReport:
    paced = [arrival for arrival in arrivals if arrival.paced]
    times = [arrival.at for arrival in paced]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    refusals = Counter(a.decision.reason for a in paced if isinstance(a.decision, Refused))
    return AccountReport(
        accepted=sum(arrival.decision == Accepted() for arrival in paced),
        refused=refusals.total(),
        early=refusals[Reason.EARLY],
        storm=refusals[Reason.STORM],
        eaten=refusals[Reason.EATEN],
        smallest_gap=min(gaps, default=None),
        median_gap=statistics.median(gaps) if gaps else None,
        span=times[-1] - times[0] if times else 0.0,
        ahead=furthest_ahead(times, interval),
        statuses=dict(Counter(a.status for a in paced if a.status is not None)),
        exports=counts.exports,
        duplicates=counts.duplicates,
        tokens_minted=counts.tokens_minted,
    )


def furthest_ahead(times: Sequence[float], interval: float) -> float | None:
    """Compare each arrival with all earlier ones at once, by the time it would be due."""
    due = -math.inf
    ahead = -math.inf
    for at in times:
        ahead = max(ahead, due - at)
        due = max(due, at) + interval
    return ahead if len(times) > 1 else None
