"""What an account's state means, and what to do about it: one table for all who show it.

The words are for people who have never seen the code. They hold names from the configuration and
scopes, and nothing of a caller's.
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
    """One thing to know of an account: how grave it is, what it is, what to do."""

    level: Level
    title: str
    advice: str


def notes_on(state: AccountState, now: float) -> tuple[Note, ...]:
    """Return what is to be said of an account, the gravest first; `now` is wall time."""
    return tuple(
        sorted(_notes(state, now), key=lambda note: LEVELS.index(note.level), reverse=True)
    )


def level_of(notes: tuple[Note, ...]) -> Level:
    """Return the gravest level."""
    return notes[0].level if notes else "ok"


def _notes(state: AccountState, now: float) -> Iterator[Note]:
    yield from _of_token(state)
    if state.hold_remaining_seconds > 0:
        yield Note(
            "trouble",
            "on hold",
            "The API answered 429 and asked for silence; everybody waits, then one request goes"
            " first. Nothing is to be done at once. If it recurs, find out who else uses this"
            " account's quota.",
        )
    recent = [refusal for refusal in state.refusals if refusal.at > now - _RECENT]
    if recent:
        yield Note(
            "attention",
            "callers refused",
            "Requests were refused in the last minute; the last refusals say why.",
        )
    if any(line.queue_depth for line in state.routes):
        yield Note(
            "busy", "in line", "Requests wait for their turn at the pace. That is as it should be."
        )


def _of_token(state: AccountState) -> Iterator[Note]:
    token = state.token
    if token is None:
        return
    if token.rejected:
        yield Note(
            "trouble",
            "credentials rejected",
            "The login server refuses the client id or secret: put them right and reload.",
        )
    elif token.expires_in is None:
        yield Note(
            "trouble",
            "no token",
            "The login server gives no token and is asked again by itself: see whether it is up.",
        )
    if token.missing:
        yield Note(
            "trouble",
            "scope missing",
            f"Grant {', '.join(token.missing)} to the client's role, then have a new token minted;"
            " until it appears, requests that need it are refused.",
        )
