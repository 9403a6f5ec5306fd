"""What an account's state means, and what to do about it: one table for the page and the terminal.

The texts are for people who never saw the code. They contain names from the configuration and
scopes, and nothing that a caller sent.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from proxy.rules.pace import in_words
from proxy.rules.shares import Reason
from proxy.rules.state import AccountState

Level = Literal["ok", "busy", "attention", "trouble"]

LEVELS: Final[tuple[Level, ...]] = ("ok", "busy", "attention", "trouble")
_RECENT: Final = 60.0  # seconds
_TOO_LONG: Final = {"urn:export-proxy:queue-full", "urn:export-proxy:wait-expired"}
_FATE: Final = {
    True: "Callers that cannot wait that long are refused, and told when to come back.",
    False: "No action is needed now.",
}
_PROBES: Final = {
    True: "The API named a long wait, so one request now and then tests if it still refuses; the"
    " proxy sends nothing else.",
    False: "The proxy sends nothing until the hold ends; then one request goes first.",
}
_REFUSED: Final[Mapping[Reason, str]] = {
    "limit": "as many are open as limits.max_connections or the descriptor limit allows.",
    "peer": "one address holds many of them (limits.max_connections_per_peer, or the last tenth).",
    "handshake": "their TLS handshake failed, or took longer than limits.header_timeout. Do callers"
    " speak TLS, and trust the certificate?",
    "descriptor": "almost no file descriptor is free. Raise the process's limit of open files.",
}
_WAITING: Final = "Requests wait for their slot. This is normal."
_WAITING_PAUSED: Final = "Requests wait until the pause ends."
_WAITING_HELD: Final = "Requests wait until the hold ends."


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to know about an account: how severe it is, what it is, what to do."""

    level: Level
    title: str
    advice: str


def notes_on(state: AccountState, now: float) -> tuple[Note, ...]:
    """Return the notes on an account, the most severe first; `now` is wall time."""
    return tuple(
        sorted(_notes(state, now), key=lambda note: LEVELS.index(note.level), reverse=True)
    )


def level_of(notes: tuple[Note, ...]) -> Level:
    """Return the level of the most severe note."""
    return notes[0].level if notes else "ok"


def notes_on_connections(refused: Mapping[Reason, int]) -> tuple[Note, ...]:
    """Return the notes on connections that were refused in the last minute, by the reason."""
    return tuple(
        Note(
            "attention", "connections refused", f"{count:,} in the last minute: {_REFUSED[reason]}"
        )
        for reason, count in refused.items()
    )


def _notes(state: AccountState, now: float) -> Iterator[Note]:
    yield from _of_token(state)
    if state.observed:
        yield from _of_observing(state)
    else:
        yield from _of_holds(state, now)
    yield from _of_orders(state)
    recent = [refusal for refusal in state.refusals if refusal.at > now - _RECENT]
    if recent:
        yield Note(
            "attention",
            "callers refused",
            "Requests were refused in the last minute; the last refusals show the reasons.",
        )
    if any(route.queue_depth for route in state.routes):
        yield Note("busy", "waiting", _waiting(state))


def _waiting(state: AccountState) -> str:
    if state.paused is not None:
        return _WAITING_PAUSED
    return _WAITING_HELD if _is_held(state) else _WAITING


def _is_held(state: AccountState) -> bool:
    """True if the account, or each route on which requests wait, is on hold."""
    waiting = [route for route in state.routes if route.queue_depth]
    return state.hold_remaining_seconds > 0 or all(r.hold_remaining_seconds > 0 for r in waiting)


def _is_clamped(state: AccountState) -> bool:
    """True if the API named a longer wait than the proxy obeys without a probe."""
    return state.hold_named_seconds > state.hold_remaining_seconds + 1


def _are_refused(state: AccountState, now: float) -> bool:
    """True if callers are refused because the hold is longer than they may wait."""
    return any(one.type in _TOO_LONG and one.at > now - _RECENT for one in state.refusals)


def _of_holds(state: AccountState, now: float) -> Iterator[Note]:
    if state.hold_remaining_seconds > 0:
        yield Note(
            "trouble",
            "on hold",
            f"The API refused this account, or announced that its limit is"
            f" reached{_because(state.hold_limit)}. {_PROBES[_is_clamped(state)]}"
            f" {_FATE[_are_refused(state, now)]} If it recurs, find out who else uses this"
            " account's quota.",
        )
    for route in state.routes:
        if route.hold_named_seconds > 0:
            yield Note(
                "trouble",
                f"{route.name} on hold",
                f"The API answered 429 on this route and named a wait"
                f"{_because(route.hold_limit)}. Its callers are told when to come back; other"
                " routes go on.",
            )


def _of_observing(state: AccountState) -> Iterator[Note]:
    held = "."
    if state.hold_named_seconds > 0:
        held = ": the API asked for a hold, and the proxy sends requests nevertheless."
    yield Note(
        "attention",
        "observed only",
        f"Requests are neither paced nor held{held} The metrics would_wait_seconds and"
        " would_refuse_total show what would have happened. To keep the pace, set pacing.mode (or"
        " the account's mode) to enforce, and reload.",
    )


def _of_orders(state: AccountState) -> Iterator[Note]:
    paused, slowed = state.paused, state.slowed
    if paused is not None:
        yield Note(
            "trouble",
            "paused",
            f"An operator paused this account at {_time(paused.since)}. Nothing is sent"
            f"{_until(paused.remaining_seconds)}. `export-proxy resume {state.name}` ends the"
            " pause.",
        )
    if slowed is not None:
        yield Note(
            "attention",
            "slowed down",
            f"An operator ordered an interval of {slowed.interval:g} s at {_time(slowed.since)},"
            f" for another {in_words(slowed.remaining_seconds)}.",
        )


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _until(seconds: float | None) -> str:
    return " until it is resumed" if seconds is None else f" for another {in_words(seconds)}"


def _because(limit: str | None) -> str:
    return "" if limit is None else f" (limit {limit})"


def _of_token(state: AccountState) -> Iterator[Note]:
    token = state.token
    if token is None:
        return
    if token.rejected:
        yield Note(
            "trouble",
            "credentials rejected",
            "The login server refuses the client id or secret: correct them and reload.",
        )
    elif token.expires_in is None:
        yield Note(
            "trouble",
            "no token",
            "The login server issues no token. The proxy asks again by itself; check that the"
            " server is up.",
        )
    if token.missing:
        yield Note(
            "trouble",
            "scope missing",
            f"Grant {', '.join(token.missing)} to the client's role, then refresh the account's"
            " token. Requests that need it are refused until a token carries it.",
        )
