"""What an account's state means, and what to do about it: one table for the page and the terminal.

The texts are for people who never saw the code. They contain names from the configuration and
scopes, and nothing that a caller sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from proxy.rules.state import AccountState

Level = Literal["ok", "busy", "attention", "trouble"]

LEVELS: Final[tuple[Level, ...]] = ("ok", "busy", "attention", "trouble")
_RECENT: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to know about an account: how grave it is, what it is, what to do."""

    level: Level
    title: str
    advice: str


def notes_on(state: AccountState, now: float) -> tuple[Note, ...]:
    """Return the notes on an account, the gravest first; `now` is wall time."""
    return tuple(
        sorted(_notes(state, now), key=lambda note: LEVELS.index(note.level), reverse=True)
    )


def level_of(notes: tuple[Note, ...]) -> Level:
    """Return the gravest level."""
    return notes[0].level if notes else "ok"


def _notes(state: AccountState, now: float) -> Iterator[Note]:
    yield from _of_token(state)
    yield from _of_holds(state)
    recent = [refusal for refusal in state.refusals if refusal.at > now - _RECENT]
    if recent:
        yield Note(
            "attention",
            "callers refused",
            "Requests were refused in the last minute; the last refusals show the reasons.",
        )
    if any(line.queue_depth for line in state.routes):
        yield Note("busy", "waiting", "Requests wait to be sent at the pace. This is normal.")


def _of_holds(state: AccountState) -> Iterator[Note]:
    if state.hold_remaining_seconds > 0:
        yield Note(
            "trouble",
            "on hold",
            f"The API answered 429 and named a time to wait{_because(state.hold_limit)}. Until then"
            " nothing is sent; then one request goes first. No action is needed now. If it recurs,"
            " find out who else uses this account's quota.",
        )
    for route in state.routes:
        if route.hold_named_seconds > 0:
            yield Note(
                "trouble",
                f"{route.name} on hold",
                f"The API answered 429 on this route and named a time to wait"
                f"{_because(route.hold_limit)}. Its callers are told when to come back; other"
                " routes go on.",
            )


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
            "The login server gives no token. The proxy asks again by itself: check that it is up.",
        )
    if token.missing:
        yield Note(
            "trouble",
            "scope missing",
            f"Grant {', '.join(token.missing)} to the client's role, then refresh the account's"
            " token; until a token carries it, requests that need it are refused.",
        )
