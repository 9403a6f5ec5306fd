"""What is known of the accounts at one moment: values for metrics, status pages and tests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.rules.tally import CallerCount

OTHER = "other"  # the name under which all unconfigured accounts are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """One queue; seconds.

    `predicted_seconds` is what a new request would wait, behind all that wait now.
    `last_gap_seconds` is the time between the last two of the `sent` requests: None before there
    were two, and where several queues are shown as one. The hold is that of this route alone;
    `hold_named_seconds` is the time left of the wait that the API named, `hold_limit` the limit it
    named.
    """

    name: str
    queue_depth: int
    oldest_seconds: float
    interval: float
    predicted_seconds: float = 0.0
    sent: int = 0
    last_gap_seconds: float | None = None
    hold_remaining_seconds: float = 0.0
    hold_named_seconds: float = 0.0
    hold_limit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenState:
    """A managed account's token; seconds, `issued_at` in seconds since the epoch.

    `scopes` is None if unknown (opaque tokens); `rejected` is True while the login server refuses
    the account's credentials.
    """

    expires_in: float | None
    scopes: Sequence[str] | None
    missing: Sequence[str]
    next_refresh_in: float | None
    issued_at: float | None
    rejected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The proxy's own refusals of one type; times are seconds since the epoch.

    `count` is how many there were since `since`; `at` and `detail` are those of the last one.
    Type and detail hold nothing that a caller sent.
    """

    at: float
    type: str
    detail: str
    count: int = 1
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseState:
    """An operator's pause; `since` in seconds since the epoch, `remaining_seconds` None: no end."""

    since: float
    remaining_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowdownState:
    """An interval that an operator ordered; `since` in seconds since the epoch."""

    since: float
    remaining_seconds: float
    interval: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """One account, or all that are not configured under the name `other`; seconds.

    `hold_remaining_seconds` and `hold_limit` are of the hold of all its routes,
    `hold_named_seconds` is the longest of that and of the holds of single routes. Where `observed`,
    neither the pace nor holds are kept. `paused` and `slowed` are what an operator ordered.
    """

    name: str
    routes: Sequence[QueueState]
    in_flight: int
    hold_remaining_seconds: float
    hold_named_seconds: float = 0.0
    hold_limit: str | None = None
    quota_remaining: int | None = None
    observed: bool = False
    paused: PauseState | None = None
    slowed: SlowdownState | None = None
    token: TokenState | None = None
    refusals: Sequence[Refusal] = ()
    callers_waiting: Sequence[CallerCount] = ()
    callers_refused: Sequence[CallerCount] = ()


def merged(states: Iterable[AccountState]) -> tuple[AccountState, ...]:
    """Return the states with those of one name as one: counts summed, times the largest."""
    by_name: dict[str, list[AccountState]] = {}
    for state in states:
        by_name.setdefault(state.name, []).append(state)
    return tuple(
        same[0] if len(same) == 1 else _merge(name, same) for name, same in by_name.items()
    )


def _merge(name: str, states: Sequence[AccountState]) -> AccountState:
    queues: dict[str, list[QueueState]] = {}
    for state in states:
        for queue in state.routes:
            queues.setdefault(queue.name, []).append(queue)
    return AccountState(
        name=name,
        routes=tuple(
            QueueState(
                name=route,
                queue_depth=sum(queue.queue_depth for queue in same),
                oldest_seconds=max(queue.oldest_seconds for queue in same),
                interval=max(queue.interval for queue in same),
                predicted_seconds=max(queue.predicted_seconds for queue in same),
                sent=sum(queue.sent for queue in same),
                last_gap_seconds=same[0].last_gap_seconds if len(same) == 1 else None,
                hold_remaining_seconds=max(queue.hold_remaining_seconds for queue in same),
                hold_named_seconds=max(queue.hold_named_seconds for queue in same),
                hold_limit=next((queue.hold_limit for queue in same if queue.hold_limit), None),
            )
            for route, same in queues.items()
        ),
        in_flight=sum(state.in_flight for state in states),
        hold_remaining_seconds=max(state.hold_remaining_seconds for state in states),
        hold_named_seconds=max(state.hold_named_seconds for state in states),
        hold_limit=next((state.hold_limit for state in states if state.hold_limit), None),
        observed=any(state.observed for state in states),
    )
