"""Tokens for which the API named no client: strangers' tokens, and tokens it denies.

Each is remembered for a while, so that the proxy does not ask about a token in a loop. The table is
bounded: when it is full, it forgets expired entries, else the oldest one.
"""

from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.http.messages import Answer
from proxy.rules.whoami import ASK_AGAIN, DENIED_FOR

_MAX_ENTRIES: Final = 1000  # tokens; ten questions a second leave some 600 in a minute


@dataclass(frozen=True, slots=True)
class Denied:
    """The API's own 401 to a token, for its caller."""

    answer: Answer


class Findings:
    """Findings by token hash; None stands for a stranger's token."""

    def __init__(self, *, clock: Clock, max_entries: int = _MAX_ENTRIES) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._entries: dict[bytes, tuple[Denied | None, float]] = {}

    def has(self, token_hash: bytes) -> bool:
        """True if there is a finding on the token that still counts."""
        _, until = self._entries.get(token_hash, (None, 0.0))
        return until > self._clock.monotonic()

    def get(self, token_hash: bytes) -> Denied | None:
        """Return the finding on a token."""
        return self._entries[token_hash][0]

    def add(self, token_hash: bytes, finding: Denied | None) -> None:
        """Remember a finding."""
        now = self._clock.monotonic()
        self._entries.pop(token_hash, None)
        if len(self._entries) >= self._max_entries:
            self._entries = {key: one for key, one in self._entries.items() if one[1] > now}
        if len(self._entries) >= self._max_entries:
            del self._entries[next(iter(self._entries))]
        until = now + (ASK_AGAIN if finding is None else DENIED_FOR)
        self._entries[token_hash] = (finding, until)
